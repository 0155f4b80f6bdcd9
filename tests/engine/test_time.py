"""A student that is told the time, in the engine: kernels against the formula, questions, stores, bundles that make no sense."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.bundle.format import erase_user, read_bundle
from distilrec.bundle.manifest import FORMAT_VERSION, HISTORY, WEIGHTS, WITH_TIME, WITH_VISITS
from distilrec.engine.loops import loops_of
from distilrec.engine.stored import StoredRecommender
from distilrec.engine.time_inputs import DAYS, HOURS, KNOTS
from distilrec.engine.web import write_drec
from distilrec.errors import BundleCorruptedError, ConfigError
from distilrec.export.export import export_bundle
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.stores import open_store
from distilrec.stores.records import StoredEvent
from distilrec.zones import zone_named
from tests.bundle.test_forged_bundles import forge_arrays, put, seal, swap
from tests.small_run import timed_student

CONFIG = RecurrentConfig(dim=8, max_history=12, time=True, timezone="Asia/Kolkata")
VISITS = RecurrentConfig(
    dim=8, max_history=12, neighbours=4, neighbour_events=3, repeat_events=5, visit_gap=7200.0
)
START, DAY = 1.65e9, 86_400.0  # after all events of the small log


@pytest.fixture(scope="module", params=["time", "visits"])
def made(small, tmp_path_factory, request):
    """The folder of a bundle for whose answers the time matters."""
    folder = tmp_path_factory.mktemp("timed")
    config = CONFIG if request.param == "time" else VISITS
    export_bundle(timed_student(config, small), small, folder)
    return folder


@pytest.fixture
def timed(made, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(made, tmp_path / "timed")


@pytest.fixture(scope="module", params=["numba", "numpy"])
def kernels(request):
    return loops_of(request.param)


def event(item, when, **more):
    return {"user_id": "a", "item_id": f"i{item}", "timestamp": when, **more}


def scores(recommender, now, user="a"):
    """All scores of a user, by item."""
    return {
        one.item_id: one.score
        for one in recommender.recommend(user, k=99, exclude_seen=False, now=now)
    }


def assert_same(ours, theirs):
    assert ours == pytest.approx(theirs, abs=1e-5)


# What is added


@settings(deadline=None)
@given(
    seed=st.integers(0, 1_000),
    gap=st.one_of(st.just(-1.0), st.integers(0, 200).map(float), st.floats(0, 1e10).map(np.floor)),
    local=st.floats(-1e9, 1e10).map(np.floor),
    dim=st.sampled_from([1, 3, 16]),
)
def test_tables_are_read_between_their_rows(kernels, seed, gap, local, dim):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(1 + KNOTS + HOURS + DAYS, dim)).astype(np.float32)
    user = rng.normal(size=dim).astype(np.float32)
    out = np.empty(dim, np.float32)
    kernels.add_time(user, table, float(gap), float(local), out)
    nothing, gaps, hours, days = np.split(table.astype(np.float64), [1, 1 + KNOTS, -DAYS])
    monday_first = (datetime(1970, 1, 1) + timedelta(seconds=local)).weekday()
    for c in range(dim):
        place = np.log(1 + max(gap, 0)) / np.log(4)
        of_gap = nothing[0, c] if gap < 0 else np.interp(place, np.arange(KNOTS), gaps[:, c])
        hour = np.interp(local % 86_400 / 3_600, np.arange(24), hours[:, c], period=24)
        expected = user[c] + of_gap + hour + days[(monday_first - 3) % 7, c]
        assert out[c] == pytest.approx(expected, abs=2e-5)


@settings(deadline=None)
@given(
    name=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kolkata", "Australia/Lord_Howe"]
    ),
    seconds=st.integers(0, 2_500_000_000),
)
def test_clocks_of_zones_are_those_of_python(name, seconds):
    expected = datetime.fromtimestamp(seconds, ZoneInfo(name)).utcoffset().total_seconds()
    assert zone_named(name).offset(seconds) == expected


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "Europe", "../etc/passwd", "utc+1"])
def test_a_zone_that_does_not_exist(name):
    with pytest.raises(ConfigError, match="no time zone") as problem:
        RecurrentConfig(time=True, timezone=name)
    assert problem.value.context["parameter"] == "timezone"


# Questions


@pytest.mark.parametrize("runtime", ["numba", "numpy"])
def test_answers_depend_on_when_they_are_asked_for(timed, runtime):
    recommender = load(timed, runtime=runtime)
    recommender.update([event(3, START)])
    soon, late = scores(recommender, START + 5), scores(recommender, START + 5 + 28 * DAY)
    assert max(abs(soon[item] - late[item]) for item in soon) > 0.01
    ranked = recommender.recommend("a", ["i1", "i2"], now=START + 5)
    assert {one.item_id: one.score for one in ranked} == pytest.approx(
        {item: soon[item] for item in ("i1", "i2")}, abs=1e-5
    )
    (many,) = recommender.recommend_many(["a"], k=99, exclude_seen=False, now=START + 5)
    assert {one.item_id: one.score for one in many} == soon
    assert scores(recommender, START + 5.9) == soon  # whole seconds count


def test_without_now_it_is_asked_at_the_time_of_the_clock(timed, monkeypatch):
    recommender = load(timed)
    monkeypatch.setattr(time, "time", lambda: START + 3 * DAY)
    recommender.update([{"user_id": "a", "item_id": "i3"}])  # happens now, too
    other = load(timed)
    other.update([event(3, START + 3 * DAY)])
    monkeypatch.setattr(time, "time", lambda: START + 5 * DAY)
    expected = scores(other, START + 5 * DAY)
    assert {
        one.item_id: one.score for one in recommender.recommend("a", k=99, exclude_seen=False)
    } == expected
    assert recommender.explain("a", "i9") == other.explain("a", "i9", now=START + 5 * DAY)


def test_the_history_says_when_the_last_event_was(timed, small):
    """A user of the history is asked as one whose events were sent with their times."""
    recommender = load(timed)
    for user in (0, 7):
        rows = slice(small.offsets[user], small.offsets[user + 1])
        kinds = small.info.event_types
        log = [
            {
                "user_id": "a",
                "item_id": small.info.item_ids[item],
                "event_type": kinds[kind],
                "timestamp": when,
            }
            for item, kind, when in zip(
                small.items[rows], small.events[rows], small.times[rows], strict=True
            )
            if item >= 0
        ]
        other = load(timed)
        other.update(log)
        name = small.info.user_ids[user]
        recommender.set_user(name, {})
        other.set_user("a", {})
        assert_same(scores(recommender, START, name), scores(other, START))
        ours = recommender.explain(name, "i9", k=99, now=START)
        theirs = other.explain("a", "i9", k=99, now=START)
        assert [one.item_id for one in ours] == [one.item_id for one in theirs]
        assert [one.contribution for one in ours] == pytest.approx(
            [one.contribution for one in theirs], abs=1e-4
        )


@pytest.mark.parametrize("now", [np.nan, np.inf, -1.0, True, "soon", 1.65e12])
def test_what_is_no_time(timed, bundle, now):
    """Of a student that is told the time and of one that is not."""
    for folder in (timed, bundle):
        recommender = load(folder)
        for ask in (
            lambda: recommender.recommend("u1", now=now),  # noqa: B023
            lambda: recommender.recommend("u1", ["i1"], now=now),  # noqa: B023
            lambda: recommender.explain("u1", "i1", now=now),  # noqa: B023
        ):
            with pytest.raises(ConfigError, match="not a time between 1970 and now") as problem:
                ask()
            assert problem.value.context["parameter"] == "now"
            assert problem.value.http_status == 422


def test_a_wrong_timestamp_changes_nothing(timed):
    recommender = load(timed)
    before = scores(recommender, START)
    with pytest.raises(ConfigError, match="is not a time") as problem:
        recommender.update([event(3, START), event(4, -5.0)])
    assert problem.value.context["parameter"] == "events[1].timestamp"
    assert scores(recommender, START) == before


def test_a_question_from_before_the_last_event(timed):
    """Clocks that differ by minutes are taken for the same; more is refused."""
    recommender = load(timed)
    recommender.update([event(3, START)])
    at_last = scores(recommender, START)
    earlier = START - 120
    other = load(timed)
    other.update([event(3, earlier)])  # a gap of 0 at this hour
    assert_same(scores(recommender, earlier), scores(other, earlier))
    assert at_last.keys() == scores(recommender, earlier).keys()
    for ask in (recommender.recommend, lambda user, now: recommender.explain(user, "i1", now=now)):
        with pytest.raises(ConfigError, match="last event of this user happened later") as problem:
            ask("a", now=START - 301)
        assert problem.value.context["parameter"] == "now"


def test_a_clock_that_was_set_back_is_no_mistake_of_a_caller(timed, monkeypatch):
    recommender = load(timed)
    recommender.update([event(3, START)])
    monkeypatch.setattr(time, "time", lambda: START - 5 * DAY)
    assert len(recommender.recommend("a", k=5)) == 5


def test_a_student_that_is_not_told_the_time_answers_the_same_at_any(bundle):
    recommender = load(bundle)
    recommender.update([event(3, "not read")])
    assert scores(recommender, START) == scores(recommender, START + 90 * DAY)
    assert recommender.explain("a", "i1") == recommender.explain("a", "i1", now=START)


def test_a_session_is_told_at_a_time(timed):
    """Its events happen when they say so, or when it is told; none of them happens later."""
    recommender = load(timed)
    known = [event(3, START), event(9, START + DAY)]
    recommender.update(known)
    now = START + 9 * DAY
    for history, same in (
        (["i20"], [event(20, now)]),
        ([{"item_id": "i20", "timestamp": now - 3_000}], [event(20, now - 3_000)]),
        ([], []),
    ):
        other = load(timed)
        other.update([*known, *same])
        session = recommender.session(history, "a", now=now)
        assert_same(scores(recommender, now, session), scores(other, now))
        assert [one.item_id for one in recommender.explain(session, "i1", now=now)] == [
            one.item_id for one in other.explain("a", "i1", now=now)
        ]
    with pytest.raises(ConfigError, match="not a time between 1970 and now"):
        recommender.session([{"item_id": "i20", "timestamp": now + 400}], "a", now=now)
    with pytest.raises(ConfigError, match="not a time between 1970 and now"):
        recommender.session(["i20"], "a", now=np.nan)


def test_a_late_event_neither_ends_a_visit_nor_makes_the_last_event_older(timed):
    """Where it cannot be put in its place it happened with the last one."""
    known, now = [event(3, START), event(9, START + 60)], START + 120
    recommender, other = load(timed), load(timed)
    recommender.update([*known, event(20, START - DAY)])
    other.update([*known, event(20, START + 60)])
    assert_same(scores(recommender, now), scores(other, now))
    for one in (recommender, other):
        one.update([event(1, START + 200)])
    assert_same(scores(recommender, START + 300), scores(other, START + 300))
    ours, theirs = (one.explain("a", "i5", k=9, now=START + 300) for one in (recommender, other))
    assert ours == theirs
    recommender, other = load(timed), load(timed)
    for one in (recommender, other):
        one.update(known)
    late, last = ([{"item_id": "i20", "timestamp": when}] for when in (START - DAY, START + 60))
    assert_same(
        scores(recommender, now, recommender.session(late, "a", now=now)),
        scores(other, now, other.session(last, "a", now=now)),
    )


# Stores


LOG = [
    event(item, START + 3_000.0 * 5**n, event_id=f"{n}") for n, item in enumerate((3, 9, 20, 1, 2))
]
AFTER = START + 5 * 3_000 * 5**4


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def address(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return request.getfixturevalue("redis_server").url


@pytest.fixture
def ordered(timed):
    """A recommender without a store that followed the events in order."""
    recommender = load(timed)
    recommender.update(LOG)
    return recommender


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 4, 4, 1, 3), (4, 3, 2, 1, 0)])
def test_events_are_in_the_next_answer_at_their_times(timed, address, ordered, order):
    """Also late ones, those sent twice, and after a restart."""
    store = open_store(address)
    live = StoredRecommender(load(timed), store)
    for n in order:
        live.update([LOG[n]])
        live.recommend("a", now=AFTER)
    store.close()
    again = open_store(address)
    for stored in (live, StoredRecommender(load(timed), again)):
        if stored is not live:
            stored.recommend("a", now=AFTER)
        recommender = stored.recommender
        assert_same(scores(recommender, AFTER), scores(ordered, AFTER))
        ours, theirs = (one.explain("a", "i9", k=9, now=AFTER) for one in (recommender, ordered))
        assert [one.item_id for one in ours] == [one.item_id for one in theirs]
        assert [one.contribution for one in ours] == pytest.approx(
            [one.contribution for one in theirs], abs=1e-4
        )
    again.close()


def test_each_event_is_in_the_very_next_answer(timed, tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    live, plain = StoredRecommender(load(timed), store), load(timed)
    for n, one in enumerate(LOG):
        live.update([one])
        plain.update([one])
        now = START + 3_000.0 * 5**n + 60
        answers = live.recommend("a", k=99, exclude_seen=False, now=now)
        assert_same({a.item_id: a.score for a in answers}, scores(plain, now))
    store.close()


def test_a_late_event_behind_the_history_leaves_its_visit_open(timed, small, tmp_path):
    """The history of a bundle cannot be folded again without it."""
    user = small.info.user_ids[3]
    last = float(small.times[small.offsets[4] - 1])
    found = {}
    for when in (last, last - DAY):
        store = open_store(f"sqlite:///{tmp_path / f'{when:.0f}.db'}")
        live = StoredRecommender(load(timed), store)
        live.update([{**event(20, when), "user_id": user}])
        found[when] = [
            {a.item_id: a.score for a in live.recommend(user, k=99, exclude_seen=False, now=now)}
            for now in (last + 60, last + 3 * DAY)
        ]
        store.close()
    for ours, theirs in zip(*found.values(), strict=True):
        assert_same(ours, theirs)


def test_a_stored_event_that_the_history_holds_does_not_change_its_time(timed, small):
    """It is known from the log, which says when it happened."""
    recommender = load(timed)
    user = small.info.user_ids[3]
    before = scores(recommender, START, user)
    item = small.info.item_ids[small.items[small.offsets[4] - 1]]
    end = read_bundle(timed).history.end
    old = StoredEvent(user, item, "view", end - 10 * DAY, end - 10 * DAY, "old")
    recommender.follow(old, 1)
    assert scores(recommender, START, user) == before


# Bundles


@pytest.mark.parametrize(
    ("made", "version", "field", "value"),
    [
        ("time", WITH_TIME, "timezone", "Asia/Kolkata"),
        ("visits", WITH_VISITS, "visit_gap", 7200.0),
    ],
    indirect=["made"],
)
def test_a_bundle_says_that_the_time_matters(made, version, field, value, finished_run):
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["format_version"], manifest[field]) == (version, value)
    for golden in manifest["golden"]:
        assert len(golden["times"]) == len(golden["items"])
        assert golden["now"] >= max(golden["times"], default=0)
    plain = json.loads((finished_run.bundle / "manifest.json").read_text())
    assert plain["format_version"] == FORMAT_VERSION
    assert field not in plain and "now" not in plain["golden"][0]
    assert read_bundle(finished_run.bundle).history.last_times is None


def test_an_erased_user_leaves_the_times_of_the_others(timed, small):
    recommender = load(timed)
    others = [name for name in small.info.user_ids[:9] if name != small.info.user_ids[4]]
    before = {name: scores(recommender, START, name) for name in others}
    assert erase_user(timed, small.info.user_ids[4])
    after = load(timed)
    assert {name: scores(after, START, name) for name in others} == before


def renamed(zone):
    def change(manifest):
        manifest["timezone"] = zone

    return change


@pytest.mark.parametrize(
    ("made", "file", "change", "message"),
    [
        ("time", WEIGHTS, lambda arrays: arrays.pop("time_gaps"), "has no array 'time_gaps'"),
        ("time", WEIGHTS, lambda arrays: arrays.pop("time_nothing"), "has no array 'time_nothing'"),
        ("time", WEIGHTS, lambda arrays: arrays.pop("time_hours"), "has no array 'time_hours'"),
        ("time", WEIGHTS, lambda arrays: arrays.pop("time_days"), "has no array 'time_days'"),
        ("time", WEIGHTS, swap("time_gaps", lambda a: a[:-1]), "'time_gaps' is"),
        (
            "time",
            WEIGHTS,
            swap("time_gaps", lambda a: a.astype(np.float64)),
            "'time_gaps' is .* float64",
        ),
        ("time", WEIGHTS, put("time_days", (0, 0), np.nan), "'time_days' holds NaN"),
        (
            "time",
            WEIGHTS,
            swap("time_hours", lambda a: a[::-1]),
            "does not reproduce the golden answers",
        ),
        ("time", HISTORY, lambda arrays: arrays.pop("last_times"), "has no array 'last_times'"),
        ("time", HISTORY, put("last_times", (0, 1), np.nan), "times that are NaN"),
        ("time", HISTORY, swap("last_times", lambda a: a[1:]), "'last_times' is"),
        ("visits", WEIGHTS, lambda arrays: arrays.pop("earlier_ages"), "visit_gap or weights"),
        ("visits", WEIGHTS, lambda arrays: arrays.pop("earlier_repeats"), "'earlier_repeats'"),
        ("visits", WEIGHTS, lambda arrays: arrays.pop("visit_inputs"), "'visit_inputs'"),
        ("visits", WEIGHTS, swap("earlier_ages", lambda a: a[:, 1:]), "'earlier_ages' is"),
        ("visits", WEIGHTS, put("visit_inputs", (0, 0), np.nan), "'visit_inputs' holds NaN"),
        ("visits", WEIGHTS, swap("visit_inputs", lambda a: a[::-1]), "golden answers"),
        ("visits", HISTORY, lambda arrays: arrays.pop("visits"), "has no array 'visits'"),
        (
            "visits",
            HISTORY,
            put("visits", 0, 0),
            "visits of more events than there are, or of none",
        ),
        ("visits", HISTORY, put("visits", 0, 99), "visits of more events than there are"),
        ("visits", HISTORY, lambda arrays: arrays.pop("last_times"), "has no array 'last_times'"),
    ],
    indirect=["made"],
)
def test_arrays_that_make_no_sense(timed, file, change, message):
    forge_arrays(timed, file, change)
    with pytest.raises(BundleCorruptedError, match=message) as caught:
        load(timed)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("made", "change", "message"),
    [
        ("time", renamed("Mars/Olympus"), "time zone that cannot be used"),
        ("time", renamed(""), "time zone that cannot be used"),
        ("time", lambda manifest: manifest.pop("timezone"), "golden questions with times"),
        (
            "time",
            lambda manifest: manifest["golden"][1].pop("now"),
            "golden questions without times",
        ),
        (
            "time",
            lambda manifest: manifest["golden"][2]["times"].pop(),
            "golden questions without times",
        ),
        ("visits", lambda manifest: manifest.pop("visit_gap"), "golden questions with times"),
        ("visits", lambda manifest: manifest["golden"][1].pop("now"), "questions without times"),
        ("visits", lambda manifest: manifest.update(visit_gap=0.0), "an impossible visit_gap"),
    ],
    indirect=["made"],
)
def test_manifests_that_make_no_sense(timed, change, message):
    manifest = json.loads((timed / "manifest.json").read_text())
    change(manifest)
    seal(timed, manifest)
    with pytest.raises(BundleCorruptedError, match=message):
        load(timed)


def test_a_zone_without_arrays(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["timezone"] = "UTC"
    for golden in manifest["golden"]:
        golden |= {"times": [START] * len(golden["items"]), "now": START}
    forge_arrays(bundle, HISTORY, lambda arrays: arrays.update(last_times=np.zeros((60, 2))))
    seal(bundle, manifest)
    with pytest.raises(BundleCorruptedError, match="no arrays that read the time"):
        load(bundle)


@pytest.mark.parametrize("made", ["time"], indirect=True)
def test_it_is_not_exported_for_the_web(timed, tmp_path):
    with pytest.raises(ConfigError, match="told the time cannot be exported for the web"):
        write_drec(read_bundle(timed), tmp_path / "student.drec")
    assert not (tmp_path / "student.drec").exists()


def test_the_command_line_asks_at_a_time(timed, small):
    user, now = small.info.user_ids[0], START + 7 * DAY
    command = [sys.executable, "-m", "distilrec.cli", "recommend", "--bundle", str(timed)]
    asked = [*command, "--user_id", user, "--k", "3", "--explain", "--json", "--now"]
    done = subprocess.run([*asked, str(now)], capture_output=True, text=True, check=True)
    recommender = load(timed)
    for item, one in zip(
        json.loads(done.stdout)["items"], recommender.recommend(user, k=3, now=now), strict=True
    ):
        assert (item["item_id"], item["score"]) == (one.item_id, pytest.approx(one.score, abs=1e-5))
        expected = recommender.explain(user, one.item_id, 3, now=now)
        assert [why["contribution"] for why in item["because"]] == pytest.approx(
            [why.contribution for why in expected], abs=1e-5
        )
    wrong = subprocess.run([*asked, "-5"], capture_output=True, text=True, check=False)
    assert wrong.returncode
    assert "not a time between 1970 and now" in wrong.stderr
