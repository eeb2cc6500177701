"""Deepfake detection: real speech against synthesisers and vocoders, some of which training never meets."""
