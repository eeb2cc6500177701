"""Quantizers: frames in, codes and their vectors out, all with one interface and one result type."""
