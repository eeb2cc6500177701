"""The log power spectrum, a baseline upstream."""
