"""Log-mel filterbank energies, the baseline upstream."""
