"""Spectrograms as patches in a vision transformer: what the general-audio encoders share."""
