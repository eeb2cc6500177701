"""What pre-training minimises: sums over scored frames, and how many frames those were."""
