"""Texts as arrays: one UTF-8 blob and the offsets of each text in it, to be stored as
safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilrec.offsets import offsets_of


def pack_texts(name: str, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return two arrays, `name.text` (uint8) and `name.offsets` (int64, one more than texts)."""
    encoded = [text.encode() for text in texts]
    return {
        f"{name}.text": np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}.offsets": offsets_of([len(text) for text in encoded]),
    }


def unpack_texts(name: str, arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the texts that `pack_texts` stored."""
    blob, offsets = arrays[f"{name}.text"].tobytes(), arrays[f"{name}.offsets"]
    return [blob[start:stop].decode() for start, stop in pairwise(offsets.tolist())]
