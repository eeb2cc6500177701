"""Phoneme recognition by CTC."""
