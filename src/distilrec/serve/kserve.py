"""KServe's Open Inference Protocol, version 2, over the same service: users in, items and scores out.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

from typing import Any

import msgspec

from distilrec._version import __version__
from distilrec.errors import NotFoundError, RequestError
from distilrec.serve.schemas import Answer, BatchRequest, RecommendRequest
from distilrec.serve.service import Service

MODEL_NAME = "distilrec"


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named array, flat or nested, in row-major order."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True):
    """Inputs: `user_id`, BYTES [n]; optionally `k`, INT32 or INT64 [1], 10 without it."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class InferResponse(Answer, frozen=True):
    """Outputs: `item_id`, BYTES [n, k], and `score`, FP32 [n, k], best first; `count`, INT32 [n].

    A user with fewer items than k has empty ids and zeros behind them; `count` says how many there are.
    """

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str | None = None


class TensorMetadata(Answer, frozen=True):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Answer, frozen=True):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct, frozen=True):
    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    live: bool


class Ready(msgspec.Struct, frozen=True):
    ready: bool


def server_metadata() -> ServerMetadata:
    """Who answers."""
    return ServerMetadata("distilrec", __version__, [])


def check_model(service: Service, name: str, version: str | None) -> None:
    """Raises NotFoundError for a model or version that is not the active one."""
    active = service.models.active.version
    if name != MODEL_NAME or version not in {None, active}:
        raise NotFoundError("there is no such model or version", fix=f"ask for {MODEL_NAME}, version {active}")


def model_metadata(service: Service) -> ModelMetadata:
    """What goes in and out."""
    return ModelMetadata(
        MODEL_NAME,
        [service.models.active.version],
        "distilrec",
        [TensorMetadata("user_id", "BYTES", [-1]), TensorMetadata("k", "INT64", [1])],
        [
            TensorMetadata("item_id", "BYTES", [-1, -1]),
            TensorMetadata("score", "FP32", [-1, -1]),
            TensorMetadata("count", "INT32", [-1]),
        ],
    )


async def infer(service: Service, request: InferRequest) -> InferResponse:
    """Recommendations for several users. Raises RequestError for other tensors than those of the metadata."""
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if "user_id" not in tensors or (wrong := set(tensors) - {"user_id", "k"}):
        what = "there is no input user_id" if "user_id" not in tensors else f"there is no input {min(wrong)!r}"
        raise RequestError(what, fix="give user_id (BYTES) and optionally k (INT64)")
    users = _flat(tensors["user_id"], "BYTES", str)
    counts = _flat(tensors["k"], "INT", int) if "k" in tensors else [10]
    if len(counts) != 1 or counts[0] < 1 or not users or not all(0 < len(user) <= 256 for user in users):
        raise RequestError("k is not one positive number, or user_id is empty", fix='give k: [10] and user_id: ["7"]')
    k = counts[0]
    answers = (await service.recommend_batch(BatchRequest([RecommendRequest(user, k) for user in users]))).results
    ids: list[Any] = []
    scores: list[Any] = []
    for each in answers:
        missing = k - len(each.items)
        ids += [item.item_id for item in each.items] + [""] * missing
        scores += [item.score for item in each.items] + [0.0] * missing
    n = len(users)
    outputs = [
        Tensor("item_id", [n, k], "BYTES", ids),
        Tensor("score", [n, k], "FP32", scores),
        Tensor("count", [n], "INT32", [len(each.items) for each in answers]),
    ]
    wanted = {output.name for output in request.outputs}
    if unknown := wanted - {tensor.name for tensor in outputs}:
        raise RequestError(f"there is no output {min(unknown)!r}", fix="ask for item_id, score or count")
    chosen = [tensor for tensor in outputs if not wanted or tensor.name in wanted]
    return InferResponse(MODEL_NAME, answers[0].model_version, chosen, request.id)


def _flat(tensor: Tensor, datatype: str, kind: type) -> list[Any]:
    values: list[Any] = tensor.data
    while values and isinstance(values[0], list):
        if not all(isinstance(part, list) for part in values):
            break
        values = [value for part in values for value in part]
    size = 1
    for length in tensor.shape:
        size *= length
    fits = all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
    if not tensor.datatype.startswith(datatype) or not fits or size != len(values) or min(tensor.shape, default=0) < 0:
        raise RequestError(
            f"the input {tensor.name!r} is not what its shape and datatype say, or not {datatype}",
            fix="see /v2/models/distilrec for the inputs",
        )
    return values
