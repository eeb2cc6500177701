"""Separation and enhancement by masks on the short-time Fourier transform."""
