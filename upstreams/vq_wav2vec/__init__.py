"""vq-wav2vec: wav2vec whose context network hears quantised features."""
