"""WavLM: HuBERT on mixed utterances, with a gated relative position bias."""
