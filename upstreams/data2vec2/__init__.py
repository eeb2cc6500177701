"""data2vec 2.0 for speech: the targets of data2vec, several masks for each, and positions by attention that fades."""
