"""From bytes to a request and from an answer to bytes: one small ASGI application per path, with
all that every path needs.

In this order: request id, where the request comes from, API key with scope and rate, type and size
of the body, decoding, the rest of the rate, the work, the answer, time and errors for the metrics.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any, Literal

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from distilrec.errors import (
    BodyTooLargeError,
    DistilrecError,
    MalformedRequestError,
    MediaTypeError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    StoreError,
)
from distilrec.serve.keys import Caller, Keys
from distilrec.serve.keys import Scope as KeyScope
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.serve.origins import Origins
from distilrec.serve.paths import texts_of
from distilrec.serve.schemas import ErrorDetail, ErrorResponse, TextError
from distilrec.serve.tensors import BINARY_TYPE, LENGTH_HEADER

Method = Literal["GET", "POST", "PUT", "DELETE"]
Headers = list[tuple[bytes, bytes]]

_SAFE_ID = re.compile(rb"[\w.:-]{1,64}")
_ALWAYS: Headers = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_JSON = b"application/json"
_READ = frozenset(
    (b"content-length", b"content-type", b"x-request-id", b"authorization", b"x-api-key", b"host",
     b"origin", b"sec-fetch-site", b"content-encoding", LENGTH_HEADER)
)  # fmt: skip
_encode = msgspec.json.Encoder().encode


class Call:
    """What a handler gets: the decoded body (None without one), the parameters of the path and the
    query string.
    """

    __slots__ = ("body", "path", "query")

    def __init__(self, body: Any, path: Mapping[str, str], query: bytes) -> None:
        self.body, self.path, self.query = body, path, query


@dataclass(frozen=True)
class Reply:
    """An answer that is not JSON."""

    content: bytes
    media_type: bytes
    headers: Headers = field(default_factory=list)


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    path: as Starlette writes it; name: in metrics and in OpenAPI; scope: that a key needs, None for
    everybody; takes: type of the body, None for none; gives: type of the answer; query: parameters
    of the query string and what they mean;
    gives_type: media type of the answer; read: decodes a body that may have binary tensors behind
    its JSON, from the body and the header that says where they begin; weight: how many requests a
    body counts as in the rate of its key, one where it is None.
    """

    method: Method
    path: str
    name: str
    summary: str
    scope: KeyScope | None
    takes: type | None
    gives: type | None
    handle: Callable[[Call], Awaitable[object]]
    query: Mapping[str, str] = field(default_factory=dict)
    gives_type: str = "application/json"
    read: Callable[[bytes, bytes | None], Any] | None = None
    weight: Callable[[Any], int] | None = None


class Gate:
    """What all endpoints share: keys, origins (None where requests from everywhere are answered),
    limits, metrics.
    """

    def __init__(
        self,
        keys: Keys,
        origins: Origins | None,
        metrics: Metrics,
        max_body: int,
        *,
        log_requests: bool,
    ) -> None:
        self.keys, self.origins, self.metrics = keys, origins, metrics
        self.max_body, self.log_requests = max_body, log_requests
        self._run = secrets.token_hex(4).encode()
        self._count = count(1)

    def request_id(self, value: bytes | None) -> bytes:
        """Return the request id that a caller gave, or a new one where it gave none or one that is
        not safe to repeat.
        """
        if value is not None and _SAFE_ID.fullmatch(value):
            return value
        return b"%b-%x" % (self._run, next(self._count))


class Resource:
    """The ASGI application of one path, all its methods."""

    def __init__(self, gate: Gate, endpoints: list[Endpoint]) -> None:
        self._gate = gate
        self.handlers = {endpoint.method: _Handler(gate, endpoint) for endpoint in endpoints}
        self._allow = ", ".join(self.handlers).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        handler = self.handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            problem = MethodNotAllowedError(
                f"this path does not take {method}",
                fix=f"use one of: {self._allow.decode()}",
                allow=self._allow,
            )
            await refuse(self._gate, "other", scope, send, problem)
            return
        await handler(scope, receive, send)


