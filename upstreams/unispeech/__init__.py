"""UniSpeech: contrastive and phonetic pre-training at once."""
