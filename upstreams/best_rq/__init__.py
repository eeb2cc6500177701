"""BEST-RQ: a conformer on log-mel frames that predicts the codes of a random projection."""
