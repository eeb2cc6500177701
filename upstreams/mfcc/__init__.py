"""Mel-frequency cepstral coefficients, a baseline upstream and HuBERT's first targets."""
