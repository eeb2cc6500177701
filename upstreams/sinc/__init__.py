"""Fixed sinc filters on the waveform, a baseline upstream."""
