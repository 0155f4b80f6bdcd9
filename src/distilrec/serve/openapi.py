"""OpenAPI 3.1 of the service, made from its endpoints and the types of their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from distilrec._version import __version__
from distilrec.serve.http import Endpoint
from distilrec.serve.schemas import ErrorResponse, TextError
from distilrec.serve.tensors import BINARY_TYPE, LENGTH_HEADER

_ERRORS = {
    "400": "The body is not JSON.",
    "401": "There is no API key, or it is not valid.",
    "403": "The API key lacks the scope; without API keys: a web page of another site asked.",
    "404": "There is no such user, item, model or path.",
    "409": "Another model is being loaded, or there is none to go back to.",
    "413": "The body is too large.",
    "415": "The body is of another type, or compressed.",
    "422": "What is asked for does not fit: the message names the field.",
    "429": "Too many requests for this API key; `retry-after` says when to come back.",
    "503": "The service cannot answer now; `retry-after` says when to come back.",
    "4XX": "The request cannot be answered as it is.",
    "5XX": "The service cannot answer.",
}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")


def openapi(endpoints: Sequence[Endpoint], *, with_keys: bool) -> dict[str, Any]:
    """Return the whole description."""
    types = [
        body
        for endpoint in endpoints
        for body in (endpoint.takes, endpoint.gives)
        if body is not None
    ]
    types += [ErrorResponse, TextError]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    named = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})[endpoint.method.lower()] = (
            _operation(endpoint, named, with_keys=with_keys)
        )
    security = {
        "key": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "distilrec", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            **({"securitySchemes": security} if with_keys else {}),
        },
    }


def _operation(endpoint: Endpoint, named: dict[Any, Any], *, with_keys: bool) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        }
        for name in _PARAMETER.findall(endpoint.path)
    ]
    parameters += [
        {
            "name": name,
            "in": "query",
            "description": text,
            "schema": {"type": "integer", "minimum": 1, "maximum": 500}
            if name == "limit"
            else {"type": "string"},
        }
        for name, text in endpoint.query.items()
    ]
    success: dict[str, Any] = {"description": "The answer."}
    if endpoint.gives is not None:
        success["content"] = {endpoint.gives_type: {"schema": named[endpoint.gives]}}
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {"200": success, **_failures(endpoint, named, with_keys=with_keys)},
    }
    if endpoint.takes is not None:
        content = {"application/json": {"schema": named[endpoint.takes]}}
        operation["requestBody"] = {"required": True, "content": content}
        if endpoint.read is not None:  # the same with binary tensors behind the JSON
            begin = {
                "description": "How many bytes the JSON takes, where binary tensors follow it."
            }
            content[BINARY_TYPE.decode()] = success["content"][BINARY_TYPE.decode()] = _BINARY
            integer = {"schema": {"type": "integer", "minimum": 0}}
            parameters.append(
                {
                    "name": LENGTH_HEADER.decode(),
                    "in": "header",
                    "required": False,
                    **begin,
                    **integer,
                }
            )
            success["headers"] = {LENGTH_HEADER.decode(): {**begin, **integer}}
    if with_keys and endpoint.scope is not None:
        operation["security"] = [{"key": []}, {"header": []}]
        operation["summary"] += f" Scope: {endpoint.scope}."
    return operation


def _failures(endpoint: Endpoint, named: dict[Any, Any], *, with_keys: bool) -> dict[str, Any]:
    statuses = {"4XX", "5XX"}
    if endpoint.scope is not None:
        statuses |= {"401", "403", "429"} if with_keys else {"403"}
    if endpoint.takes is not None:
        statuses |= {"400", "413", "415", "422"}
    if endpoint.query:
        statuses.add("422")
    if "{" in endpoint.path:
        statuses |= {"404", "422"}
    if endpoint.scope == "admin":
        statuses.add("409")
    if endpoint.name not in {"healthz", "kserve_live", "kserve_server", "metrics"}:
        statuses.add("503")
    body = named[TextError if endpoint.path.startswith("/v2") else ErrorResponse]
    content = {"application/json": {"schema": body}}
    return {
        status: {"description": text, "content": content}
        for status, text in _ERRORS.items()
        if status in statuses
    }
