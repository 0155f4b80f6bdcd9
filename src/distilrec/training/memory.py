"""What the C library does with freed memory, and how much a stage of a run needed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h
_NEVER, _AT_ONCE = 2**31 - 1, 256 * 2**20


@cache
def reuse_freed_memory() -> bool:
    """Make glibc keep freed memory instead of giving it back to the system, and return whether that
    could be done.

    Each training step frees and asks for several tensors of 80 MB (the logits). By default each of
    them is mapped again, and the kernel fills it with zeros, page by page: half of the time of a
    step on ML-1M (docs/quality.md).
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
