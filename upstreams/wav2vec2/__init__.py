"""wav2vec 2.0 and the multilingual and robust models of its architecture."""
