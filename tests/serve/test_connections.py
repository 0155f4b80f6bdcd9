"""What an answer is sent in."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from distilrec.serve.connections import Gathering


class _Recorded:
    """A transport that notes what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.calls.append(("write", data))

    def write_eof(self) -> None:
        self.calls.append(("eof", b""))

    def close(self) -> None:
        self.calls.append(("close", b""))
        self.closing = True

    def abort(self) -> None:
        self.calls.append(("abort", b""))
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 3


def sent(*steps: tuple[str, Any]) -> list[tuple[str, bytes]]:
    """Return what reaches a transport when these methods are called in one turn of a loop."""

    async def turn() -> list[tuple[str, bytes]]:
        recorded = _Recorded()
        gathering = Gathering(cast(asyncio.Transport, recorded), asyncio.get_running_loop())
        for method, data in steps:
            getattr(gathering, method)(*([] if data is None else [data]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return recorded.calls

    return asyncio.run(turn())


def test_what_is_written_in_a_turn_is_sent_in_one_piece() -> None:
    assert sent(("write", b"head "), ("write", b"body")) == [("write", b"head body")]


@pytest.mark.parametrize(("method", "name"), [("close", "close"), ("write_eof", "eof")])
def test_nothing_is_lost_at_the_end(method: str, name: str) -> None:
    assert sent(("write", b"answer"), (method, None)) == [("write", b"answer"), (name, b"")]


def test_an_aborted_connection_sends_nothing_more() -> None:
    assert sent(("write", b"answer"), ("abort", None)) == [("abort", b"")]
    assert sent(("abort", None), ("write", b"answer")) == [("abort", b"")]


def test_a_stream_does_not_wait_in_memory() -> None:
    piece = bytes(40_000)
    calls = sent(*[("write", piece)] * 5)
    assert [len(data) for _, data in calls] == [80_000, 80_000, 40_000]


def test_what_waits_counts_as_not_sent() -> None:
    async def size() -> int:
        gathering = Gathering(cast(asyncio.Transport, _Recorded()), asyncio.get_running_loop())
        gathering.write(b"12345")
        return gathering.get_write_buffer_size()

    assert asyncio.run(size()) == 8
