"""Fast-HuBERT: HuBERT on log-mel frames at 25 Hz."""
