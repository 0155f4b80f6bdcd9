"""What the C library does with freed memory, how much a stage of a run needed, and what is said
when there is too little.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from distilrec.errors import TrainingError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h
_NEVER, _AT_ONCE = 2**31 - 1, 256 * 2**20
# What torch's allocators say on the CPU and on mps; that of CUDA has an error of its own
_TOO_LITTLE = ("not enough memory", "DefaultCPUAllocator", "out of memory")


@cache
def reuse_freed_memory() -> bool:
    """Make glibc keep freed memory instead of giving it back to the system, and return whether that
    could be done.

    Each training step frees and asks for several tensors of 80 MB (the logits). By default each of
    them is mapped again, and the kernel fills it with zeros, page by page: half of the time of a
    step on ML-1M (docs/experiments.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _AT_ONCE))
    return all(mallopt(name, value) == 1 for name, value in settings)


def reset_peak_memory() -> None:
    """Begin a new measurement of `peak_memory`, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak of the whole process is reported then
        return


def peak_memory() -> int:
    """Return the most bytes of memory that this process had since `reset_peak_memory`; 0 where the
    system does not say.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    peaks = [
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    ]
    return peaks[0] if peaks else 0


@contextmanager
def enough_memory(device: torch.device, batch_size: int) -> Iterator[None]:
    """Raise TrainingError where the memory of the device, or of the CPU, does not suffice for what
    is done within.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not _is_lack_of_memory(problem):
            raise
        message = str(problem).strip() or type(problem).__name__
        raise TrainingError(
            f"a training step with {batch_size} windows ran out of memory on {device}: "
            f"{message.splitlines()[0]}",
            fix="lower batch_size, or set positions to a limit (a lower one where it is not 0), in "
            "the section of the training, or lower max_history in that of the network",
            parameter="batch_size",
        ) from None


def _is_lack_of_memory(problem: MemoryError | RuntimeError) -> bool:
    # torch 2.4 has no torch.OutOfMemoryError; its name in torch.cuda is there in all versions
    if isinstance(problem, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(problem) for words in _TOO_LITTLE)
