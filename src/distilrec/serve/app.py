"""The ASGI application: the table of all endpoints, and Starlette around it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from distilrec.errors import RequestError
from distilrec.ids import as_id
from distilrec.serve import kserve
from distilrec.serve.connections import STATE, Limits
from distilrec.serve.http import Call, Endpoint, Gate, Reply, Resource, no_such_path
from distilrec.serve.keys import Keys
from distilrec.serve.openapi import openapi
from distilrec.serve.origins import origins_for
from distilrec.serve.paths import Paths, path_of
from distilrec.serve.schemas import (
    BatchRequest,
    BatchResponse,
    ErasedResponse,
    EventsRequest,
    EventsResponse,
    ItemRequest,
    ItemResponse,
    ItemsResponse,
    LoadRequest,
    LoadResponse,
    ModelResponse,
    RankRequest,
    RecommendRequest,
    RecommendResponse,
    StatusResponse,
    UserRequest,
    UserResponse,
    UsersResponse,
)
from distilrec.serve.service import Service, listed

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGES = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/playground.js": ("playground.js", b"text/javascript; charset=utf-8"),
    "/playground.svg": ("playground.svg", b"image/svg+xml"),
    "/playground.css": ("playground.css", b"text/css; charset=utf-8"),
}


def make_app(service: Service, keys: Keys) -> ASGIApp:
    """The application over an opened service; its lifespan starts and stops the service."""
    config = service.config
    origins = origins_for(config, keys_required=keys.required)
    gate = Gate(keys, origins, service.metrics, config.max_body, log_requests=config.log_requests)
    table = [*_api(service), *_kserve(service)]
    described = msgspec.json.encode(openapi(table, with_keys=keys.required))

    async def description(call: Call) -> Reply:
        return Reply(described, b"application/json")

    table.append(
        Endpoint(
            "GET", "/openapi.json", "openapi", "This description.", None, None, None, description
        )
    )
    table += _pages()
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in table:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    resources = {path: Resource(gate, endpoints) for path, endpoints in by_path.items()}
    paths, nothing = Paths(resources), no_such_path(gate)
    handlers: dict[tuple[str, bytes | None], ASGIApp] = {
        (m, path.encode()): handler
        for path, resource in resources.items()
        if "{" not in path
        for m, handler in resource.handlers.items()
    }

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Limits]]:
        await service.start()
        watching = asyncio.create_task(keys.watch())
        yield {STATE: limits}
        watching.cancel()
        await service.stop()

    def count_refused(code: str) -> None:
        service.metrics.errors.labels("connection", code).inc()

    limits = Limits(
        config.max_head,
        config.head_seconds,
        config.transfer_seconds,
        config.max_connections,
        config.max_body,
        count_refused,
    )
    life = Starlette(lifespan=lifespan)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (life if scope["type"] == "lifespan" else nothing)(scope, receive, send)
            return
        handler: ASGIApp | None = handlers.get(
            (scope["method"], scope.get("raw_path"))
        )  # saves a tenth of a request
        if handler is None:
            handler = nothing
            if found := paths.find(path_of(scope)):
                handler, scope["path_params"] = found
        await handler(scope, receive, send)

    return application


def _api(service: Service) -> list[Endpoint]:
    s = service

    async def metrics(call: Call) -> Reply:
        return Reply(s.exposition(), b"text/plain; version=0.0.4; charset=utf-8")

    def counted(length: int) -> int:
        return min(length, s.config.max_batch)  # more are refused, and cost no more than that

    return [
        Endpoint(
            "POST", "/v1/recommend", "recommend", "The best items for a user.", "recommend",
            RecommendRequest, RecommendResponse, lambda call: s.recommend(call.body),
        ),
        Endpoint(
            "POST", "/v1/events", "events", "Stores events; the next answers follow them.", "events",
            EventsRequest, EventsResponse, lambda call: s.events(call.body), weight=lambda body: counted(len(body.events)),
        ),
        Endpoint(
            "POST", "/v1/rank", "rank", "Given items for a user, best first.", "recommend",
            RankRequest, RecommendResponse, lambda call: s.rank(call.body),
        ),
        Endpoint(
            "POST", "/v1/recommend/batch", "recommend_batch", "Several recommendations at once.", "recommend",
            BatchRequest, BatchResponse, lambda call: s.recommend_batch(call.body),
            weight=lambda body: counted(len(body.requests)),
        ),
        Endpoint(
            "GET", "/v1/items", "items", "Items by title or id.", "recommend", None, ItemsResponse,
            lambda call: s.items(_text(call, "search"), _limit(call)),
            {"search": "text in the title or id; everything without it", "limit": "how many, 20 without it"},
        ),
        Endpoint(
            "GET", "/v1/items/{item_id:path}", "get_item", "What is known about an item.", "recommend",
            None, ItemResponse, lambda call: s.get_item(_id(call, "item_id")),
        ),
        Endpoint(
            "PUT", "/v1/items/{item_id:path}", "put_item", "Adds an item, or changes title, attributes, availability.",
            "items", ItemRequest, ItemResponse, lambda call: s.put_item(_id(call, "item_id"), call.body),
        ),
        Endpoint(
            "DELETE", "/v1/items/{item_id:path}", "delete_item", "Removes an item from all answers.", "items",
            None, StatusResponse, lambda call: s.delete_item(call.path["item_id"]),
        ),
        Endpoint(
            "GET", "/v1/users", "users", "Some users with a history.", "users", None, UsersResponse,
            lambda call: s.users(_limit(call)), {"limit": "how many, 20 without it"},
        ),
        Endpoint(
            "GET", "/v1/users/{user_id:path}", "get_user", "What is known about a user.", "users",
            None, UserResponse, lambda call: s.get_user(_id(call, "user_id")),
        ),
        Endpoint(
            "PUT", "/v1/users/{user_id:path}", "put_user", "Sets the features of a user.", "users",
            UserRequest, StatusResponse, lambda call: s.put_user(_id(call, "user_id"), call.body),
        ),
        Endpoint(
            "DELETE", "/v1/users/{user_id:path}", "delete_user", "Erases everything about a user.", "users",
            None, ErasedResponse, lambda call: s.delete_user(call.path["user_id"]),
        ),
        Endpoint(
            "GET", "/v1/model", "model", "The model that answers.", "recommend", None, ModelResponse,
            lambda call: s.model(),
        ),
        Endpoint(
            "POST", "/v1/model/load", "load_model", "Verifies, shadows and switches to another bundle.", "admin",
            LoadRequest, LoadResponse, lambda call: s.load_model(call.body),
        ),
        Endpoint(
            "POST", "/v1/model/rollback", "rollback", "Back to the model before.", "admin", None, LoadResponse,
            lambda call: s.rollback(),
        ),
        Endpoint(
            "GET", "/healthz", "healthz", "Whether the process lives.", None, None, StatusResponse,
            lambda call: s.alive(),
        ),
        Endpoint(
            "GET", "/readyz", "readyz", "Whether requests should be sent here.", None, None, StatusResponse,
            lambda call: s.readiness(),
        ),
        Endpoint("GET", "/metrics", "metrics", "For Prometheus.", "metrics", None, str, metrics, gives_type="text/plain"),
    ]  # fmt: skip


def _kserve(service: Service) -> list[Endpoint]:
    async def server(call: Call) -> kserve.ServerMetadata:
        return kserve.server_metadata()

    async def live(call: Call) -> kserve.Live:
        return kserve.Live(live=True)

    async def ready(call: Call) -> kserve.Ready:
        await service.readiness()
        if "name" in call.path:
            kserve.check_model(service, call.path["name"], call.path.get("version"))
        return kserve.Ready(ready=True)

    async def metadata(call: Call) -> kserve.ModelMetadata:
        kserve.check_model(service, call.path["name"], call.path.get("version"))
        return kserve.model_metadata(service)

    def users_of(body: kserve.Inference) -> int:
        """Returns how many users an inference asks for, by the shape that it declares."""
        shapes = [tensor.shape for tensor in body.request.inputs if tensor.name == "user_id"]
        return min(max(map(math.prod, shapes), default=1), service.config.max_batch)

    async def infer(call: Call) -> kserve.InferResponse | Reply:
        kserve.check_model(service, call.path["name"], call.path.get("version"))
        return await kserve.infer(service, call.body)

    table = [
        Endpoint(
            "GET",
            "/v2",
            "kserve_server",
            "KServe: the server.",
            None,
            None,
            kserve.ServerMetadata,
            server,
        ),
        Endpoint(
            "GET", "/v2/health/live", "kserve_live", "KServe: alive.", None, None, kserve.Live, live
        ),
        Endpoint(
            "GET",
            "/v2/health/ready",
            "kserve_ready",
            "KServe: ready.",
            None,
            None,
            kserve.Ready,
            ready,
        ),
    ]
    for base, name in (
        ("/v2/models/{name}", "model"),
        ("/v2/models/{name}/versions/{version}", "version"),
    ):
        table += [
            Endpoint(
                "GET", base, f"kserve_{name}", "KServe: inputs and outputs.", "recommend", None, kserve.ModelMetadata,
                metadata,
            ),
            Endpoint(
                "GET", f"{base}/ready", f"kserve_{name}_ready", "KServe: ready.", None, None, kserve.Ready, ready,
            ),
            Endpoint(
                "POST", f"{base}/infer", f"kserve_{name}_infer", "KServe: recommendations.", "recommend",
                kserve.InferRequest, kserve.InferResponse, infer, read=kserve.read_inference, weight=users_of,
            ),
        ]  # fmt: skip
    return table


def _pages() -> list[Endpoint]:
    folder = files("distilrec.serve") / "playground"

    def page(file: str, media_type: bytes) -> Reply:
        headers = [(b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer")]
        return Reply((folder / file).read_bytes(), media_type, headers)

    def endpoint(path: str, reply: Reply) -> Endpoint:
        async def handle(call: Call) -> Reply:
            return reply

        return Endpoint("GET", path, "playground", "The playground.", None, None, None, handle)

    return [endpoint(path, page(*what)) for path, what in _PAGES.items()]


def _id(call: Call, name: str) -> str:
    return as_id(call.path[name], name)


def _text(call: Call, name: str) -> str:
    return _query(call).get(name, "")


def _limit(call: Call) -> int:
    text = _query(call).get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError("limit is not a number", fix="give for example ?limit=20")
    return listed(int(text))


def _query(call: Call) -> dict[str, str]:
    try:
        found = parse_qs(
            call.query.decode(), keep_blank_values=True, errors="strict", max_num_fields=20
        )
    except (UnicodeDecodeError, ValueError) as problem:
        raise RequestError(
            f"the query string cannot be read: {problem}", fix="encode it as UTF-8"
        ) from None
    return {name: values[-1] for name, values in found.items()}
