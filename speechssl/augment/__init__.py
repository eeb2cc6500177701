"""Augmentation of waveforms and features, each random choice from an explicit generator."""
