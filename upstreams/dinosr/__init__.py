"""DinoSR: prediction of what online codebooks make of a moving average of the model."""
