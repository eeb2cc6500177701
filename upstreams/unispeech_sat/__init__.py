"""UniSpeech-SAT: HuBERT that also tells speakers apart."""
