"""KServe's binary tensor extension: values of tensors as bytes behind the JSON of a request or an
answer.

Numbers are little-endian; a text (datatype BYTES) is its length in four little-endian bytes and its
UTF-8.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distilrec.errors import RequestError

LENGTH_HEADER = b"inference-header-content-length"
BINARY_TYPE = b"application/octet-stream"
INTEGERS = {
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}
DATATYPES = {*INTEGERS, "BOOL", "BF16", "FP16", "FP32", "FP64", "BYTES"}

_PREFIX = 4
_WRITTEN = {"FP32": np.dtype("<f4"), "INT32": np.dtype("<i4")}


def to_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """Return the binary form of an output."""
    if datatype != "BYTES":
        return np.asarray(values, _WRITTEN[datatype]).tobytes()
    parts = []
    for text in values:
        content = text.encode()
        parts += [len(content).to_bytes(_PREFIX, "little"), content]
    return b"".join(parts)


def from_bytes(name: str, datatype: str, content: bytes) -> list[str] | list[int]:
    """Return the values of an input. Raises RequestError for bytes that are not whole values of
    the datatype.
    """
    if datatype == "BYTES":
        return _texts(name, content)
    dtype = INTEGERS[datatype]
    if len(content) % dtype.itemsize:
        raise _unfit(
            name,
            f"has {len(content):,} bytes, which are not whole numbers of {dtype.itemsize} bytes",
        )
    numbers: list[int] = np.frombuffer(content, dtype).tolist()
    return numbers


def _texts(name: str, content: bytes) -> list[str]:
    texts: list[str] = []
    end = 0
    while end < len(content):
        start = end + _PREFIX
        end = start + int.from_bytes(content[end:start], "little")
        if start > len(content) or end > len(content):
            raise _unfit(name, f"ends within its element {len(texts)}")
        try:
            texts.append(content[start:end].decode())
        except UnicodeDecodeError:
            raise _unfit(name, f"is not UTF-8 in its element {len(texts)}") from None
    return texts


def _unfit(name: str, problem: str) -> RequestError:
    return RequestError(
        f"the binary data of the input {name!r} {problem}",
        fix="send numbers little-endian, and each text as its length in four little-endian bytes "
        "and its UTF-8",
        parameter=name,
    )
