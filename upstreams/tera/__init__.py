"""TERA and its kin (Mockingjay, Audio ALBERT): transformers that undo alterations of log-mel frames."""
