"""What events mean: which are to be predicted, which only inform, and which are negative."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import UNKNOWN_ITEM, load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Schema
from distilrec.data.splits import Split
from distilrec.errors import ConfigError, NotEnoughDataError
from distilrec.measure.ranking import Questions, questions, rank
from distilrec.measure.successive import successive_questions
from distilrec.networks.batches import batch_of, training_windows
from distilrec.report.baselines import item_knn, popularity
from distilrec.targets import EventRole, Targets, hidden_items, roles_of
from distilrec.teachers.ease import EaseConfig, fit_ease, shared_users

RATINGS = Targets((EventRole(target_from=4, negative_to=2),))
RATED = Schema(timestamp="timestamp", weight="rating")
SHOP = Targets(
    (
        EventRole("buy", loss_weight=3.0),
        EventRole("cart"),
        EventRole("view", role="inform"),
        EventRole("return", role="negative"),
    )
)
TYPED = Schema(timestamp="timestamp", event_type="event_type")


def rated(rows, targets=RATINGS, **choices):
    """The data set of rows of user, item and rating, in the order of time."""
    columns = ["user_id", "item_id", "rating"]
    log = pl.DataFrame(rows, columns, orient="row").with_row_index("timestamp", 1_600_000_000)
    return prepare_dataset(log, RATED, targets=targets, **choices)


def typed(rows, targets=SHOP, **choices):
    """The data set of rows of user, item and event type, in the order of time."""
    columns = ["user_id", "item_id", "event_type"]
    log = pl.DataFrame(rows, columns, orient="row").with_row_index("timestamp", 1_600_000_000)
    return prepare_dataset(log, TYPED, targets=targets, **choices)


def shop(seed=0, users=30, items=25):
    rng = np.random.default_rng(seed)
    kinds = ["view", "view", "cart", "buy", "return", "look"]
    return [
        (f"u{user}", f"i{rng.integers(items) if user else n % items}", str(rng.choice(kinds)))
        for user in range(users)
        for n in range(rng.integers(items, items + 5) if user == 0 else rng.integers(3, 30))
    ]


def event_types(dataset):
    return [dataset.info.event_types[kind] for kind in dataset.events]


def test_ratings_are_divided_by_their_value():
    ratings = [5, 1, 3, 4, 2, 3.5, 5, 4]
    rows = [(user, f"i{n}", rating) for user in "ab" for n, rating in enumerate(ratings)]
    dataset = rated(rows)
    target, inform, negative = "interaction", "interaction:inform", "interaction:negative"
    assert dataset.info.event_types == ("unknown", target, inform, negative)
    expected = [target, negative, inform, target, negative, inform, target, target]
    assert event_types(dataset) == 2 * expected
    assert dataset.roles.target.tolist() == [False, True, False, False]
    assert dataset.roles.negative.tolist() == [False, False, False, True]
    # The last target but one and the last one are held out.
    assert dataset.train_end.tolist() == [6, 14] and dataset.validation_end.tolist() == [7, 15]
    assert dataset.popularity().sum() == 4  # two users, two targets in training
    said = "\n".join(dataset.info.notes)
    assert "8 rows are targets: interaction 8" in said
    assert "4 rows only inform: interaction:inform 4" in said
    assert "4 rows are negative: interaction:negative 4" in said


@pytest.mark.parametrize(
    ("rule", "roles"),
    [
        (EventRole(target_from=4), "i i i t t"),
        (EventRole(negative_to=2), "n n t t t"),
        (EventRole(target_from=3, negative_to=2.5), "n n t t t"),
        (EventRole(target_from=5, negative_to=1), "n i i i t"),
    ],
)
def test_limits_may_be_left_out(rule, roles):
    rows = [(user, f"{user}{n}{k}", float(n)) for user in "ab" for k in "xyz" for n in range(1, 6)]
    dataset = rated(rows, Targets((rule,)))
    letters = {"interaction": "t", "interaction:inform": "i", "interaction:negative": "n"}
    found = {item: letters[kind] for item, kind in zip(item_names(dataset), event_types(dataset), strict=True)}  # fmt: skip
    assert " ".join(found[f"a{n}x"] for n in range(1, 6)) == roles


def item_names(dataset):
    return [dataset.info.item_ids[item] for item in dataset.items]


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["leave-one-out", "global-time"]))
def test_only_targets_are_held_out(seed, kind):
    dataset = typed(shop(seed), split=Split(kind=kind))
    is_target = dataset.is_target()
    if kind == "leave-one-out":
        for user in range(dataset.users):
            first, end = dataset.offsets[user : user + 2]
            targets = first + np.flatnonzero(is_target[first:end])
            held_out = targets[-2:] if len(targets) >= 3 else [end, end]
            assert [dataset.train_end[user], dataset.validation_end[user]] == list(held_out)
    for part in ("validation", "test"):
        asked = questions(dataset, part)
        starts, stops = dataset.part_bounds(part)
        wanted = {
            (user, item)
            for user in range(dataset.users)
            for item, counts in zip(
                dataset.items[starts[user] : stops[user]],
                is_target[starts[user] : stops[user]],
                strict=True,
            )
            if counts
        }
        got = set(zip(asked.users_of_targets().tolist(), asked.targets.tolist(), strict=True))
        assert got == wanted if not asked.exclude_seen else got <= wanted
        later = successive_questions(dataset, part)
        assert set(zip(later.users_of_targets().tolist(), later.targets.tolist(), strict=True)) <= wanted  # fmt: skip


def test_shares_of_a_split_in_time_are_of_targets():
    """The first half of the log is views alone."""
    rows = [(f"u{n % 7}", f"i{n % 11}", "view" if n < 1000 else "buy") for n in range(2000)]
    dataset = typed(rows, split=Split("global-time", validation_share=0.2, test_share=0.2))
    parts = [dataset.is_target() & (dataset.times >= 1_600_000_000 + n) for n in (1600, 1800)]
    held_out = [questions(dataset, part, exclude_seen=False) for part in ("validation", "test")]
    assert abs(int(parts[1].sum()) - 200) <= 1 and abs(int(parts[0].sum()) - 400) <= 1
    assert all(len(asked.histories) == 7 for asked in held_out)


def test_types_that_are_not_named_only_inform_and_are_counted():
    targets = Targets((*SHOP.events, EventRole("hide", role="negative")))
    dataset = typed(shop(), targets)
    looked = event_types(dataset).count("look")
    assert not dataset.is_target()[dataset.events == dataset.info.event_types.index("look")].any()
    note = "rows have event types that [targets] does not name, and only inform: look"
    assert f"{looked} {note} {looked}" in dataset.info.notes
    assert "[targets] names the event type 'hide', of which there is no row" in dataset.info.notes
    assert "hide" in dataset.info.event_types  # a service may get it


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (lambda: Targets(()), "no event type that is a target"),
        (lambda: Targets((EventRole("view", role="inform"),)), "no event type that is a target"),
        (lambda: Targets((EventRole("buy"), EventRole("buy"))), "'buy' two meanings"),
        (
            lambda: Targets((EventRole("a", target_from=1), EventRole("a:negative"))),
            "'a:negative' two meanings",
        ),
        (lambda: EventRole("a", target_from=2, negative_to=2), "negative_to below target_from"),
        (lambda: EventRole("a", role="inform", target_from=2), "leave out target_from"),
        (lambda: EventRole("a", role="negative", loss_weight=2.0), "leave out target_from"),
        (lambda: EventRole("a", loss_weight=0.0), "more than 0"),
    ],
)
def test_contradictions_are_refused(targets, message):
    with pytest.raises(ConfigError) as caught:
        targets()
    assert message in f"{caught.value.message} {caught.value.fix}"


def test_a_log_that_does_not_fit_is_refused():
    rows = shop()
    with pytest.raises(ConfigError, match="no column of weights"):
        typed(rows, RATINGS)
    with pytest.raises(NotEnoughDataError, match="no row of the log is a target; .* buy, cart"):
        typed(rows, Targets((EventRole("purchase"),)))
    weighed = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "rating": [1, 5],
                            "kind": ["like", "like:inform"]})  # fmt: skip
    schema = Schema(event_type="kind", weight="rating")
    with pytest.raises(ConfigError, match="type 'like:inform', which .* makes of 'like'"):
        prepare_dataset(weighed, schema, targets=Targets((EventRole("like", target_from=4),)))


def test_where_every_type_is_a_target_all_is_as_without():
    rows = [row for row in shop() if row[2] in ("view", "buy")]
    plain = typed(rows, None)
    named = typed(rows, Targets((EventRole("buy"), EventRole("view"))))
    for name, array in plain._arrays().items():
        np.testing.assert_array_equal(array, named._arrays()[name])
    assert plain.info.item_ids == named.info.item_ids
    windows = training_windows(plain, 6, 3)
    every = np.arange(len(windows.starts))
    one, other = (batch_of(dataset, windows, every) for dataset in (plain, named))
    assert other.unwanted is None and other.weights is None
    np.testing.assert_array_equal(one.targets, other.targets)


def test_a_prepared_data_set_keeps_what_events_mean(tmp_path):
    dataset = typed(shop())
    dataset.save(tmp_path)
    again = load_dataset(tmp_path)
    assert again.info.targets == SHOP and again.fingerprint() == dataset.fingerprint()
    assert dataset.fingerprint() != typed(shop(), None).fingerprint()


def test_workers_and_parts_change_nothing():
    rows = shop()
    whole, parts = (typed(rows, rows_per_part=size, cleaning=Cleaning(drop_duplicates=False)) for size in (10**6, 50))  # fmt: skip
    assert whole.fingerprint() == parts.fingerprint()


@given(seed=st.integers(0, 2**31))
def test_batches_say_what_follows(seed):
    dataset = typed(shop(seed), cleaning=Cleaning(drop_duplicates=False))
    windows = training_windows(dataset, 7, 3)
    batch = batch_of(dataset, windows, np.arange(len(windows.starts)))
    roles, seen = dataset.roles, set()
    for window, place in zip(*np.nonzero(batch.rows.numpy() >= 0), strict=True):
        row = int(batch.rows[window, place])
        item, kind = dataset.items[row], dataset.events[row]
        seen.add(row)
        assert batch.targets[window, place] == (item if roles.target[kind] else -1)
        assert batch.unwanted[window, place] == (item if roles.negative[kind] else -1)
        if roles.target[kind]:
            assert batch.weights[window, place] == roles.loss_weight[kind]
    assert seen == set(np.flatnonzero(dataset.is_training()))
    for window, start in enumerate(windows.starts):
        first = dataset.offsets[windows.users[window]]
        before = max(0, start - 1 - first)
        np.testing.assert_array_equal(
            batch.earlier_events[window, :before], dataset.events[first : first + before]
        )


def test_baselines_are_fitted_on_targets():
    rows = shop()
    dataset = typed(rows)
    counted = dataset.target_rows()
    np.testing.assert_array_equal(
        popularity(dataset).counts, np.bincount(dataset.items[counted], minlength=dataset.catalogue_size)
    )  # fmt: skip
    had = np.zeros((dataset.users, dataset.info.warm_items), np.float32)
    had[dataset.user_rows()[counted], dataset.items[counted]] = 1.0
    np.testing.assert_array_equal(shared_users(dataset), had.T @ had)
    # Views and returns of a history say nothing to them either.
    everyone = np.arange(dataset.users)
    histories = dataset.histories(everyone, dataset.train_end)
    for model in (fit_ease(EaseConfig(ridge=30.0), dataset), item_knn(dataset, [5])):
        expected = model.scores(histories.only(dataset.roles.target))
        np.testing.assert_array_equal(model.scores(histories), expected)


KINDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=20)


@given(events=KINDS)
def test_what_a_user_does_not_want_to_see(events):
    """By the rule, event by event: a negative event hides an item, a target event shows it again."""
    roles = roles_of(SHOP, ("unknown", "buy", "view", "return", "cart"))
    hidden = set()
    for item, kind in events:
        if roles.negative[kind]:
            hidden.add(item)
        elif roles.target[kind]:
            hidden.discard(item)
    items, kinds = (np.array([event[n] for event in events], np.int32) for n in (0, 1))
    assert hidden_items(items, kinds, roles).tolist() == sorted(hidden)


class Level:
    """Scores every item by its number."""

    def __init__(self, items):
        self.items = items

    def scores(self, histories):
        return np.tile(np.arange(self.items, dtype=np.float32), (len(histories), 1))


def test_a_ranking_leaves_out_what_a_user_does_not_want_to_see():
    dataset = typed(shop(), cleaning=Cleaning(drop_duplicates=False))
    assert dataset.info.repeats
    asked: Questions = questions(dataset, "test")
    ranking = rank(Level(dataset.catalogue_size), asked, dataset.catalogue_size)
    for k in range(len(asked.histories)):
        start, stop = asked.histories.offsets[k : k + 2]
        hidden = hidden_items(asked.histories.items[start:stop], asked.histories.events[start:stop], dataset.roles)  # fmt: skip
        shown = ranking.top[k][ranking.top[k] != UNKNOWN_ITEM]
        assert set(shown) == set(range(dataset.catalogue_size)) - set(hidden)
