"""Upstreams where their users already are: as ONNX and torch.export programs, HEAR modules and X-ARES encoders."""
