"""Keyword spotting: which of a few words is said in a second of audio."""
