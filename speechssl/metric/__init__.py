"""Metrics: pure functions of scores, texts and seeds, one module per family of measures."""
