"""KServe's Open Inference Protocol, version 2, over the same service: users in, items and scores
out.

Tensors are JSON or, with the extension `binary_tensor_data`, bytes behind the JSON
(`distilrec.serve.tensors`).

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from distilrec._version import __version__
from distilrec.engine.rules import Placement
from distilrec.errors import MalformedRequestError, NotFoundError, RequestError
from distilrec.ids import as_id
from distilrec.serve.http import Call, Endpoint, Reply, decoded
from distilrec.serve.schemas import (
    Answer,
    BatchRequest,
    Context,
    RecommendRequest,
    RecommendResponse,
)
from distilrec.serve.service import Service
from distilrec.serve.tensors import (
    BINARY_TYPE,
    DATATYPES,
    INTEGERS,
    LENGTH_HEADER,
    from_bytes,
    to_bytes,
)

MODEL_NAME = "distilrec"

_INPUTS = {
    "user_id": "BYTES",
    "k": "INT64",
    "now": "INT64",
    "context": "BYTES",
    "placement": "BYTES",
}
_TOLD: dict[str, tuple[Callable[[str], Any], str]] = {
    "context": (
        msgspec.json.Decoder(Context).decode,
        'give a JSON object, such as {"device": "phone"}',
    ),
    "placement": (
        partial(msgspec.convert, type=Placement),
        "give a name of 1 to 128 characters",
    ),
}
_ALWAYS = ("item_id", "score", "count")  # outputs where none is named
_OUTPUTS = {
    "item_id": "BYTES",
    "score": "FP32",
    "count": "INT32",
    "probability": "FP32",
    "recommendation_id": "BYTES",
}
_SEE = "see /v2/models/distilrec for the inputs"


class InputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named input. data: its values; left out where they are behind the JSON, `binary_data_size`
    bytes of them.
    """

    name: str
    shape: list[int]
    datatype: str
    data: list[str | int] | None = None
    parameters: dict[str, Any] = {}


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named output in row-major order. data: its values; left out where they are
    behind the JSON.
    """

    name: str
    shape: list[int]
    datatype: str
    data: list[str | int | float] | None = None
    parameters: dict[str, int] = {}


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that is wanted; the parameter `binary_data` says in which form."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True):
    """Inputs: `user_id`, BYTES [n]; optionally `k`, any integers [1], 10 without it, `now`, any
    integers [1], when it is asked, in seconds since 1970, the time of the clock without it,
    `context`, BYTES [1], a JSON object with values of the context features that the model knows,
    and `placement`, BYTES [1], where the lists are shown, whose rules they follow.

    The parameter `binary_data_output` asks for all outputs in binary form.
    """

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class InferResponse(Answer, frozen=True):
    """Outputs: `item_id`, BYTES [n, k], and `score`, FP32 [n, k], best first; `count`, INT32 [n].
    Only where they are named: `probability`, FP32 [n, k], of being the user's next item, and
    `recommendation_id`, BYTES [n], for events that say what became of an answer, empty where the
    service counts no outcomes.

    A user with fewer items than k has empty ids and zeros behind them; `count` is the number of
    items.
    """

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
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


@dataclass(frozen=True)
class Inference:
    """A decoded request, and the values of its binary inputs by name."""

    request: InferRequest
    binary: dict[str, bytes]


def server_metadata() -> ServerMetadata:
    """Return the name and version of the server."""
    return ServerMetadata("distilrec", __version__, ["binary_tensor_data"])


def check_model(service: Service, name: str, version: str | None) -> None:
    """Raise NotFoundError for a model or version that is not the active one."""
    active = service.models.active.version
    if name != MODEL_NAME or version not in {None, active}:
        raise NotFoundError(
            "there is no such model or version",
            fix=f"ask for {MODEL_NAME}; its metadata name the version",
        )


def model_metadata(service: Service) -> ModelMetadata:
    """Return the inputs and outputs of the model."""
    return ModelMetadata(
        MODEL_NAME,
        [service.models.active.version],
        "distilrec",
        [
            TensorMetadata(name, datatype, [-1] if name == "user_id" else [1])
            for name, datatype in _INPUTS.items()
        ],
        [
            TensorMetadata("item_id", "BYTES", [-1, -1]),
            TensorMetadata("score", "FP32", [-1, -1]),
            TensorMetadata("count", "INT32", [-1]),
            TensorMetadata("probability", "FP32", [-1, -1]),
            TensorMetadata("recommendation_id", "BYTES", [-1]),
        ],
    )


_decode = msgspec.json.Decoder(InferRequest).decode


def read_inference(body: bytes, json_length: bytes | None) -> Inference:
    """Return the request in a body. json_length: the header that says where binary data begin;
    None without them.

    Raises MalformedRequestError and RequestError; the bytes behind the JSON are exactly those that
    the inputs announce.
    """
    if json_length is None:
        end = len(body)
    elif json_length.isdigit() and len(json_length) <= 20 and int(json_length) <= len(body):
        end = int(json_length)
    else:
        raise MalformedRequestError(
            f"the header {LENGTH_HEADER.decode()} is not a number of bytes that this body has",
            fix="say how many bytes the JSON at the beginning of the body takes",
        )
    request: InferRequest = decoded(_decode, body[:end])
    binary = {}
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - end:
            raise RequestError(
                f"binary_data_size of the input {tensor.name!r} is not a number of bytes that "
                "follow the JSON",
                fix="give the bytes of each binary input in their order, and the header "
                f"{LENGTH_HEADER.decode()}",
            )
        if tensor.data is not None:
            raise RequestError(
                f"the input {tensor.name!r} has data and binary_data_size", fix="give one of them"
            )
        binary[tensor.name] = body[end : end + size]
        end += size
    if end != len(body):
        raise RequestError(
            f"{len(body) - end:,} bytes at the end of the body belong to no input",
            fix="give binary_data_size for each input whose values follow the JSON",
        )
    return Inference(request, binary)


async def infer(service: Service, inference: Inference) -> InferResponse | Reply:
    """Recommend for several users. Raises RequestError for other tensors than those of the
    metadata.
    """
    request = inference.request
    _check_names("input", [tensor.name for tensor in request.inputs], _INPUTS)
    _check_names("output", [output.name for output in request.outputs], _OUTPUTS)
    chosen = _chosen_outputs(request)
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if "user_id" not in tensors:
        raise RequestError(
            "there is no input user_id",
            fix=f"give user_id (BYTES) and optionally {', '.join([*_INPUTS][1:])}",
        )
    users = [as_id(value, "user_id") for value in _values(tensors["user_id"], inference.binary)]
    k = 10
    if "k" in tensors:
        (k,) = _values(tensors["k"], inference.binary)
        if k < 1:
            raise RequestError(f"k is {k}", fix="give a number from 1")
    now = _values(tensors["now"], inference.binary)[0] if "now" in tensors else None
    context, placement = (_told(name, inference, tensors) for name in _TOLD)
    with_probabilities = "probability" in chosen
    answers = (
        await service.answers.recommend_batch(
            BatchRequest(
                [
                    RecommendRequest(
                        user,
                        k,
                        now=now,
                        placement=placement,
                        context=context,
                        probabilities=with_probabilities,
                        # No event can name an answer whose id is not asked for.
                        record="recommendation_id" in chosen,
                    )
                    for user in users
                ]
            ),
            experiments=False,  # a response names one model version
            note_all=True,
        )
    ).results
    return _response(request, chosen, answers, k)


def _told(name: str, inference: Inference, tensors: Mapping[str, InputTensor]) -> Any:
    """Return what an input says of all users alike, None without it. Raises RequestError."""
    if name not in tensors:
        return None
    (text,) = _values(tensors[name], inference.binary)
    read, fix = _TOLD[name]
    try:
        return read(text)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise RequestError(
            f"the input {name!r} cannot be read: {problem}", fix=fix, parameter=name
        ) from None


def _response(
    request: InferRequest, chosen: dict[str, bool], answers: list[RecommendResponse], k: int
) -> InferResponse | Reply:
    """Return the chosen outputs as tensors of equal rows, in JSON or binary."""
    ids: list[Any] = []
    scores: list[Any] = []
    probabilities: list[Any] = []
    for answer in answers:
        missing = k - len(answer.items)
        ids += [item.item_id for item in answer.items] + [""] * missing
        scores += [item.score for item in answer.items] + [0.0] * missing
        probabilities += [item.probability for item in answer.items] + [0.0] * missing
    n = len(answers)
    tensors: dict[str, tuple[list[int], list[Any]]] = {
        "item_id": ([n, k], ids),
        "score": ([n, k], scores),
        "probability": ([n, k], probabilities),
        "count": ([n], [len(answer.items) for answer in answers]),
        "recommendation_id": ([n], [answer.recommendation_id or "" for answer in answers]),
    }
    outputs, binary = [], []
    for name, is_binary in chosen.items():
        shape, values = tensors[name]
        if is_binary:
            binary.append(to_bytes(_OUTPUTS[name], values))
            outputs.append(
                OutputTensor(
                    name, shape, _OUTPUTS[name], None, {"binary_data_size": len(binary[-1])}
                )
            )
        else:
            outputs.append(OutputTensor(name, shape, _OUTPUTS[name], values))
    response = InferResponse(MODEL_NAME, answers[0].model_version, outputs, request.id)
    if not binary:
        return response
    text = msgspec.json.encode(response)
    return Reply(b"".join([text, *binary]), BINARY_TYPE, [(LENGTH_HEADER, b"%d" % len(text))])


def _check_names(what: str, given: Sequence[str], names: dict[str, str]) -> None:
    for index, name in enumerate(given):
        if name not in names:
            raise RequestError(
                f"there is no {what} {name!r}", fix=f"use some of: {', '.join(names)}"
            )
        if name in given[:index]:
            raise RequestError(f"the {what} {name!r} is named twice", fix="name it once")


def _chosen_outputs(request: InferRequest) -> dict[str, bool]:
    """Return whether each of the wanted outputs is to be binary."""
    everywhere = _flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return dict.fromkeys(_ALWAYS, everywhere)
    for output in request.outputs:
        for refused in ("classification", "shared_memory_region"):
            if refused in output.parameters:
                raise RequestError(
                    f"the output {output.name!r} asks for {refused}", fix="ask without it"
                )
    return {
        output.name: _flag(output.parameters, "binary_data", default=everywhere)
        for output in request.outputs
    }


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"the parameter {name} is not true or false", fix="give true or false")
    return value


def _values(tensor: InputTensor, binary: Mapping[str, bytes]) -> list[Any]:
    """Return the values of an input that is what its datatype and its shape say. Raises
    RequestError.
    """
    name, datatype = tensor.name, tensor.datatype
    if datatype not in DATATYPES:
        raise RequestError(
            f"there is no datatype {datatype!r}", fix=f"use some of: {', '.join(sorted(DATATYPES))}"
        )
    if (datatype != "BYTES") if _INPUTS[name] == "BYTES" else (datatype not in INTEGERS):
        raise RequestError(f"the input {name!r} is {datatype}, not {_INPUTS[name]}", fix=_SEE)
    if len(tensor.shape) != 1 or tensor.shape[0] < 1 or (name != "user_id" and tensor.shape != [1]):
        wanted = "[1]" if name != "user_id" else "[n], with n from 1"
        raise RequestError(
            f"the shape of the input {name!r} is {tensor.shape}, not {wanted}", fix=_SEE
        )
    if name in binary:
        values: Sequence[Any] = from_bytes(name, datatype, binary[name])
    elif tensor.data is None:
        raise RequestError(
            f"the input {name!r} has no data", fix="give data, or binary_data_size and bytes"
        )
    else:
        values = tensor.data
    if len(values) != tensor.shape[0]:
        raise RequestError(
            f"the input {name!r} has {len(values):,} values, its shape says {tensor.shape[0]:,}",
            fix="give as many",
        )
    if datatype == "BYTES":
        fits = all(isinstance(value, str) for value in values)
    else:
        limits = np.iinfo(INTEGERS[datatype])
        fits = all(isinstance(value, int) and limits.min <= value <= limits.max for value in values)
    if not fits:
        raise RequestError(f"the input {name!r} holds values that are not {datatype}", fix=_SEE)
    return list(values)


def endpoints(service: Service) -> list[Endpoint]:
    """Return the endpoints of the server, and those of the model without and with a version."""
    return [
        *_server_endpoints(service),
        *_model_endpoints(service, "/v2/models/{name}", "model"),
        *_model_endpoints(service, "/v2/models/{name}/versions/{version}", "version"),
    ]


def _server_endpoints(service: Service) -> list[Endpoint]:
    async def server(call: Call) -> ServerMetadata:
        return server_metadata()

    async def live(call: Call) -> Live:
        return Live(live=True)

    async def ready(call: Call) -> Ready:
        await service.health.readiness()
        return Ready(ready=True)

    return [
        Endpoint(
            "GET", "/v2", "kserve_server", "KServe: the server.", None, None, ServerMetadata,
            server,
        ),
        Endpoint(
            "GET", "/v2/health/live", "kserve_live", "KServe: alive.", None, None, Live, live,
        ),
        Endpoint(
            "GET", "/v2/health/ready", "kserve_ready", "KServe: ready.", None, None, Ready, ready,
        ),
    ]  # fmt: skip


def _model_endpoints(service: Service, base: str, name: str) -> list[Endpoint]:
    def check(call: Call) -> None:
        check_model(service, call.path["name"], call.path.get("version"))

    async def metadata(call: Call) -> ModelMetadata:
        check(call)
        return model_metadata(service)

    async def ready(call: Call) -> Ready:
        await service.health.readiness()
        check(call)
        return Ready(ready=True)

    def users_of(body: Inference) -> int:
        """Return the number of users that an inference asks for, by the shape that it declares."""
        shapes = [tensor.shape for tensor in body.request.inputs if tensor.name == "user_id"]
        return min(max(map(math.prod, shapes), default=1), service.config.max_batch)

    async def answer(call: Call) -> InferResponse | Reply:
        check(call)
        return await infer(service, call.body)

    return [
        Endpoint(
            "GET", base, f"kserve_{name}", "KServe: inputs and outputs.", "recommend", None,
            ModelMetadata, metadata,
        ),
        Endpoint(
            "GET", f"{base}/ready", f"kserve_{name}_ready", "KServe: ready.", None, None, Ready,
            ready,
        ),
        Endpoint(
            "POST", f"{base}/infer", f"kserve_{name}_infer", "KServe: recommendations.",
            "recommend", InferRequest, InferResponse, answer,
            read=read_inference, weight=users_of,
        ),
    ]  # fmt: skip
