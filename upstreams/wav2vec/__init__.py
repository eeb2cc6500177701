"""wav2vec: the first of its name, convolutions that predict the future."""
