"""The connections of the service: how many there are, how much a head may hold, and how long
sending may take.

uvicorn's protocol has none of these limits. What is refused here has no endpoint yet: it is counted
as `connection`.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from distilrec.errors import (
    DistilrecError,
    HeadersTooLargeError,
    MalformedRequestError,
    OverloadedError,
    RequestTimeoutError,
)
from distilrec.serve.schemas import ErrorDetail, ErrorResponse

MAX_HEADERS = 100
# Called once for every request: found here faster than through super().
_receive, _begin, _end = (
    HttpToolsProtocol.data_received,
    HttpToolsProtocol.on_headers_complete,
    HttpToolsProtocol.on_response_complete,
)
_LINGER_SECONDS = 1.0
_GATHERED = 65_536  # bytes of answers that wait for the end of a turn
STATE = "connections"  # under which the application's state holds the limits


@dataclass(frozen=True)
class Limits:
    """max_head: bytes of request line and headers; head_seconds: for sending them;
    transfer_seconds: for sending a body, and for reading an answer; max_connections: open ones;
    max_body: bytes of a body, which the application counts; refused: is told the code of what is
    refused.
    """

    max_head: int = 32_768
    head_seconds: float = 10.0
    transfer_seconds: float = 60.0
    max_connections: int = 1_000
    max_body: int = 1_048_576
    refused: Callable[[str], None] = lambda code: None


class Gathering(Transport):
    """A transport that sends in one piece what is written in one turn of the event loop.

    uvicorn writes the head of an answer and its body apart, and uvloop hands each to the kernel at
    once: two system calls, two times that the reader is woken, and on a network two packets.
    """

    __slots__ = ("_loop", "_pieces", "_size", "_transport")

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        pieces = self._pieces
        if not pieces:
            self._loop.call_soon(self.flush)
        pieces.append(bytes(data))  # the same object where it is bytes
        self._size += len(data)
        if self._size > _GATHERED:  # a stream: let the transport say when it is enough
            self.flush()

    def flush(self) -> None:
        """Hand over what waits; where the connection is lost, nothing is left to do."""
        pieces = self._pieces
        self._pieces, self._size = [], 0
        if pieces and not self._transport.is_closing():
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._pieces, self._size = [], 0
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request that arrives in one piece costs a few comparisons more than without
    limits.
    """

    # Slots: with more than 30 attributes in its dictionary an object shares no keys with others,
    # and all become slower.
    __slots__ = (
        "_body",
        "_chunk",
        "_earlier",
        "_limits",
        "_pieces",
        "_refused",
        "_stalled",
        "_timer",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits: Limits = app_state.get(STATE) or Limits()
        self._pieces = True  # whether what comes in may be a part of a request
        self._chunk = 0  # bytes that came last
        self._earlier = 0  # bytes of the same head that came before
        self._body = 0  # bytes that came since the head, with what surrounds the chunks of a body
        self._timer: TimerHandle | None = None
        self._stalled: TimerHandle | None = None
        self._refused = False

    transport: Gathering

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathering(transport, self.loop))
        if len(self.connections) > self._limits.max_connections and not self._close_an_idle_one():
            self._refuse(
                OverloadedError(
                    "there are too many connections", fix="keep fewer open, and come back later"
                )
            )
            return
        self._timer = self.loop.call_later(self._limits.head_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_stalled()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self.transport.flush()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._chunk = len(data)
        _receive(self, data)
        cycle = self.cycle
        if self._pieces or cycle is None or cycle.more_body or self.scope is not cycle.scope:
            self._after_a_piece()

    def _after_a_piece(self) -> None:
        """Count bytes and start or stop the clock, where a request does not come in
        one piece.
        """
        if self._refused or self.transport.is_closing():
            return
        limits = self._limits
        if self._in_head():
            self._earlier = self._earlier + self._chunk if self._pieces and not self._body else 1
            self._pieces, self._body = True, 0
            if self._earlier > limits.max_head:
                self._refuse(self._too_large())
            elif self._timer is None:
                self._timer = self.loop.call_later(limits.head_seconds, self._too_slow)
        elif self.cycle.more_body:
            self._pieces = True
            self._body += self._chunk
            # Beside the body itself: sizes of chunks, extensions, trailers.
            if self._body > limits.max_head + 6 * limits.max_body:
                self._refuse(self._too_large())
            elif self._timer is None:
                self._timer = self.loop.call_later(limits.transfer_seconds, self._too_slow)
        else:
            self._stop_timer()
            self._pieces, self._earlier, self._body = False, 0, 0

    def _in_head(self) -> bool:
        return self.cycle is None or self.scope is not self.cycle.scope

    def on_headers_complete(self) -> None:
        limit = self._limits.max_head
        # What has come may belong to a body too; only then are the headers counted one by one.
        if self._chunk + self._earlier > limit or len(self.headers) > MAX_HEADERS:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limit or len(self.headers) > MAX_HEADERS:
                self._refuse(self._too_large())
                raise RuntimeError("refused")  # ends the parsing
        if self._timer is not None:
            self._stop_timer()
        _begin(self)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the form of all other errors."""
        if not self._refused:
            self._refuse(
                MalformedRequestError(
                    "this is not a request of HTTP/1.1", fix="check what was sent"
                )
            )

    def on_response_complete(self) -> None:
        closes = not self.cycle.keep_alive
        _end(self)
        if not closes or not self.transport.is_closing():
            return
        if self._stalled is None and self.transport.get_write_buffer_size():
            self._stalled = self.loop.call_later(
                self._limits.transfer_seconds, self.transport.abort
            )

    def pause_writing(self) -> None:
        """Note that an answer waits for a caller who does not read it."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(
                self._limits.transfer_seconds, self.transport.abort
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stalled()

    def _stop_stalled(self) -> None:
        """Stop the clock of a caller who reads."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing has happened for a while; its answer may not have
        been read.
        """
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        nothing_asked = self.scope is None
        answered = not self._in_head() and self.cycle.response_complete
        if nothing_asked or answered:  # the latter before its body had come
            self._refused = True
            self.transport.close()
            return
        what = "headers" if self._in_head() else "body"
        self._refuse(
            RequestTimeoutError(
                f"the {what} of the request did not arrive in time", fix="send it faster"
            )
        )

    def _too_large(self) -> HeadersTooLargeError:
        return HeadersTooLargeError(
            f"the head of the request has more than {self._limits.max_head:,} bytes or "
            f"{MAX_HEADERS} headers",
            fix="send a shorter path and fewer headers",
        )

    def _close_an_idle_one(self) -> bool:
        """Close a connection that waits for its next request, where there is one."""
        for connection in self.connections:
            if (
                isinstance(connection, LimitedProtocol)
                and connection is not self
                and connection._is_idle()
            ):
                connection.transport.close()
                return True
        return False

    def _is_idle(self) -> bool:
        return (
            not self._in_head() and self.cycle.response_complete and not self.transport.is_closing()
        )

    def _refuse(self, problem: DistilrecError) -> None:
        """Answer with an error, unless an answer is under way, and closes the connection."""
        self._refused = True
        self._stop_timer()
        self._limits.refused(problem.code)
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and self.cycle.response_started:
            self.transport.abort()
            return
        if under_way:
            self.cycle.disconnected = True  # its application, which waits for the body, ends
            self.cycle.message_event.set()
        body = msgspec.json.encode(
            ErrorResponse(ErrorDetail(problem.code, problem.message, "", problem.fix))
        )
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\n"
            b"x-content-type-options: nosniff\r\n"
            b"cache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[problem.http_status] + head % len(body) + body)
        if isinstance(problem, OverloadedError):
            self.transport.close()
            return
        # Closed while more is coming in, the connection would be reset, and the answer lost.
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
