"""Sizes and times as people read them."""

from __future__ import annotations


def bytes_in_words(size: int) -> str:
    """Return a number of bytes, in kB or MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def time_in_words(microseconds: float) -> str:
    """Return a time, in us or ms."""
    long = microseconds >= 1e3
    return f"{microseconds / 1e3:.2f} ms" if long else f"{microseconds:.1f} us"
