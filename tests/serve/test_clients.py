"""The service as other people's clients meet it: tritonclient over KServe v2, and a client made from /openapi.json."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from openapi_spec_validator import OpenAPIV31SpecValidator
from tritonclient.utils import InferenceServerException

from tests.servers import served

pytestmark = pytest.mark.server

INFER = "/v2/models/distilrec/infer"
USERS = ["u16", "nobody", "Zoë"]


@pytest.fixture(scope="module")
def server(bundle_copy):
    with served(bundle_copy, "--max-body", 20_000, "--max-batch", 50) as service:
        yield service


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


# KServe v2 through NVIDIA's client


def inputs(users=USERS, k=None, *, binary=True, k_type="INT64") -> list[triton.InferInput]:
    values = np.array([user.encode() for user in users], np.object_)
    given = [
        triton.InferInput("user_id", list(values.shape), "BYTES").set_data_from_numpy(
            values, binary_data=binary
        )
    ]
    if k is not None:
        number = np.array([k], np.dtype(k_type.lower()))
        given.append(
            triton.InferInput("k", [1], k_type).set_data_from_numpy(number, binary_data=binary)
        )
    return given


def test_the_real_client_asks_who_is_there(client, server):
    assert (
        client.is_server_live() and client.is_server_ready() and client.is_model_ready("distilrec")
    )
    version = server.client.get("/v1/model").json()["model_version"]
    assert client.is_model_ready("distilrec", version)
    assert not client.is_model_ready("another") and not client.is_model_ready("distilrec", "7")
    about = client.get_server_metadata()
    assert (about["name"], about["extensions"]) == ("distilrec", ["binary_tensor_data"])
    for given in ("", version):
        model = client.get_model_metadata("distilrec", given)
        assert model["versions"] == [version]
        assert {tensor["name"]: tensor["datatype"] for tensor in model["inputs"]} == {
            "user_id": "BYTES",
            "k": "INT64",
            "now": "INT64",
            "context": "BYTES",
            "placement": "BYTES",
        }
        assert [tensor["name"] for tensor in model["outputs"]] == [
            "item_id",
            "score",
            "count",
            "probability",
            "recommendation_id",
        ]


@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("k_type", ["INT64", "INT32", "UINT8"])
def test_the_real_client_gets_recommendations(client, server, binary_in, binary_out, k_type):
    """None: no outputs are named, which is binary too."""
    outputs = None
    if binary_out is not None:
        outputs = [
            triton.InferRequestedOutput(name, binary_data=binary_out)
            for name in ("item_id", "score", "count")
        ]
    asked = inputs(k=3, binary=binary_in, k_type=k_type)
    answer = client.infer("distilrec", asked, outputs=outputs, request_id="seven")
    assert answer.get_response()["id"] == "seven"
    expected = [server.post("/v1/recommend", user_id=user, k=3)["items"] for user in USERS]
    assert [
        [item.decode() if isinstance(item, bytes) else item for item in row]
        for row in answer.as_numpy("item_id")
    ] == [[item["item_id"] for item in items] for items in expected]
    scores = answer.as_numpy("score")
    assert scores.dtype == np.float32 and scores.shape == (3, 3)
    np.testing.assert_array_equal(
        scores, np.array([[item["score"] for item in row] for row in expected], np.float32)
    )
    assert answer.as_numpy("count").tolist() == [3, 3, 3]
    assert ("binary_data_size" in answer.get_output("score").get("parameters", {})) == (
        binary_out is not False
    )


def test_the_real_client_chooses_outputs_and_versions(client, server):
    version = server.client.get("/v1/model").json()["model_version"]
    outputs = [
        triton.InferRequestedOutput("count", binary_data=True),
        triton.InferRequestedOutput("item_id", binary_data=False),
    ]
    answer = client.infer(
        "distilrec", inputs(["nobody"], 200), model_version=version, outputs=outputs
    )
    count = answer.as_numpy("count")[0]
    items = answer.as_numpy("item_id")[0]
    assert 0 < count < 200 and all(items[:count]) and not any(items[count:])
    assert answer.as_numpy("score") is None and answer.as_numpy("probability") is None
    outputs = [triton.InferRequestedOutput("probability"), triton.InferRequestedOutput("item_id")]
    likely = client.infer("distilrec", inputs(["u1"], 3), outputs=outputs)
    told = server.post("/v1/recommend", user_id="u1", k=3, probabilities=True)["items"]
    assert likely.as_numpy("probability")[0] == pytest.approx(
        [item["probability"] for item in told], rel=1e-4
    )
    assert client.infer("distilrec", inputs(["u1"])).as_numpy("item_id").shape == (
        1,
        10,
    )  # k is 10 without it


def test_the_real_client_shows_our_errors(client):
    for name, version in (("other", ""), ("distilrec", "7")):
        with pytest.raises(
            InferenceServerException,
            match="there is no such model or version .how to fix: ask for distilrec",
        ):
            client.infer(name, inputs(), model_version=version)
    with pytest.raises(InferenceServerException, match=r"^\[422\] k is 0"):
        client.infer("distilrec", inputs(k=0))
    with pytest.raises(
        InferenceServerException, match=r"^\[422\] k: 2,000 is more than the limit of 1,000"
    ):
        client.infer("distilrec", inputs(k=2_000))
    with pytest.raises(
        InferenceServerException, match=r"^\[413\] the body has more than 20,000 bytes"
    ):
        client.infer("distilrec", inputs(["x" * 25_000]))
    with pytest.raises(InferenceServerException, match=r"^\[415\] the body is compressed"):
        client.infer("distilrec", inputs(), request_compression_algorithm="gzip")
    with pytest.raises(InferenceServerException, match="asks for classification"):
        client.infer(
            "distilrec", inputs(), outputs=[triton.InferRequestedOutput("score", class_count=2)]
        )
    shared = triton.InferInput("user_id", [1], "BYTES")
    shared.set_shared_memory("region", 8)
    with pytest.raises(InferenceServerException, match="the input 'user_id' has no data"):
        client.infer("distilrec", [shared])
    for not_offered in (
        client.get_model_repository_index,
        client.get_inference_statistics,
        client.get_cuda_shared_memory_status,
        lambda: client.get_model_config("distilrec"),
        lambda: client.load_model("distilrec"),
    ):
        with pytest.raises(
            InferenceServerException, match=r"^\[404\] there is no such (path|model)"
        ):
            not_offered()


def test_a_compressed_answer_is_not_promised(client):
    """The client says that it would take gzip; it gets plain bytes."""
    answer = client.infer("distilrec", inputs(k=2), response_compression_algorithm="gzip")
    assert answer.as_numpy("item_id").shape == (3, 2)


def test_the_client_for_asyncio(server):
    """Its HTTP library says that the body is application/octet-stream."""

    async def ask() -> list[int]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as opened:
            assert await opened.is_server_ready()
            with pytest.raises(InferenceServerException, match="k is 0"):
                await opened.infer("distilrec", inputs(k=0))
            return (await opened.infer("distilrec", inputs(k=3))).as_numpy("count").tolist()

    assert asyncio.run(ask()) == [3, 3, 3]


# KServe v2 by hand: what no client should send


def tensor(name="user_id", shape=(1,), datatype="BYTES", **more) -> dict:
    return {"name": name, "shape": list(shape), "datatype": datatype, **more}


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


ONE = tensor(data=["u1"])
K = tensor("k", datatype="INT64", data=[3])


def sized(name="user_id", size=6, **more) -> dict:
    return tensor(name, parameters={"binary_data_size": size}, **more)


@pytest.mark.parametrize(
    ("given", "tail", "words"),
    [
        ([], b"", "there is no input user_id"),
        ([K], b"", "there is no input user_id"),
        ([ONE, tensor("x", data=["1"])], b"", "there is no input 'x'"),
        ([ONE, ONE], b"", "the input 'user_id' is named twice"),
        ([ONE, K, K], b"", "the input 'k' is named twice"),
        ([sized(), sized()], texts(b"u1") * 2, "the input 'user_id' is named twice"),
        ([tensor(datatype="STRING", data=["u1"])], b"", "there is no datatype 'STRING'"),
        ([tensor(datatype="bytes", data=["u1"])], b"", "there is no datatype 'bytes'"),
        ([ONE, {**K, "datatype": "INTERNET"}], b"", "there is no datatype 'INTERNET'"),
        ([tensor(datatype="INT64", data=[1])], b"", "'user_id' is INT64, not BYTES"),
        ([ONE, {**K, "datatype": "FP32"}], b"", "'k' is FP32, not INT64"),
        ([ONE, {**K, "datatype": "BYTES", "data": ["3"]}], b"", "'k' is BYTES, not INT64"),
        ([tensor(shape=(), data=["u1"])], b"", "is [], not [n]"),
        ([tensor(shape=(0,), data=[])], b"", "is [0], not [n]"),
        ([tensor(shape=(-1,), data=["u1"])], b"", "is [-1], not [n]"),
        ([tensor(shape=(1, 1), data=["u1"])], b"", "is [1, 1], not [n]"),
        ([tensor(shape=(3,), data=["u1"])], b"", "has 1 values, its shape says 3"),
        ([tensor(shape=(10**15,), data=["u1"])], b"", "has 1 values, its shape says 1,000,000,000,000,000"),
        ([tensor(shape=(2,), data=["u1", 2])], b"", "values that are not BYTES"),
        ([tensor(data=[["u1"]])], b"", "Expected `int | str`, got `array`"),
        ([tensor(data=["a\nb"])], b"", "holds the character U+000A"),
        ([tensor(data=[""])], b"", "is empty"),
        ([tensor(data=["x" * 257])], b"", "257 characters"),
        ([ONE, {**K, "shape": [2], "data": [3, 4]}], b"", "is [2], not [1]"),
        ([ONE, {**K, "data": [True]}], b"", "Expected `int | str`, got `bool`"),
        ([ONE, {**K, "data": [2.0]}], b"", "Expected `int | str`, got `float`"),
        ([ONE, {**K, "data": ["3"]}], b"", "values that are not INT64"),
        ([ONE, {**K, "datatype": "INT8", "data": [300]}], b"", "values that are not INT8"),
        ([ONE, {**K, "data": [-1]}], b"", "k is -1"),
        ([tensor()], b"", "'user_id' has no data"),
        ([tensor(data=["u1"], parameters={"binary_data_size": 6})], texts(b"u1"), "has data and binary_data_size"),
        ([sized()], b"", "is not a number of bytes that follow the JSON"),
        ([sized(size=7)], texts(b"u1"), "is not a number of bytes that follow the JSON"),
        ([sized(size=-6)], texts(b"u1"), "is not a number of bytes that follow the JSON"),
        ([sized(size=True)], texts(b"u1"), "is not a number of bytes that follow the JSON"),
        ([sized(size="6")], texts(b"u1"), "is not a number of bytes that follow the JSON"),
        ([sized(size=5)], texts(b"u1"), "1 bytes at the end of the body belong to no input"),
        ([ONE], texts(b"u1"), "6 bytes at the end of the body belong to no input"),
        ([sized(size=5)], texts(b"u1")[:5], "ends within its element 0"),
        ([sized(size=2)], b"\x02\x00", "ends within its element 0"),
        ([sized(size=8)], texts(b"u1") + b"\x00\x00", "ends within its element 1"),
        ([sized(size=4)], b"\xff\xff\xff\xff", "ends within its element 0"),
        ([sized(size=0)], b"", "has 0 values, its shape says 1"),
        ([sized(size=12)], texts(b"u1", b"u2"), "has 2 values, its shape says 1"),
        ([sized()], texts(b"\xff\xfe"), "is not UTF-8 in its element 0"),
        ([ONE, sized("k", 7, datatype="INT64")], b"\x03" + bytes(6), "7 bytes, which are not whole numbers of 8 bytes"),
        ([ONE, sized("k", 16, datatype="INT64")], b"\x03" + bytes(15), "has 2 values, its shape says 1"),
    ],
)  # fmt: skip
def test_wrong_tensors(server, given, tail, words):
    text = json.dumps({"inputs": given}).encode()
    headers = {
        "inference-header-content-length": str(len(text)),
        "content-type": "application/octet-stream",
    }
    response = server.client.post(INFER, content=text + tail, headers=headers)
    assert response.status_code == 422, response.text
    assert set(response.json()) == {"error"}
    assert words in response.json()["error"] and "how to fix" in response.json()["error"]


@pytest.mark.parametrize(
    ("request_parts", "words"),
    [
        ({"outputs": [{"name": "x"}]}, "there is no output 'x'"),
        ({"outputs": [{"name": "count"}, {"name": "count"}]}, "the output 'count' is named twice"),
        (
            {"outputs": [{"name": "count", "parameters": {"binary_data": 1}}]},
            "binary_data is not true or false",
        ),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output is not true or false"),
        (
            {"outputs": [{"name": "count", "parameters": {"shared_memory_region": "x"}}]},
            "asks for shared_memory_region",
        ),
    ],
)
def test_wrong_outputs(server, request_parts, words):
    response = server.client.post(INFER, json={"inputs": [ONE], **request_parts})
    assert response.status_code == 422 and words in response.json()["error"], response.text


@pytest.mark.parametrize("length", ["-1", "x", "", "9" * 30, "20000", "1"])
def test_wrong_lengths_of_the_json(server, length):
    body = json.dumps({"inputs": [ONE]}).encode()
    response = server.client.post(
        INFER, content=body, headers={"inference-header-content-length": length}
    )
    assert response.status_code == 400 and isinstance(response.json()["error"], str), response.text


def test_binary_data_without_the_header_that_says_where_they_begin(server):
    body = json.dumps({"inputs": [sized()]}).encode() + texts(b"u1")
    response = server.client.post(INFER, content=body)
    assert response.status_code == 400 and "not valid JSON" in response.json()["error"]


def test_one_output_in_binary_the_others_in_json(server):
    outputs = [{"name": "item_id", "parameters": {"binary_data": False}}, {"name": "count"}]
    request = {"inputs": [ONE, K], "outputs": outputs, "parameters": {"binary_data_output": True}}
    response = server.client.post(INFER, json=request)
    length = int(response.headers["inference-header-content-length"])
    assert response.headers["content-type"] == "application/octet-stream"
    ids, count = json.loads(response.content[:length])["outputs"]
    assert ids["data"] == server.items("u1", k=3) and "data" not in count
    assert count["parameters"] == {"binary_data_size": 4} and response.content[
        length:
    ] == struct.pack("<i", 3)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_what_a_form_of_another_site_could_send_is_refused(server, media_type):
    response = server.client.post(
        INFER, content=json.dumps({"inputs": [ONE]}), headers={"content-type": media_type}
    )
    assert response.status_code == 415 and isinstance(response.json()["error"], str)


def test_the_description_says_which_errors_there_are(server, guarded):
    for service, ours in ((server, {"403"}), (guarded[0], {"401", "403", "429"})):
        described = service.client.get("/openapi.json").json()
        found = described["paths"]["/v1/recommend"]["post"]["responses"]
        assert set(found) == {"200", "400", "413", "415", "422", "503", "4XX", "5XX"} | ours
        for path, body in (
            ("/v1/recommend", "ErrorResponse"),
            ("/v2/models/{name}/infer", "TextError"),
        ):
            responses = described["paths"][path]["post"]["responses"]
            bodies = {
                response["content"]["application/json"]["schema"]["$ref"]
                for s, response in responses.items()
                if s != "200"
            }
            assert bodies == {f"#/components/schemas/{body}"}
        takes = described["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
        assert set(takes) == {"application/json", "application/octet-stream"}


def test_every_error_below_v2_is_one_text(server):
    for method, path, status in (
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/distilrec/config", 404),
        ("GET", "/v2/models/distilrec/stats", 404),
        ("POST", "/v2/repository/index", 404),
        ("POST", "/v2", 405),
        ("GET", INFER, 405),
    ):
        response = server.client.request(method, path)
        assert response.status_code == status and list(response.json()) == ["error"], response.text
        assert isinstance(response.json()["error"], str) and response.headers["x-request-id"]
    assert isinstance(server.client.get("/v1/nothing").json()["error"], dict)


# A client made from the description


@pytest.fixture(scope="module")
def guarded(finished_run, tmp_path_factory):
    """A service with a key, and the key."""
    folder = tmp_path_factory.mktemp("guarded")
    for name in ("bundle", "next"):
        shutil.copytree(finished_run.bundle, folder / name)
    scopes = "recommend,events,items,users,admin,metrics"
    made = subprocess.run(
        [sys.executable, "-m", "distilrec.cli", "key", "--name", "all", "--scopes", scopes],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (folder / "keys.toml").write_text(made.stdout)
    with served(folder / "bundle", "--keys", folder / "keys.toml") as service:
        yield service, made.stderr.split()[-1]


@pytest.fixture
def generated(guarded, tmp_path, monkeypatch):
    """The package that openapi-python-client makes, without a warning, of what the service says about itself."""
    described = guarded[0].client.get("/openapi.json").content
    assert not list(OpenAPIV31SpecValidator(json.loads(described)).iter_errors())
    (tmp_path / "openapi.json").write_bytes(described)
    # The generator calls ruff by its name, and nobody has said that our environment is an active one.
    run = subprocess.run(
        [
            sys.executable, "-m", "openapi_python_client", "generate", "--path", tmp_path / "openapi.json",
            "--output-path", tmp_path / "made" / "made_client", "--meta", "none", "--fail-on-warning",
        ],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    monkeypatch.syspath_prepend(tmp_path / "made")
    yield importlib.import_module("made_client")
    for name in [name for name in sys.modules if name.split(".")[0] == "made_client"]:
        del sys.modules[name]


@pytest.fixture
def callers(generated, guarded):
    """Two generated clients: one with the key, one with a wrong key."""
    service, key = guarded
    make = partial(generated.AuthenticatedClient, service.url, raise_on_unexpected_status=True)
    with make(token=key) as client, make(token="dr_wrong") as stranger:
        yield client, stranger


class GeneratedCalls:
    """Calls through a generated client, and the names of the endpoints that were called."""

    def __init__(self, client):
        self.client, self.called = client, set()

    def call(self, name, *path, through=None, **more):
        self.called.add(name)
        return importlib.import_module(f"made_client.api.default.{name}").sync_detailed(
            *path, client=through or self.client, **more
        )

    def ok(self, name, *path, **more):
        response = self.call(name, *path, **more)
        assert response.status_code == 200, response.content
        return response.parsed


def check_recommendations(models, ok):
    filters = models.Filter(
        attributes=models.FilterAttributes.from_dict({"price": {"min": 2}}), deny=["i7"]
    )
    best = ok(
        "recommend",
        body=models.RecommendRequest("u1", k=4, explain=True, titles=True, filter_=filters),
    ).items
    assert (
        [item.rank for item in best] == [1, 2, 3, 4]
        and best[0].title
        and best[0].because[0].item_id
    )
    batch = models.BatchRequest([models.RecommendRequest("u1"), models.RecommendRequest(7)])
    assert [answer.user_id for answer in ok("recommend_batch", body=batch).results] == ["u1", "7"]
    visit = ["i1", models.HistoryEvent("i2", event_type="buy")]
    seen = ok("recommend", body=models.RecommendRequest(k=99, history=visit))
    assert seen.user_id is None and seen.known_user
    assert not {"i1", "i2"} & {item.item_id for item in seen.items}
    ranked = ok("rank", body=models.RankRequest(["i3", "stale"], "u1", skip_unknown=True))
    assert ([item.item_id for item in ranked.items], ranked.unknown_items) == (["i3"], ["stale"])
    like = ok("similar", body=models.SimilarRequest(["i3", 7], k=2, skip_unknown=True))
    assert [item.rank for item in like.items] == [1, 2] and like.unknown_items == ["7"]


def check_items(models, ok):
    features = models.ItemRequestFeatures.from_dict({"price": 3.5, "genres": ["g1"]})
    stored = ok("put_item", "shelf/50 %", body=models.ItemRequest(title="New", features=features))
    assert stored.item_id == "shelf/50 %"
    assert ok("get_item", "shelf/50 %").attributes["price"] == 3.5
    assert [item.title for item in ok("items", search="new", limit=5).items] == ["New"]
    assert ok("delete_item", "shelf/50 %").status == "removed"


def check_events_and_users(models, ok):
    events = models.EventsRequest(
        [models.EventBody("reader", "i1", event_type="buy", event_id="one")]
    )
    assert ok("events", body=events).accepted == 1 and ok("events", body=events).duplicates == 1
    bought = ok(
        "popular", body=models.PopularRequest(event_types=["buy"], half_life=5, titles=True)
    )
    assert [(item.item_id, item.score, bool(item.title)) for item in bought.items] == [
        ("i1", 1.0, True)
    ]
    (latest,) = ok("latest", body=models.LatestRequest("price", k=1, user_id="reader")).items
    assert latest.rank == 1 and latest.value > 0
    (kept,) = [event for event in ok("kept_events", since="0").events if event.user_id == "reader"]
    assert (kept.item_id, kept.event_id) == ("i1", "one")
    cold = models.UserRequest(models.UserRequestFeatures.from_dict({"age": 30, "country": "fr"}))
    assert ok("put_user", "cold", body=cold).status == "stored"
    assert ok("get_user", "cold").features.to_dict() == {"age": 30, "country": "fr"}
    assert ok("get_user", "reader").events[0].event_id == "one"
    assert len(ok("users", limit=3).users) == 3
    visitor = models.MergeRequest(source="visitor")
    assert ok("merge_user", "reader", body=visitor).events == 0
    session = models.MergeRequest(session_id="1", history=["i2", models.HistoryEvent("i3")])
    assert ok("merge_user", "reader", body=session).events == 2
    assert ok("delete_user", "reader").events_removed == 3


def check_outcomes(models, ok):
    listed = ok("recommend", body=models.RecommendRequest("u2", k=3, placement="outcomes"))
    item, name = listed.items[0].item_id, listed.recommendation_id
    clicked = models.EventBody("u2", item, event_type="click", recommendation_id=name, position=1)
    assert ok("events", body=models.EventsRequest([clicked])).attributed == 1
    found = ok("outcomes", by="placement", from_="2026-01-01", to=str(datetime.now(UTC).date()))
    (group,) = [group for group in found.groups if group.placement == "outcomes"]
    assert (group.answers, group.clicks, group.click_rate.mean) == (1, 1, 1.0)


def check_rules(models, ok):
    placements = {"home": {"pin": [{"item_id": "i4", "slot": 1}]}}
    loaded = ok("load_rules", body=models.LoadRulesRequest.from_dict({"placements": placements}))
    assert ok("rules").version == loaded.version
    listed = ok("recommend", body=models.RecommendRequest("u2", k=3, placement="home"))
    assert listed.items[0].item_id == "i4"


def check_models(models, ok):
    loaded = ok(
        "load_model", body=models.LoadRequest("next", shadow_requests=1, shadow_seconds=0.0)
    )
    assert loaded.switched and ok("rollback").switched


def check_experiments(models, ok):
    for name, end in (("stopped", "stop"), ("promoted", "promote")):
        begun = ok("start_experiment", body=models.StartRequest(name, bundle="next", share=0.5))
        assert begun.state == "running"
        answer = ok("recommend", body=models.RecommendRequest("u2", k=3))
        assert answer.variant in {f"{name}/control", f"{name}/variant"}
        assert ok(f"{end}_experiment", body=models.ExperimentRequest(name)).state == name
    assert [one.name for one in ok("experiments").experiments] == ["promoted", "stopped"]
    assert ok("rollback").switched


def check_kserve(models, ok):
    version = ok("model").model_version
    assert ok("kserve_server").extensions == ["binary_tensor_data"]
    assert ok("kserve_live").live and ok("kserve_ready").ready
    users = models.InputTensor("user_id", [2], "BYTES", data=["u1", "stranger"])
    request = models.InferRequest([users, models.InputTensor("k", [1], "INT64", data=[3])])
    for kind, path in (("model", ("distilrec",)), ("version", ("distilrec", version))):
        assert ok(f"kserve_{kind}", *path).versions == [version]
        assert ok(f"kserve_{kind}_ready", *path).ready
        outputs = ok(f"kserve_{kind}_infer", *path, body=request).outputs
        tensors = {tensor.name: tensor for tensor in outputs}
        assert tensors["item_id"].shape == [2, 3] and tensors["count"].data == [3, 3]


def check_errors(models, call, stranger):
    missing = call("get_user", "missing")
    assert (missing.status_code, missing.parsed.error.code) == (404, "user_unknown")
    wrong = call("kserve_model_infer", "distilrec", body=models.InferRequest([]))
    assert wrong.status_code == 422 and wrong.parsed.error.startswith("there is no input user_id")
    assert call("model", through=stranger).parsed.error.code == "unauthorized"
    assert call("kserve_model", "distilrec", through=stranger).parsed.error.startswith(
        "the API key is not valid"
    )


def test_a_generated_client_calls_every_endpoint(generated, callers):
    models = importlib.import_module("made_client.models")
    folder = Path(generated.__file__).parent / "api" / "default"
    endpoints = {file.stem for file in folder.glob("[!_]*.py")}
    operations = json.loads((folder.parents[3] / "openapi.json").read_bytes())["paths"].values()
    assert endpoints == {
        operation["operationId"] for path in operations for operation in path.values()
    }
    client, stranger = callers
    calls = GeneratedCalls(client)
    ok = calls.ok
    assert ok("healthz").status == "alive" and ok("readyz").status == "ready"
    check_recommendations(models, ok)
    check_items(models, ok)
    check_events_and_users(models, ok)
    check_outcomes(models, ok)
    check_rules(models, ok)
    check_models(models, ok)
    check_experiments(models, ok)
    assert "distilrec_request_seconds_count" in ok("metrics")
    check_kserve(models, ok)
    assert calls.called == endpoints
    check_errors(models, calls.call, stranger)
