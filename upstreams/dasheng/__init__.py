"""Dasheng: a masked autoencoder on strips of a mel spectrogram, scaled up."""
