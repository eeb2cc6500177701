"""wav2vec 2.0 with conformer blocks and relative or rotary positions."""
