"""APC and VQ-APC: recurrent layers that predict the frame some steps ahead."""
