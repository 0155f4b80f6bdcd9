"""Fuzzing with atheris: any input leads to a DistilrecError or an HTTP status below 500, never to a
crash.

    python fuzz/fuzz.py readers --seconds 60                   # settings, readers, bundle or http
    python fuzz/fuzz.py readers runs/fuzz/readers/crash-…      # one input again

Inputs that fail are kept in runs/fuzz.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["distilrec"], exclude=["distilrec.engine.kernels"]):
    from distilrec import load
    from distilrec.bundle import format as bundles
    from distilrec.bundle import manifest as manifests
    from distilrec.data.preparation import prepare_dataset
    from distilrec.data.readers import read_table
    from distilrec.data.schema import Feature, Schema
    from distilrec.errors import DistilrecError
    from distilrec.runs.config import RunConfig, read_config
    from distilrec.serve.app import make_app
    from distilrec.serve.config import ServiceConfig
    from distilrec.serve.keys import Keys
    from distilrec.serve.service import open_service

import argparse
import asyncio
import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".csv", ".tsv", ".dat", ".inter", ".jsonl", ".parquet")
SCHEMA = Schema(
    timestamp="t",
    event_type="e",
    weight="w",
    user_key="user_id",
    item_key="item_id",
    user_features=(Feature("age", "numeric"),),
    item_features=(
        Feature("genres", "multi"),
        Feature("title", "text"),
        Feature("vector", "vector"),
    ),
)
PATHS = [
    "/v1/recommend",
    "/v1/recommend/batch",
    "/v1/rank",
    "/v1/events",
    "/v1/items",
    "/v1/items/i1",
    "/v1/users",
    "/v1/users/u1",
    "/v1/model",
    "/v1/model/load",
    "/v1/model/rollback",
    "/v2/models/distilrec/infer",
    "/metrics",
    "/",
]
EVENT = {
    "user_id": "u1",
    "item_id": "i1",
    "event_type": "view",
    "timestamp": 1e9,
    "event_id": "1",
}
BODIES = [
    {
        "user_id": "u1",
        "k": 3,
        "filter": {"attributes": {"genres": {"any_of": ["g1"]}, "price": {"min": 1}}},
    },
    {"requests": [{"user_id": "u1"}]},
    {"user_id": "u1", "item_ids": ["i1", "i2"], "skip_unknown": True},
    {"events": [EVENT]},
    {
        "title": "x",
        "features": {"price": 3.0, "genres": ["g1"]},
        "attributes": {"a": "b"},
        "available": True,
    },
    {"features": {"age": 3, "country": "de"}},
    {"bundle": "x", "shadow_requests": 1, "shadow_seconds": 0.0},
    {"inputs": [{"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["u1"]}]},
]
Target = Callable[[bytes], None]
Provider = Any  # atheris has no types


def settings(scratch: Path) -> Target:
    """Read a configuration file."""
    path = scratch / "my.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            config = read_config(path)
        except DistilrecError as problem:
            assert problem.fix, problem
        else:
            assert msgspec.json.decode(msgspec.json.encode(config), type=RunConfig) == config

    return run


def readers(scratch: Path) -> Target:
    """Read a table. The first byte chooses the kind of file, the second the table of a data set."""
    log = [
        {"user_id": u, "item_id": i, "t": 1_600_000_000 + u + i, "e": "view", "w": 1.0}
        for u in (1, 2)
        for i in (1, 2, 3)
    ]
    users = [{"user_id": 1, "age": 3}]
    items = [{"item_id": 1, "genres": "a|b", "title": "One", "vector": [0.5, 1.0]}]
    columns = {"log": list(log[0]), "users": list(users[0]), "items": list(items[0])}

    def run(data: bytes) -> None:
        if len(data) < 2:
            return
        name = ("log", "users", "items")[data[1] % 3]
        path = scratch / f"table{SUFFIXES[data[0] % len(SUFFIXES)]}"
        path.write_bytes(data[2:])
        try:
            table = read_table(path, columns[name] if path.suffix == ".dat" else None)
            tables: dict[str, Any] = {
                "log": frame(log),
                "users": frame(users),
                "items": frame(items),
            } | {name: table}
            prepare_dataset(
                tables["log"], SCHEMA, users=tables["users"], items=tables["items"], name="fuzz"
            )
        except DistilrecError as problem:
            assert problem.fix, problem

    return run


def frame(rows: list[dict[str, Any]]) -> Any:
    """Return the rows as a table."""
    import polars as pl

    return pl.DataFrame(rows)


def bundle(scratch: Path) -> Target:
    """Change arrays and the manifest of a bundle like a forger, and compute all hashes again."""
    original = small_bundle(scratch)
    files = {
        name: (original / name).read_bytes()
        for name in (manifests.WEIGHTS, manifests.CATALOGUE, manifests.HISTORY)
    }
    manifest = json.loads((original / "manifest.json").read_bytes())
    forged = scratch / "forged"

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        shutil.rmtree(forged, ignore_errors=True)
        shutil.copytree(original, forged)
        changed = json.loads(json.dumps(manifest))
        name = provider.PickValueInList([*files, "manifest"])
        if name == "manifest":
            forge_json(provider, changed)
        else:
            content = forge_arrays(provider, files[name])
            (forged / name).write_bytes(content)
            entry = manifests.FileEntry(bundles._hash(forged / name), len(content))
            changed["files"][name] = msgspec.to_builtins(entry)
        try:
            whole = msgspec.convert(changed, manifests.Manifest)
        except (msgspec.ValidationError, DistilrecError):
            whole = None
        if whole is not None:
            changed["model_version"] = whole.hashed()
        (forged / "manifest.json").write_text(json.dumps(changed))
        try:
            recommender = load(forged)
            for user in ("u1", "u2", "stranger"):
                recommender.recommend(user, k=5)
                recommender.update([{"user_id": user, "item_id": "i3"}])
                recommender.explain(user, "i4")
                recommender.teacher_items(user)
        except DistilrecError as problem:
            assert problem.fix, problem

    return run


def forge_json(provider: Provider, content: Any) -> None:
    """One value somewhere inside becomes another."""
    while True:
        key = provider.PickValueInList(
            list(content) if isinstance(content, dict) else list(range(len(content)))
        )
        inner = content[key]
        if not (isinstance(inner, dict | list) and inner and provider.ConsumeProbability() < 0.85):
            break
        content = inner
    choices = [
        None,
        True,
        0,
        -1,
        1,
        2**31,
        2**63 - 1,
        -(2**40),
        0.5,
        "",
        "i1",
        [],
        {},
        [0],
        [-1, 2**40],
        [[0, 1.0]],
    ]
    content[key] = (
        provider.PickValueInList(choices) if provider.ConsumeBool() else provider.ConsumeInt(4)
    )


def forge_arrays(provider: Provider, data: bytes) -> bytes:
    """One array of a safetensors file gets other values, another shape or another type."""
    from safetensors.numpy import load as decode
    from safetensors.numpy import save as encode

    arrays = decode(data)
    name = provider.PickValueInList(sorted(arrays))
    array = arrays[name].copy()
    match provider.ConsumeIntInRange(0, 4):
        case 0 if array.size:
            place = provider.ConsumeIntInRange(0, array.size - 1)
            flat = array.reshape(-1).view(np.uint8)
            flat[place * array.itemsize : (place + 1) * array.itemsize] = list(
                provider.ConsumeBytes(array.itemsize).ljust(array.itemsize, b"\0")
            )
        case 1:
            array = (
                array[: provider.ConsumeIntInRange(0, len(array))]
                if array.ndim
                else array.reshape(1)
            )
        case 2:
            array = array.astype(
                provider.PickValueInList([np.float32, np.int64, np.int32, np.uint8, np.float64])
            )
        case 3:
            array = np.concatenate([array, array]) if array.ndim else array.reshape(1, 1)
        case _:
            arrays.pop(name)
            return bytes(encode(arrays))
    return bytes(encode({**arrays, name: np.ascontiguousarray(array)}))


def http(scratch: Path) -> Target:
    """Send a request to the service: method, path, headers and body."""
    logging.disable(logging.CRITICAL)
    service = open_service(
        ServiceConfig(str(small_bundle(scratch)), store=f"sqlite:///{scratch / 'store.db'}")
    )
    app = make_app(service, Keys(()))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(service.start())

    async def ask(scope: dict[str, Any], body: bytes) -> int:
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        await app(scope, receive, send)
        return status

    def run(data: bytes) -> None:
        scope, body = forged_request(atheris.FuzzedDataProvider(data))
        status = loop.run_until_complete(ask(scope, body))
        assert 200 <= status < 500 or status == 503, (status, scope, body)

    return run


def forged_request(provider: Provider) -> tuple[dict[str, Any], bytes]:
    """Return the scope and the body of a request: a valid one, changed, or arbitrary bytes."""
    method = provider.PickValueInList(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD"])
    path = provider.PickValueInList(PATHS)
    if provider.ConsumeProbability() < 0.2:
        path += "/" + provider.ConsumeUnicodeNoSurrogates(12)
    query = provider.ConsumeBytes(12)
    content = json.loads(json.dumps(provider.PickValueInList(BODIES)))
    if provider.ConsumeBool():
        forge_json(provider, content)
        body = json.dumps(content).encode()
    else:
        body = provider.ConsumeBytes(4_000)
    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"x-request-id", provider.ConsumeBytes(8)),
        ],
    }
    return scope, body


def small_bundle(scratch: Path) -> Path:
    """Return the bundle of the small run of the tests."""
    subprocess.run(
        [sys.executable, "-m", "tests.small_run", str(scratch)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return scratch / "bundle"


def seeds(name: str, folder: Path) -> None:
    """Return a few good inputs to begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "settings":
        for path in [*ROOT.glob("bench/*.toml"), *ROOT.glob("examples/*/recipe.toml")]:
            shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    if name == "readers":
        rows = [
            "1,1,1600000000,view,1",
            "1,2,1600000001,buy,2.5",
            "2,1,1600000002,view,1",
            "2,2,1600000003,view,",
        ]
        text = "user_id,item_id,t,e,w\n" + "\n".join(rows)
        item = {"item_id": 1, "genres": ["a", "b"], "title": "x", "vector": [0.5, 1]}
        texts = [
            text,
            text.replace(",", "\t"),
            "\n".join(rows).replace(",", "::"),
            "user_id:token\titem_id:token\tt:float\te:token\tw:float\n"
            + "\n".join(rows).replace(",", "\t"),
            "".join(
                f'{{"user_id": {user}, "item_id": {item}, "t": 16e8, "e": "a", "w": 1}}\n'
                for user in (1, 2)
                for item in (1, 2)
            ),
        ]
        for kind, content in enumerate(texts):
            (folder / f"log{SUFFIXES[kind]}").write_bytes(bytes([kind, 0]) + content.encode())
        (folder / "dates.csv").write_bytes(
            b"\x00\x00" + re.sub(r"160000000(\d)", r"2020-01-1\1T00:00:00", text).encode()
        )
        (folder / "users.csv").write_bytes(b"\x00\x01user_id,age\n1,3\n2,4.5\n")
        (folder / "items.jsonl").write_bytes(b"\x04\x02" + json.dumps(item).encode())
        frame([item]).write_parquet(folder / "table.parquet")
        (folder / "items.parquet").write_bytes(
            b"\x05\x02" + (folder / "table.parquet").read_bytes()
        )
        (folder / "table.parquet").unlink()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "settings": settings,
    "readers": readers,
    "bundle": bundle,
    "http": http,
}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description="Fuzzes one part of distilrec.")
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument(
        "input", nargs="?", type=Path, help="an input to try again, instead of fuzzing"
    )
    parser.add_argument("--seconds", type=int, default=60)
    asked = parser.parse_args()
    folder = ROOT / "runs" / "fuzz" / asked.target
    seeds(asked.target, folder / "corpus")
    with tempfile.TemporaryDirectory() as scratch:
        target = TARGETS[asked.target](Path(scratch))
        if asked.input is not None:
            target(asked.input.read_bytes())
            return
        limits = [
            f"-max_total_time={asked.seconds}",
            "-max_len=6000",
            "-timeout=60",
            "-rss_limit_mb=8000",
        ]
        atheris.Setup(
            [sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(folder / "corpus")], target
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
