"""The ASGI application: the endpoints of all modules in one table, and Starlette around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args

import msgspec
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from distilrec.serve import (
    answers,
    events,
    experiments,
    health,
    items,
    kserve,
    latest,
    outcome_report,
    pages,
    popular,
    rules,
    similar,
    swap,
    users,
)
from distilrec.serve.connections import STATE, Limits
from distilrec.serve.http import Call, Endpoint, Gate, Method, Reply, Resource, no_such_path
from distilrec.serve.keys import Keys
from distilrec.serve.openapi import openapi
from distilrec.serve.origins import origins_for
from distilrec.serve.paths import Paths, path_of
from distilrec.serve.service import Service


def make_app(service: Service, keys: Keys) -> ASGIApp:
    """Return the application over an opened service; its lifespan starts and stops the service."""
    config = service.config
    origins = origins_for(config, keys_required=keys.required)
    gate = Gate(keys, origins, service.metrics, config.max_body, log_requests=config.log_requests)
    limits = _limits(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Limits]]:
        await service.start()
        watching = asyncio.create_task(keys.watch())
        yield {STATE: limits}
        watching.cancel()
        await service.stop()

    application = _application(gate, _table(service, keys), Starlette(lifespan=lifespan))
    return _open_to_pages(application, config.allowed_origins)


def _open_to_pages(application: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Return an application whose answers these web pages may read (CORS). They send keys in a
    header; cookies are not sent, and there are none.
    """
    if not origins:
        return application
    return CORSMiddleware(
        application,
        allow_origins=origins,
        allow_methods=get_args(Method),
        allow_headers=["authorization", "x-api-key", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def endpoints(service: Service) -> list[Endpoint]:
    """Return the endpoints of the service, gathered from the modules that answer them."""
    config = service.config
    return [
        *answers.endpoints(service.answers, config),
        *similar.endpoints(service.similar),
        *popular.endpoints(service.popular),
        *latest.endpoints(service.latest),
        *rules.endpoints(service.rules),
        *events.endpoints(service.events, config),
        *outcome_report.endpoints(service.outcome_report),
        *items.endpoints(service.items),
        *users.endpoints(service.users),
        *swap.endpoints(service.swap),
        *experiments.endpoints(service.experiments),
        *health.endpoints(service.health),
        *kserve.endpoints(service),
    ]


def _table(service: Service, keys: Keys) -> list[Endpoint]:
    """Return all endpoints: those of the service, their description, and the playground."""
    table = endpoints(service)
    described = msgspec.json.encode(openapi(table, with_keys=keys.required))

    async def description(call: Call) -> Reply:
        return Reply(described, b"application/json")

    return [
        *table,
        Endpoint(
            "GET", "/openapi.json", "openapi", "This description.", None, None, None, description
        ),
        *pages.endpoints(),
    ]


def _limits(service: Service) -> Limits:
    config = service.config

    def count_refused(code: str) -> None:
        service.metrics.errors.labels("connection", code).inc()

    return Limits(
        config.max_head,
        config.head_seconds,
        config.transfer_seconds,
        config.max_connections,
        config.max_body,
        count_refused,
    )


def _application(gate: Gate, table: list[Endpoint], life: ASGIApp) -> ASGIApp:
    """Return the application that finds the endpoint of a request; life: takes the lifespan."""
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in table:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    resources = {path: Resource(gate, methods) for path, methods in by_path.items()}
    paths, nothing = Paths(resources), no_such_path(gate)
    # An id in a path may hold slashes: /v1/users/a/merge is an action for POST, an id for GET.
    by_method = {
        method: Paths(
            {path: resource for path, resource in resources.items() if method in resource.handlers}
        )
        for method in get_args(Method)
    }
    handlers: dict[tuple[str, bytes | None], ASGIApp] = {
        (method, path.encode()): handler
        for path, resource in resources.items()
        if "{" not in path
        for method, handler in resource.handlers.items()
    }

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (life if scope["type"] == "lifespan" else nothing)(scope, receive, send)
            return
        # Looked up by the whole path first: that saves a tenth of a request.
        handler: ASGIApp | None = handlers.get((scope["method"], scope.get("raw_path")))
        if handler is None:
            handler = nothing
            path = path_of(scope)
            of_method = by_method.get(scope["method"], paths)
            if found := of_method.find(path) or paths.find(path):
                handler, scope["path_params"] = found
        await handler(scope, receive, send)

    return application
