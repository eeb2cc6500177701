"""Transformer encoders over feature sequences and their building blocks."""
