"""Chance as a function of where it is used: of the seed, the epoch, and the picture or step.

A training that was cut off and goes on then sees what it would have seen, whatever process reads the pictures.
"""

import hashlib
import random

import numpy as np
import torch


def derived_seed(*parts: int | str) -> int:
    """A seed from 0 to below 2^63 that depends on all parts and their order, the same on every machine."""
    text = "/".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_chance(seed: int) -> None:
    """Begin the streams of torch, NumPy and Python anew, from 0 to below 2^63: augmentations take from any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - it is the legacy stream that augmentations of others take from
    torch.manual_seed(seed)
