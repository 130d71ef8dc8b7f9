"""Denormal numbers: dead channels of official checkpoints hold them, and CPUs are many times slower on them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dicenet.ops import cpu


def flushes_denormals() -> bool:
    """Whether denormal numbers count as zero in this thread."""
    # torch has no question for this; Python computes with the same unit of the processor
    return sys.float_info.min / 2 == 0.0


def _set(on: bool) -> None:
    torch.set_flush_denormal(on)
    if cpu.available:
        torch.ops.dicenet.flush_denormals(on)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Count denormal numbers as zero inside a ``with`` block or a decorated function, on all of torch's threads.

    Threads that start inside inherit it, autograd's too (on the CPU it works in the calling thread). Afterwards
    everything is as the calling thread was before. Where the C++ operators are missing, threads that run already
    cannot be reached: then enter it before torch starts any, and know that those which start inside keep it.
    """
    before = flushes_denormals()
    _set(True)
    try:
        yield
    finally:
        if not before:
            _set(False)
