"""BEATs: a transformer on patches of a spectrogram, trained to predict the codes of acoustic tokenizers."""
