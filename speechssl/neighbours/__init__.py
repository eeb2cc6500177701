"""The nearest frames by cosine, exactly, in bounded memory: `nearest` once, or a `ReferencePool` searched often."""

from speechssl.neighbours.pool import MEMORY_MB, Backend, ReferencePool, nearest

__all__ = ["MEMORY_MB", "Backend", "ReferencePool", "nearest"]
