"""A bundle that is tried on a share of the users: promoted, taken back, not tried twice; by the command too."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
import pytest

from distilrec import load
from distilrec.cli.app import main
from distilrec.errors import ConfigError, ServiceError
from distilrec.runs import Trial, try_out
from distilrec.runs.generations import Generations
from distilrec.runs.refreshing import take_back
from distilrec.runs.trial import _Experiment, _Faults, _harm
from tests.servers import served

ALWAYS, SOMETIMES = (1, 1), (1, 2)


@contextmanager
def visitors(service, variant_clicks: tuple[int, int]) -> Iterator[None]:
    """People who come, and click on answers of the control; on those of the variant in `a` of `b` cases."""
    over = threading.Event()

    def come() -> None:
        with httpx.Client(base_url=service.url) as client:
            for number in itertools.count():
                if over.is_set():
                    return
                user = f"visitor {number % 997}"
                answer = client.post("/v1/recommend", json={"user_id": user, "k": 2}).json()
                clicks, of = variant_clicks
                if answer.get("variant", "").endswith("/variant") and number % of >= clicks:
                    continue
                named = {"recommendation_id": answer["recommendation_id"], "event_type": "click"}
                event = {"user_id": user, "item_id": answer["items"][0]["item_id"], **named}
                client.post("/v1/events", json={"events": [event]})

    thread = threading.Thread(target=come)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.server
def test_a_bundle_that_does_no_harm_answers_everybody_in_the_end(two_bundles):
    versions = [load(two_bundles / name).model_version for name in ("one", "two")]
    with served(two_bundles / "one") as service, visitors(service, ALWAYS):
        trial = Trial(share=0.5, minutes=0.02)
        service.post("/v1/experiments/start", name="summer", rules={"placements": {}})
        with pytest.raises(ServiceError, match="the experiment 'summer' runs"):
            try_out(service.url, two_bundles / "two", trial)
        service.post("/v1/experiments/stop", name="summer")
        done = try_out(service.url, two_bundles / "two", trial, every=0.1)
        assert done.switched, done.line
        assert f"answers with {versions[1]}, was {versions[0]}; " in done.line
        assert service.client.get("/v1/model").json()["model_version"] == versions[1]
        again = try_out(service.url, two_bundles / "two", trial)
        assert again.switched and again.line.endswith("already")


@pytest.mark.server
def test_a_bundle_that_brings_less_is_taken_back_and_not_tried_again(two_bundles):
    version = load(two_bundles / "one").model_version
    with served(two_bundles / "one") as service:
        trial = Trial(share=0.5, minutes=30)
        with visitors(service, SOMETIMES):
            done = try_out(service.url, two_bundles / "two", trial, every=0.1)
        assert not done.switched
        assert "was taken back: clicks of an answer -0." in done.line
        assert service.client.get("/v1/model").json()["model_version"] == version
        (kept,) = service.client.get("/v1/experiments").json()["experiments"]
        assert kept["state"] == "stopped"
        again = try_out(service.url, two_bundles / "two", trial)
        assert not again.switched and "was tried before" in again.line


def experiment(metric="clicks", *, control=(0, 0), variant=(0, 0), **more) -> _Experiment:
    """An experiment with answers and answers that brought something in both arms."""
    arms = [
        {"answers": answers, "clicked": good, "converted": good}
        for answers, good in (control, variant)
    ]
    result = {"control": arms[0], "variant": arms[1], **more}

    return msgspec.convert(
        {"name": "e", "state": "running", "started": 0.0, "metric": metric,
         "result": result}, _Experiment)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "faults", "says"),
    [
        (experiment(), (0, 1_000), ""),
        (experiment(), (9, 100), ""),
        (experiment(), (10, 100), "10 answers of 100 that failed"),
        (experiment(), (19, 2_000), ""),
        (experiment(difference=-0.1, low=-0.2, high=-0.05, different=True), (0, 9), "clicks of an answer -0.1000 [-0.2000, -0.0500]"),
        (experiment(difference=0.1, low=0.05, high=0.2, different=True), (0, 9), ""),
        (experiment(difference=-0.1, low=-0.2, high=0.05), (0, 9), ""),
        (experiment(control=(9_000, 900), variant=(1_000, 0), difference=-0.1), (0, 9), "0 of its 1,000 answers brought something, 100 were"),
        (experiment("value", control=(900, 9), variant=(100, 0), difference=-0.1), (0, 9), ""),
        (experiment(control=(9_000, 900), variant=(1_000, 40), difference=-0.06), (0, 9), ""),
    ],
)  # fmt: skip
def test_what_speaks_against_a_bundle(found, faults, says):
    said = _harm(found, _Faults(5, 50), _Faults(5 + faults[0], 50 + faults[1]))
    assert says in said and bool(says) == bool(said)


def test_counters_that_began_anew():
    assert "12 answers of 40" in _harm(experiment(), _Faults(5, 5_000), _Faults(12, 40))


@pytest.mark.parametrize(
    "settings", [{"share": 0.0}, {"share": 1.0}, {"minutes": 0.0}, {"minutes": float("nan")}]
)
def test_trials_that_cannot_be(settings):
    with pytest.raises(ConfigError):
        Trial(**settings)


def test_the_generation_before_counts_again(tmp_path):
    generations = Generations(tmp_path)
    for number in (1, 2):
        generations.folder(number).mkdir(parents=True)
        generations.switch(number)
    take_back(tmp_path, 1)  # another one counts
    assert generations.current() == 2
    take_back(tmp_path, 2)
    assert generations.current() == 1
    take_back(tmp_path, 1)
    assert generations.current() == 0
    (tmp_path / "bundle").mkdir()
    assert (tmp_path / "generations/current/bundle").is_dir()  # that of the run
    take_back(tmp_path, 0)
    assert generations.current() == 0


@pytest.mark.parametrize("more", [[], ["--service", "http://x", "--min-agreement", "0.5"]])
def test_a_trial_that_cannot_be_is_refused_before_any_training(capsys, more):
    with pytest.raises(SystemExit) as ended:
        main(["refresh", "--run", "nowhere", "--log", "new.csv", "--trial-share", "0.1", *more])
    assert ended.value.code == 2
    assert "give --trial-share with --service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--metrics", "nowhere/refresh.prom"], "no folder for nowhere/refresh.prom"),
        (["--service", "localhost:8000"], "no address of a service"),
        (["--service", "http://x", "--min-agreement", "30"], "is a share"),
    ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(capsys, more, said):
    with pytest.raises(SystemExit) as ended:
        main(["refresh", "--run", "nowhere", "--log", "new.csv", *more])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
