"""OpenAPI 3.1 of the service, made from its endpoints and the types of their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from distilrec._version import __version__
from distilrec.serve.http import Endpoint
from distilrec.serve.schemas import ErrorResponse

_LIMIT = {"type": "integer", "minimum": 1, "maximum": 500}
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")


def openapi(endpoints: Sequence[Endpoint], *, with_keys: bool) -> dict[str, Any]:
    """The whole description."""
    types = [each for endpoint in endpoints for each in (endpoint.takes, endpoint.gives) if each is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorResponse], ref_template="#/components/schemas/{name}"
    )
    named = dict(zip([*types, ErrorResponse], schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})[endpoint.method.lower()] = _operation(
            endpoint, named, with_keys=with_keys
        )
    security = {
        "key": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "distilrec", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components, **({"securitySchemes": security} if with_keys else {})},
    }


def _operation(endpoint: Endpoint, named: dict[Any, Any], *, with_keys: bool) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1, "maxLength": 256}}
        for name in _PARAMETER.findall(endpoint.path)
    ]
    in_query = [
        {
            "name": name,
            "in": "query",
            "description": text,
            "schema": {"type": "integer" if name == "limit" else "string"},
        }
        for name, text in endpoint.query.items()
    ]
    failure = {"content": {"application/json": {"schema": named[ErrorResponse]}}}
    success: dict[str, Any] = {"description": "The answer."}
    if endpoint.gives is not None:
        success["content"] = {"application/json": {"schema": named[endpoint.gives]}}
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": in_path + in_query,
        "responses": {
            "200": success,
            "4XX": {"description": "The request cannot be answered as it is.", **failure},
            "5XX": {"description": "The service cannot answer now.", **failure},
        },
    }
    if endpoint.takes is not None:
        schema = named[endpoint.takes]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if with_keys and endpoint.scope is not None:
        operation["security"] = [{"key": []}, {"header": []}]
        operation["summary"] += f" Scope: {endpoint.scope}."
    return operation
