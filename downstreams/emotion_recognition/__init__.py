"""Emotion recognition: one of four emotions, by five folds over sessions."""