class _Handler:
    def __init__(self, gate: Gate, endpoint: Endpoint) -> None:
        self._gate, self._endpoint = gate, endpoint
        self._decode: Callable[[bytes], Any] | None = None
        if endpoint.takes is not None:
            self._decode = msgspec.json.Decoder(endpoint.takes).decode
        self._durations = gate.metrics.durations(endpoint.name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        gate, endpoint = self._gate, self._endpoint
        request_headers = {}
        for name, value in scope["headers"]:  # faster than a comprehension
            if name in _READ:
                request_headers[name] = value
        request_id = gate.request_id(request_headers.get(b"x-request-id"))
        status = 200
        try:
            if endpoint.scope is not None:
                if gate.origins is not None:
                    gate.origins.admit(request_headers)
                client = scope.get("client")
                caller = gate.keys.admit(
                    request_headers, endpoint.scope, client[0] if client else ""
                )
            body, media_type = None, request_headers.get(b"content-type")
            if (decode := self._decode) is not None:
                _check_type(
                    media_type,
                    request_headers.get(b"content-encoding"),
                    binary=endpoint.read is not None,
                )
                content = await _read_body(
                    receive, request_headers.get(b"content-length"), gate.max_body
                )
                body = self._body(decode, content, request_headers.get(LENGTH_HEADER), caller)
            elif media_type is not None and endpoint.method == "POST":
                # The form of a web page does not send JSON.
                _check_type(media_type, None, binary=False)
            parameters = scope.get("path_params")
            path = texts_of(parameters.items()) if parameters else {}
            answer = await endpoint.handle(Call(body, path, scope["query_string"]))
            headers = [(b"x-request-id", request_id)]
            if isinstance(answer, Reply):
                content, media_type = answer.content, answer.media_type
                headers += answer.headers
            else:
                content, media_type = _encode(answer), _JSON
            headers.append((b"content-type", media_type))
            if body is None:  # what comes from a POST or PUT is not cached or guessed at anyway
                headers += [pair for pair in _ALWAYS if pair[0] not in dict(headers)]
        except ClientDisconnect:
            return
        except Exception as problem:
            open_to_all = endpoint.scope is None or not gate.keys.required
            status, headers, content = refusal(
                gate, endpoint.name, request_id, problem, scope["path"], open_to_all=open_to_all
            )
        await _send(scope, send, status, headers, content)
        seconds = perf_counter() - started
        self._durations.note(seconds)
        if gate.log_requests:
            log(
                "request", endpoint=endpoint.name, status=status, seconds=round(seconds, 6),
                request_id=request_id.decode(),
            )  # fmt: skip

    def _body(
        self,
        decode: Callable[[bytes], Any],
        content: bytes,
        json_length: bytes | None,
        caller: Caller,
    ) -> Any:
        """Return the decoded body; charge its caller for what it counts as beyond one request."""
        endpoint, read = self._endpoint, self._endpoint.read
        body = decoded(decode, content) if read is None else read(content, json_length)
        if endpoint.weight is not None and (surcharge := endpoint.weight(body) - 1) > 0:
            caller.charge(surcharge)
        return body


async def _send(scope: Scope, send: Send, status: int, headers: Headers, content: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(content)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send(
        {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content}
    )


async def _read_body(receive: Receive, length: bytes | None, limit: int) -> bytes:
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has more than {limit:,} bytes", fix="send it in several requests"
    )


def _check_type(media_type: bytes | None, encoding: bytes | None, *, binary: bool) -> None:
    """Raise MediaTypeError for a body that another site could send, or that is not what is decoded
    here.

    binary: for KServe, whose clients say nothing about the type, or that it is bytes; nothing is
    changed there.
    """
    if encoding not in {None, b"identity"}:
        raise MediaTypeError("the body is compressed", fix="send it without `content-encoding`")
    if binary and (media_type is None or media_type.lower().startswith(BINARY_TYPE)):
        return
    if media_type is None or not media_type.lower().startswith(_JSON):
        raise MediaTypeError(
            "the body is not declared as JSON",
            fix="send the header `content-type: application/json`",
        )


def decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
    """Return what the body says. Raises MalformedRequestError for what is not JSON, RequestError
    for another type.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as problem:
        raise RequestError(
            str(problem), fix="see /openapi.json for what this endpoint takes"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise MalformedRequestError(
            f"the body is not valid JSON: {problem}", fix="correct the JSON"
        ) from None


def refusal(
    gate: Gate,
    endpoint: str,
    request_id: bytes,
    problem: Exception,
    path: str,
    *,
    open_to_all: bool = True,
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of an error; log what is not ours, and show it as an internal
    error only.

    Below /v2 the body is KServe's, one text. open_to_all: whether callers without a key are
    answered too; then a failure of the store does not say where it is.
    """
    if isinstance(problem, DistilrecError):
        status, code, message, fix = problem.http_status, problem.code, problem.message, problem.fix
        if status >= 500:
            why = message if isinstance(problem, StoreError) else ""
            log(
                "refused",
                logging.WARNING,
                endpoint=endpoint,
                code=code,
                request_id=request_id.decode(),
                reason=why,
            )
        if open_to_all and isinstance(problem, StoreError):
            message = "the store cannot be used"
            fix = "see the log of the service; send the request again later"
    else:
        status, code = 500, "error"
        message, fix = "something unforeseen went wrong", "report it with the request id"
        log(
            "unforeseen error",
            logging.ERROR,
            exception=problem,
            request_id=request_id.decode(),
            endpoint=endpoint,
        )
    gate.metrics.errors.labels(endpoint, code).inc()
    if path == "/v2" or path.startswith("/v2/"):
        body: TextError | ErrorResponse = TextError(
            f"{message} (how to fix: {fix})" if fix else message
        )
    else:
        body = ErrorResponse(ErrorDetail(code, message, request_id.decode(), fix))
    return status, _headers_of(problem, request_id), _encode(body)


def _headers_of(problem: Exception, request_id: bytes) -> Headers:
    headers = [*_ALWAYS, (b"x-request-id", request_id), (b"content-type", _JSON)]
    if not isinstance(problem, DistilrecError):
        return headers
    wait = problem.context.get("retry_after", 1 if problem.http_status == 503 else None)
    if isinstance(wait, int | float):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait))))
    if isinstance(problem, MethodNotAllowedError) and isinstance(
        allow := problem.context.get("allow"), bytes
    ):
        headers.append((b"allow", allow))
    if problem.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(problem, BodyTooLargeError):
        headers.append((b"connection", b"close"))
    return headers


async def refuse(gate: Gate, endpoint: str, scope: Scope, send: Send, problem: Exception) -> None:
    """Answer with an error."""
    header = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
    await _send(
        scope, send, *refusal(gate, endpoint, gate.request_id(header), problem, scope["path"])
    )


def no_such_path(gate: Gate) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return the ASGI application behind all unknown paths."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        problem = NotFoundError(
            "there is no such path", fix="see /openapi.json for those that exist"
        )
        await refuse(gate, "other", scope, send, problem)

    return application
