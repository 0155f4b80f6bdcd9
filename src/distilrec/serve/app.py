"""The ASGI application: the table of all endpoints, and Starlette around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from distilrec.errors import RequestError
from distilrec.serve import kserve
from distilrec.serve.http import Call, Endpoint, Gate, Reply, Resource, no_such_path
from distilrec.serve.keys import Keys
from distilrec.serve.openapi import openapi
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
    gate = Gate(keys, service.metrics, service.config.max_body, log_requests=service.config.log_requests)
    table = [*_api(service), *_kserve(service)]
    described = msgspec.json.encode(openapi(table, with_keys=keys.required))

    async def description(call: Call) -> Reply:
        return Reply(described, b"application/json")

    table.append(Endpoint("GET", "/openapi.json", "openapi", "This description.", None, None, None, description))
    table += _pages()
    paths: dict[str, list[Endpoint]] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, []).append(endpoint)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    resources = {path: Resource(gate, endpoints) for path, endpoints in paths.items()}
    app = Starlette(routes=[Route(path, resource) for path, resource in resources.items()], lifespan=lifespan)
    app.router.default = no_such_path(gate)
    app.router.redirect_slashes = False

    handlers = {(m, path): handler for path, resource in resources.items() for m, handler in resource.handlers.items()}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        """A path without parameters is found by one look-up, which saves a tenth of a request."""
        handler = handlers.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        await (app if handler is None else handler)(scope, receive, send)

    return application


def _api(service: Service) -> list[Endpoint]:
    s = service

    async def metrics(call: Call) -> Reply:
        return Reply(s.exposition(), b"text/plain; version=0.0.4; charset=utf-8")

    return [
        # First what is asked most: routes are tried in this order.
        Endpoint(
            "POST", "/v1/recommend", "recommend", "The best items for a user.", "recommend",
            RecommendRequest, RecommendResponse, lambda call: s.recommend(call.body),
        ),
        Endpoint(
            "POST", "/v1/events", "events", "Stores events; the next answers follow them.", "events",
            EventsRequest, EventsResponse, lambda call: s.events(call.body),
        ),
        Endpoint(
            "POST", "/v1/rank", "rank", "Given items for a user, best first.", "recommend",
            RankRequest, RecommendResponse, lambda call: s.rank(call.body),
        ),
        Endpoint(
            "POST", "/v1/recommend/batch", "recommend_batch", "Several recommendations at once.", "recommend",
            BatchRequest, BatchResponse, lambda call: s.recommend_batch(call.body),
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
            None, StatusResponse, lambda call: s.delete_item(_id(call, "item_id")),
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
            None, ErasedResponse, lambda call: s.delete_user(_id(call, "user_id")),
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

    async def infer(call: Call) -> kserve.InferResponse | Reply:
        kserve.check_model(service, call.path["name"], call.path.get("version"))
        return await kserve.infer(service, call.body)

    table = [
        Endpoint("GET", "/v2", "kserve_server", "KServe: the server.", None, None, kserve.ServerMetadata, server),
        Endpoint("GET", "/v2/health/live", "kserve_live", "KServe: alive.", None, None, kserve.Live, live),
        Endpoint("GET", "/v2/health/ready", "kserve_ready", "KServe: ready.", None, None, kserve.Ready, ready),
    ]
    for base, name in (("/v2/models/{name}", "model"), ("/v2/models/{name}/versions/{version}", "version")):
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
                kserve.InferRequest, kserve.InferResponse, infer, read=kserve.read_inference,
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
    value = call.path[name]
    if not 1 <= len(value) <= 256:
        raise RequestError(f"{name} has {len(value)} characters", fix="give an id of 1 to 256 characters")
    return value


def _text(call: Call, name: str) -> str:
    return _query(call).get(name, "")


def _limit(call: Call) -> int:
    text = _query(call).get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError("limit is not a number", fix="give for example ?limit=20")
    return listed(int(text))


def _query(call: Call) -> dict[str, str]:
    try:
        found = parse_qs(call.query.decode(), keep_blank_values=True, max_num_fields=20)
    except (UnicodeDecodeError, ValueError) as problem:
        raise RequestError(f"the query string cannot be read: {problem}", fix="encode it as UTF-8") from None
    return {name: values[-1] for name, values in found.items()}
