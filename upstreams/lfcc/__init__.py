"""Linear-frequency cepstral coefficients, the baseline upstream of detecting spoofed speech."""
