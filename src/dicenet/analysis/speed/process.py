"""The process that measures: its memory, its page faults, the core that it runs on."""

import ctypes
import gc
import os
import platform
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from dicenet.errors import ConfigError

# numbers of glibc's mallopt, from malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_CLEAR_REFS = Path("/proc/self/clear_refs")


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of giving it back; says whether it did (other libraries are left alone).

    Otherwise outputs of some MB are fresh pages on every call, whose page faults hit whichever network happens
    to be affected, by the order of allocations. It holds for the rest of the process.
    """
    library = _glibc()
    if library is None:
        return False
    values = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1))
    return all([library.mallopt(parameter, value) for parameter, value in values])


def page_faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def synchronise(device: str) -> Callable[[], None]:
    """What waits until a device has done all it was given."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


@contextmanager
def whole_float32() -> Iterator[None]:
    """Let CUDA compute in float32 proper inside a ``with`` block.

    By default cuDNN's convolutions round their inputs to TF32, some and not others: outputs of the same network then
    differ by a hundredth between memory formats, and none could be told from a wrong one.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# -- threads and cores


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Let torch compute on so many threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def chosen_core(core: int | None, threads: int, device: str) -> int | None:
    """The core to stay on: the one asked for, or the one that this runs on; None where it is left to the system.

    Raises:
        ConfigError: this process may not use the core, or it was asked for with several threads.
    """
    if core is not None and threads > 1:
        raise ConfigError(f"--core {core} needs --threads 1, got {threads}: leave out --core")
    if threads > 1 or device != "cpu" or not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    if core is None:
        library = _glibc()
        current = library.sched_getcpu() if library else min(allowed)
        return current if current in allowed else min(allowed)
    if core not in allowed:
        raise ConfigError(f"--core {core} is not one that may be used here: choose one of {sorted(allowed)}")
    return core


@contextmanager
def staying_on(core: int | None) -> Iterator[None]:
    """Keep this thread on one core inside a ``with`` block; None leaves it alone."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# -- memory


def _status(key: str) -> int:
    """Bytes that Linux gives for this process under a key of its status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _give_back_freed() -> None:
    """Let resident memory be what is in use: collect garbage, give freed pages back to the system."""
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


class MemoryMeter:
    """Peak memory of something that is prepared after this was made, and then run.

    On a CPU: resident memory of this process at its highest during one run, less what it was when this was made.
    So weights, compiled code and buffers that are kept count, what only the preparation needed does not. It is
    read from Linux, which lets a process set its highest mark back; elsewhere nothing is measured. On CUDA the same
    of the memory that torch's allocator has given out.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._known = self._cuda or os.access(_CLEAR_REFS, os.W_OK)
        self._before = self._in_use()

    def _in_use(self) -> int:
        if self._cuda:
            gc.collect()
            return torch.cuda.memory_allocated()
        _give_back_freed()
        return _status("VmRSS") if self._known else 0

    def peak(self, call: Callable[[], object]) -> int | None:
        """Bytes at the highest point of a call, above those before the preparation; None where it is not known."""
        if not self._known:
            return None
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._before
        _give_back_freed()
        _CLEAR_REFS.write_text("5")  # sets the highest mark (VmHWM) to the present value
        call()
        return _status("VmHWM") - self._before
