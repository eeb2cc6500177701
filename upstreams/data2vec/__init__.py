"""data2vec for speech: regression of what a moving average of the model hears unmasked."""
