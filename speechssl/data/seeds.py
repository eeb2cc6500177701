"""Seeds and generators that are named by what they are for."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed for anything named by `parts`, such as (seed, 'crop', epoch, utterance)."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
