"""The engine of web pages, run by Node, against the engines in Python: one set of generated cases, one file."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from distilrec import __version__, load
from distilrec.bundle.format import read_bundle
from distilrec.cli import main
from distilrec.engine.filters import Filter
from distilrec.engine.web import write_drec
from distilrec.errors import DistilrecError
from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.stores.records import ItemRecord
from tests import ROOT, small_run
from tests.servers import program

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "web"
PACKAGE = ROOT / "web"
CASES = 1_000
CLOSE = {"rel": 1e-4, "abs": 1e-4}  # two sums in float32
ENGINES = ["numba", "wasm", "plain", "no-subtle"]  # each against numpy
VISITS = RecurrentConfig(
    dim=8, max_history=12, neighbours=4, neighbour_events=3, repeat_events=5, visit_gap=7200.0
)
START = 1.65e9  # after all events of the small log
ODD = [
    None, True, False, 7, -3.5, 1e-7, 1e25, "", " de ", "de", "fr", "g1|g2|g1", "['g1', \"g0\"]", "[g1]", "{'g2'}",
    ["g0", None, " g3 "], "array([1.0 2.0])", "Thing number 7", "thing_NUMBER Ünï 7", "3.5", " 4 ", "1e2", "nan",
    "a number", [1, 2], "\u2003x\u2003", "true", "('g1',)", "[None, 'g2',]", "['\\x67\\u0031']",
]  # fmt: skip


def cases(seed: int = 0) -> list[dict[str, Any]]:
    """Users with histories, features and questions; some cases put a new item into the catalogue."""
    rng = np.random.default_rng(seed)

    def chosen(values, share=1.0):
        return values[rng.integers(len(values))] if rng.random() < share else None

    def ids(most):
        return [f"i{n}" for n in rng.integers(46, size=rng.integers(most + 1))]

    def category():
        return chosen(["g0", "g1", "g2", "g3", "no such", " g1"])

    def where():
        if rng.random() < 0.5:
            return None
        genres = (
            {"any_of": [category() for _ in range(rng.integers(3))]} if rng.random() < 0.6 else {}
        )
        genres |= {"none_of": [category()]} if rng.random() < 0.3 else {}
        price = {"min": float(rng.uniform(1, 6))} if rng.random() < 0.3 else {}
        price |= {"max": float(rng.uniform(4, 9))} if rng.random() < 0.3 else {}
        attributes = {name: of for name, of in (("genres", genres), ("price", price)) if of}
        if rng.random() < 0.05:
            attributes |= {chosen(["colour", "price"]): {"any_of": ["red"]}}
        found: dict[str, Any] = {"attributes": attributes, "deny": ids(3)}
        return found | ({"allow": ids(30)} if rng.random() < 0.2 else {})

    def item(n):
        features = {
            "genres": chosen(ODD, 0.8),
            "title": chosen(ODD, 0.8),
            "price": chosen([*ODD, 2.0, 5, 99.0], 0.7),
        }
        features |= {"no such feature": 1} if rng.random() < 0.03 else {}
        known = rng.random() < 0.3
        record: dict[str, Any] = {"item_id": f"i{rng.integers(50)}" if known else f"new {n}"}
        record |= {
            "features": {a: b for a, b in features.items() if b is not None or rng.random() < 0.5}
        }
        record |= {"title": f"Called {n}"} if rng.random() < 0.5 else {}
        record |= {"attributes": {"price": 3.0, "shelf": "top"}} if rng.random() < 0.3 else {}
        return record | ({"available": bool(rng.random() < 0.7)} if rng.random() < 0.3 else {})

    made = []
    for n in range(CASES):
        user = chosen([f"c{n}", n, f" c{n} ", f"{n}.0", "shared"])
        features = (
            {"age": chosen([*ODD, 20, 33.5, 70]), "country": chosen(ODD)}
            if rng.random() < 0.4
            else None
        )
        events = [
            {
                "user_id": user,
                "item_id": one,
                "event_type": chosen(["view", "buy", "odd", "impression"]),
            }
            for one in ids(3 if user == "shared" else chosen([0, 3, 9, 30]))
        ]
        if rng.random() < 0.02:
            events.append(
                {"user_id": user, "item_id": chosen(["", None, 1.5, True, "\x00", "a\u2028"])}
            )
        put = item(n) if rng.random() < 0.2 else None
        ranked = [put["item_id"] if put else f"i{rng.integers(42)}", *ids(6)]
        made.append(
            {"user": user, "features": features, "events": events, "item": put, "where": where(),
             "k": int(rng.integers(1, 25)), "exclude_seen": chosen([True, True, False, None]),
             "diversity": round(float(rng.random()), 2), "ranked": ranked}
        )  # fmt: skip
    return made


def in_visits(made: list[dict[str, Any]], gap: float = VISITS.visit_gap) -> list[dict[str, Any]]:
    """The same cases with times of events and questions, some of them impossible; one in ten happens now."""
    rng = np.random.default_rng(1)
    for n, case in enumerate(made):
        if rng.random() < 0.1:
            continue
        when = START + 1.5 * gap * n  # one user has events in many cases
        for event in case["events"]:
            when += rng.choice([0.0, 0.5, 60.0, gap - 0.5, gap, 3 * gap])
            event["timestamp"] = when
            if rng.random() < 0.1:  # a late one
                event["timestamp"] -= rng.choice([60.0, 3 * gap])
        if case["events"] and rng.random() < 0.05:
            case["events"][0]["timestamp"] = [1e12, -1.0, True, "now"][rng.integers(4)]
        case["now"] = when + rng.choice([0.0, 10.0, gap - 0.5, gap, 1e6, -200.0, -400.0])
    return made


def caught(answer):
    try:
        return answer()
    except DistilrecError as error:
        return {"error": error.code}


def similar(recommender, item, k, where):
    """The cosines of item vectors, best first."""
    catalogue = recommender._catalogue
    place, count = catalogue.position(item), len(catalogue.ids)
    mask = recommender._filters.mask(where)
    vectors = recommender._runtime.item_vectors(np.arange(count, dtype=np.int32)).astype(np.float64)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    cosines = vectors @ vectors[place] / lengths / lengths[place]
    left = [
        n for n in np.argsort(-cosines, kind="stable") if n != place and (not len(mask) or mask[n])
    ]
    return [[catalogue.ids[n], float(cosines[n])] for n in left[:k]]


def in_python(file: Path, runtime: str, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    recommender = load(file, runtime=runtime)
    answers = []
    for case in made:
        user, k, item, now = case["user"], case["k"], case["item"], case.get("now")
        where = case["where"] and msgspec.convert(case["where"], Filter)
        record = item and ItemRecord(**{"title": None, **item})
        first = case["ranked"][0]
        put = caught(lambda record=record: recommender.put_item(record)) if item else None
        features = case["features"]
        set_ = caught(lambda u=user, f=features: recommender.set_user(u, f)) if features else None

        def known(first=first):
            found = recommender.item(first)
            return [found.title, found.attributes]

        answers.append({
            "put": put,
            "set": set_,
            "update": caught(lambda c=case: list(recommender.update(c["events"]))),
            "recommend": caught(lambda u=user, k=k, c=case, w=where, t=now: [
                list(one) for one in recommender.recommend(u, k=k, exclude_seen=c["exclude_seen"], where=w, now=t)]),
            "diverse": caught(lambda u=user, k=k, c=case, w=where, t=now: [
                list(one) for one in recommender.recommend(u, k=k, where=w, diversity=c["diversity"], now=t)]),
            "rank": caught(lambda u=user, c=case, t=now: [
                list(one) for one in recommender.recommend(u, c["ranked"], now=t)]),
            "explain": caught(lambda u=user, first=first, t=now: [
                [one.place, one.contribution] for one in recommender.explain(u, first, k=9_999, now=t)]),
            "similar": caught(lambda first=first, k=k, w=where: similar(recommender, first, k, w)),
            "known": caught(known),
        })  # fmt: skip
    return answers


def answers_to(file: Path, made: list[dict[str, Any]]):
    """The answers of an engine to all cases, each engine asked once."""
    found: dict[str, list[dict[str, Any]]] = {}
    (file.parent / "cases.json").write_text(json.dumps(made))

    def of(engine):
        if engine not in found:
            if engine in ("numba", "numpy"):
                found[engine] = json.loads(json.dumps(in_python(file, engine, made)))
            else:
                out = file.parent / f"{engine}.json"
                in_node("answer.mjs", file, file.parent / "cases.json", out, engine)
                found[engine] = json.loads(out.read_text())
        return found[engine]

    return of


@pytest.fixture(scope="module")
def answers(student):
    return answers_to(student, cases())


@pytest.fixture(scope="module")
def of_visits(small, tmp_path_factory):
    """The file of a student to whom it matters which events are of this visit."""
    folder = tmp_path_factory.mktemp("visits")
    export_bundle(small_run.timed_student(VISITS, small), small, folder / "bundle")
    write_drec(read_bundle(folder / "bundle"), folder / "student.drec")
    return folder / "student.drec"


@pytest.fixture(scope="module")
def answers_in_visits(of_visits):
    return answers_to(of_visits, in_visits(cases()[:300]))


def in_node(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [program("node"), str(HERE / script), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def same_order(ours, theirs) -> bool:
    """Whether two lists have the same items, apart from those whose scores are too near to call."""
    of = dict(map(tuple, theirs))
    return len(ours) == len(theirs) and all(
        score == pytest.approx(other, **CLOSE)
        and (item == wanted or item not in of or of[item] == pytest.approx(other, **CLOSE))
        for (item, score), (wanted, other) in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_answer_alike(answers, engine):
    check_alike(answers(engine), answers("numpy"))


@pytest.mark.parametrize("engine", ["numba", "wasm", "plain", "restored"])
def test_all_engines_answer_alike_in_visits(answers_in_visits, engine):
    check_alike(answers_in_visits(engine), answers_in_visits("numpy"))


def check_alike(answers, expected):
    wrong, moved = [], 0
    for n, (ours, theirs) in enumerate(zip(answers, expected, strict=True)):
        for name in ("put", "set", "update", "known"):
            if ours[name] != theirs[name]:
                wrong.append((n, name, ours[name], theirs[name]))
        for name in ("recommend", "diverse", "rank", "similar"):
            if isinstance(theirs[name], dict) or isinstance(ours[name], dict):
                if ours[name] != theirs[name]:
                    wrong.append((n, name, ours[name], theirs[name]))
                continue
            moved += [one[0] for one in ours[name]] != [one[0] for one in theirs[name]]
            if name != "diverse" and not same_order(ours[name], theirs[name]):
                wrong.append((n, name, ours[name], theirs[name]))
            # A choice of a diverse list that is too near to call changes all that follow it.
        if isinstance(theirs["explain"], dict) or isinstance(ours["explain"], dict):
            if ours["explain"] != theirs["explain"]:
                wrong.append((n, "explain", ours["explain"], theirs["explain"]))
            continue
        effects = [dict(map(tuple, one["explain"])) for one in (ours, theirs)]
        if effects[0] != pytest.approx(effects[1], rel=1e-3, abs=1e-4):
            wrong.append((n, "explain", *effects))
    assert not wrong, f"{len(wrong)} answers differ, first: {wrong[:3]}"
    assert moved <= len(expected) // 100  # of four lists a case; equal scores, apart from rounding


@pytest.mark.parametrize("file", ["student", "of_visits"])
def test_the_rest_of_the_package(request, file):
    """Damaged and forged files, impossible calls, states, growing catalogues, addresses."""
    assert in_node("checks.mjs", request.getfixturevalue(file)) == ""


@pytest.mark.parametrize("place", range(2))
def test_the_examples_of_the_guide_run(place, student, tmp_path):
    page = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    code = re.findall(r"```js\n(.*?)```", page, re.DOTALL)[place]
    features = {
        "release_year: 2026": "price: 3",
        "age: 31, gender": "age: 31, country",
        "release_year": "price",
    }
    for films, ours in features.items():  # those of the small run
        code = code.replace(films, ours)
    code = re.sub(r'"(50|101|456|789)"', lambda found: f'"i{int(found[1]) % 40}"', code)
    code = code.replace(
        'from "distilrec"', f'from "{(PACKAGE / "dist" / "distilrec.js").as_uri()}"'
    )
    code = code.replace(
        'load("student.drec")', 'load(await (await import("node:fs/promises")).readFile(STUDENT))'
    )
    script = tmp_path / "example.mjs"
    script.write_text(f"const STUDENT = {json.dumps(str(student))};\n{code}")
    done = subprocess.run(
        [program("node"), str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]


def test_the_package_is_small_and_has_the_version_of_distilrec():
    code = (PACKAGE / "dist" / "distilrec.js").read_bytes()
    assert len(gzip.compress(code)) < 30_000
    assert not re.search(rb"\beval\(|new Function\(|\bimport\(", code)
    package = json.loads((PACKAGE / "package.json").read_text())
    assert package["version"] == __version__
    assert "dependencies" not in package
    # Exact versions, which the lock file repeats with their hashes.
    lock = json.loads((PACKAGE / "package-lock.json").read_text())["packages"]
    assert lock[""]["version"] == __version__
    for name, version in package["devDependencies"].items():
        assert lock[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in entry for name, entry in lock.items() if name)


def test_what_is_committed_was_built_from_these_sources():
    files = sorted(f"src/{path.name}" for path in (PACKAGE / "src").iterdir())
    sources = hashlib.sha256()
    for name in ("build.mjs", "package-lock.json", "tsconfig.json", *files):
        sources.update(name.encode() + b"\0" + (PACKAGE / name).read_bytes())
    first = (PACKAGE / "dist" / "distilrec.js").read_text(encoding="utf-8").split("\n")[0]
    assert first.endswith(f"SHA-256 {sources.hexdigest()}"), "run make web-build"


def test_what_is_committed_is_what_the_sources_build(tmp_path):
    if not (PACKAGE / "node_modules" / "esbuild").is_dir():
        pytest.skip("the tools of the build are not installed (make web-build)")
    done = subprocess.run(
        [program("node"), str(PACKAGE / "build.mjs"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in (PACKAGE / "dist").iterdir()}
    assert built == committed, "run make web-build"


def test_the_command_line_writes_the_file(trained, tmp_path, capsys):
    bundle = shutil.copytree(trained, tmp_path / "bundle")
    main(["export", "--web", "--bundle", str(bundle), "--precision", "float32"])
    file = tmp_path / "student.drec"
    assert f"{file}: {file.stat().st_size:,} bytes" in capsys.readouterr().out
    assert load(file).recommend("a stranger", k=3)
    with pytest.raises(SystemExit) as caught:
        main(["export", "--bundle", str(bundle)])
    assert caught.value.code == 2
    assert "add --web" in capsys.readouterr().err


ASKED = """async () => {
  const { load } = await import("./distilrec.js");
  const recommender = await load("student.drec");
  recommender.update([3, 7, 9].map((n) => ({ user_id: "me", item_id: `i${n}`, event_type: "buy" })));
  return { wasm: recommender.wasm, answers: recommender.recommend("me", { k: 10 }) };
}"""
ASKED_IN_A_WORKER = """async () => {
  const worker = new Worker("./worker.mjs", { type: "module" });
  const found = await new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(message));
  });
  worker.terminate();
  const { load, openStore } = await import("./distilrec.js");
  const recommender = await load("student.drec");
  await openStore(recommender);
  return { ...found, kept: recommender.past("me") };
}"""
ASKED_IN_NODE = """
const { Worker } = await import("node:worker_threads");
const worker = new Worker(new URL(process.argv[1]), { execArgv: [] });
worker.once("message", (found) => console.log(JSON.stringify(found)));
"""


@pytest.fixture(scope="module")
def expected(student):
    """The answers of the engine in numpy to what pages and workers are asked."""
    recommender = load(student, runtime="numpy")
    recommender.update(
        [{"user_id": "me", "item_id": f"i{n}", "event_type": "buy"} for n in (3, 7, 9)]
    )
    return [list(answer) for answer in recommender.recommend("me", k=10)]


def check_answers(found, expected):
    assert found["wasm"]
    ours = [[answer["item_id"], answer["score"]] for answer in found["answers"]]
    assert len(ours) == 10
    assert same_order(ours, expected)


def test_a_browser_answers_as_python_does(browser, site, expected):
    page = browser.new_page()
    page.goto(f"{site}/index.html")
    check_answers(page.evaluate(ASKED), expected)
    page.close()


def test_a_worker_of_a_browser_answers_as_python_does(browser, site, expected):
    page = browser.new_page()
    page.goto(f"{site}/index.html")
    found = page.evaluate(ASKED_IN_A_WORKER)
    page.close()
    assert found["page"] == "undefined"
    check_answers(found, expected)
    assert found["kept"] == ["i9", "i7", "i3"]  # a page reads what the worker has stored


def test_a_worker_of_node_answers_as_python_does(site_folder, expected):
    worker = (site_folder / "worker.mjs").as_uri()
    done = subprocess.run(
        [program("node"), "--input-type=module", "--eval", ASKED_IN_NODE, worker],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    check_answers(json.loads(done.stdout), expected)
