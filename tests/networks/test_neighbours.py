"""The neighbours of the latest events in torch: where they come from, and what they add."""

from __future__ import annotations

import copy
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilrec.errors import ConfigError
from distilrec.networks import neighbours, recurrent, transitions
from distilrec.networks.batches import batch_of, prediction_batch, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.neighbours import Neighbours
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.scoring import GROUND_TRUTH, Objective
from distilrec.training.trained import load_model, save_model, train_model
from distilrec.training.trainer import train
from distilrec.training.warm import carried_over
from tests import small_run

REPEATS = "neighbours.repeats"
CONFIG = RecurrentConfig(dim=8, max_history=12, neighbours=5, neighbour_events=3)
SHORT = TrainingConfig(epochs=2, batch_size=16)


@pytest.fixture(scope="module", params=[0, 2, 4])
def term(small, request):
    """Of the latest 3 events, and as many repeats as the parameter says."""
    made = Neighbours(small, 5, 3, request.param).eval()
    made.begin(small)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in (made.ages, made.repeats):
            weights.copy_(torch.randn(weights.shape, generator=generator))
    return made


def of_event(term, table, row, kind, age):
    """What an event adds to the scores of all items."""
    added = torch.zeros(term.warm)
    if age < 3:
        added += term.ages[kind, age].detach() * table[row]
    if age < term.repeats.shape[1]:
        added[row] += term.repeats[kind, age].detach()
    return added


@pytest.fixture(params=["regressed", "counted"])
def kind(request, monkeypatch):
    """How the transitions are found."""
    if request.param == "counted":
        monkeypatch.setattr(transitions, "REGRESSED_ITEMS", 0)


def largest(data, number, without=0, parts=5):
    """The transitions of all users (0), or of all but those of a part, from 1."""
    return transitions.largest_transitions(data, number, parts)[without]


def whole(term):
    """S as a table, (items, items)."""
    table = torch.zeros(term.warm, term.warm)
    return table.scatter(1, term.items.long(), term.values * term.units[:, None])


@pytest.mark.parametrize("repeats", [True, False])
def test_the_pattern_is_what_most_follows(small, repeats, kind):
    data = replace(small, info=msgspec.structs.replace(small.info, repeats=repeats))
    items, weights = largest(data, 5)
    assert items.shape == weights.shape == (small.info.warm_items, 5)
    assert items.min() >= 0
    assert items.max() < small.info.warm_items
    assert (np.diff(items, axis=1) > 0).all()
    itself = items == np.arange(len(items))[:, None]
    assert repeats or not np.isfinite(weights[itself]).any() or not itself.any()
    # No training row is in another part, and none of another part counts
    held_out = replace(data, items=np.where(data.is_training(), data.items, 0).astype(np.int32))
    again, values = largest(held_out, 5)
    np.testing.assert_array_equal(again, items)
    np.testing.assert_array_equal(values, weights)


def test_users_can_be_left_out(small, kind):
    """What these users did does not count: they may as well have done something else."""
    users = small.user_rows()
    changed = replace(small, items=np.where(users % 5 == 2, 0, small.items).astype(np.int32))
    for one, other in zip(
        largest(small, 5, without=3), largest(changed, 5, without=3), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    assert not np.allclose(largest(small, 5)[1], largest(changed, 5)[1], rtol=1e-2)


def test_what_was_asked_for_last_is_kept(small, kind):
    assert largest(small, 3) is largest(small, 3)
    changed = replace(small, items=np.zeros_like(small.items))
    assert not np.array_equal(largest(changed, 3)[1], largest(small, 3)[1])


def test_the_item_that_always_follows_is_found(small, kind):
    users, length, warm = small.users, 8, small.info.warm_items
    rng = np.random.default_rng(0)
    first = rng.integers(warm, size=(users, length // 2))
    log = np.stack([first, (first + 7) % warm], axis=2).reshape(users, length).astype(np.int32)
    ends = (np.arange(users) + 1) * length
    made = replace(
        small,
        offsets=np.concatenate([[0], ends]).astype(np.int64),
        train_end=ends.astype(np.int64),
        validation_end=ends.astype(np.int64),
        items=log.ravel(),
        events=np.zeros(log.size, np.int32),
        times=np.zeros(log.size),
    )
    items, weights = largest(made, 3)
    most = items[np.arange(warm), weights.argmax(1)]
    assert (most == (np.arange(warm) + 7) % warm).mean() > 0.9


@given(data=st.data())
def test_what_is_added_is_the_sum_over_the_latest_events(small, term, data):
    """To all items, to some of them, and to items that differ by position."""
    catalogue, warm = small.catalogue_size, term.warm
    kinds = len(small.info.event_types)
    drawn = st.lists(
        st.tuples(st.integers(0, catalogue), st.integers(0, kinds - 1)),
        min_size=term.events,
        max_size=term.events,
    )
    latest = [data.draw(drawn) for _ in range(4)]
    table, expected = whole(term), torch.zeros(4, catalogue)
    for row, events in enumerate(latest):
        for age, (item, kind) in enumerate(events):
            if 0 < item <= warm:
                expected[row, :warm] += of_event(term, table, item - 1, kind, age)
    state = torch.tensor([[*(i for i, _ in one), *(k for _, k in one)] for one in latest]).float()
    logits = torch.ones(4, catalogue)
    added = term.add(logits, state, None)
    assert added is logits  # no second tensor of this size
    torch.testing.assert_close(added.detach() - 1, expected, rtol=1e-5, atol=1e-5)
    some = torch.tensor(data.draw(st.lists(st.integers(0, warm - 1), min_size=1, unique=True)))
    few = term.add(torch.zeros(4, len(some)), state, some)
    torch.testing.assert_close(few.detach(), expected[:, some], rtol=1e-5, atol=1e-5)
    own = some.expand(4, -1)
    torch.testing.assert_close(
        term.of(state.unsqueeze(1), own).detach(), expected[:, some], rtol=1e-5, atol=1e-5
    )


def test_the_latest_events_are_those_before_the_position(small, term):
    users = np.array([0, 1, 2])
    histories = small.histories(users, small.offsets[users] + np.array([0, 2, 4]))
    batch = prediction_batch(histories, small.catalogue_size, 12)
    last = (batch.targets == 0).nonzero(as_tuple=True)
    latest = term.latest(batch, *last)
    for user in range(3):
        items = histories.of(user)[::-1][: term.events] + 1
        nothing = [0] * (term.events - len(items))
        assert latest[user, : term.events].tolist() == [*items, *nothing]
    model = build_model(CONFIG, small, 0).eval()
    vectors = model.items.vectors()
    torch.testing.assert_close(
        model.encode(batch, vectors)[last], model.encode_at(batch, vectors, *last)
    )


def test_in_training_a_user_meets_the_values_of_others(small, term):
    trained = copy.deepcopy(term).train()
    windows = training_windows(small, 12)
    batch = batch_of(small, windows, np.arange(20))
    window, place = (batch.targets >= 0).nonzero(as_tuple=True)
    latest = trained.latest(batch, window, place)
    assert latest.shape[1] == 2 * term.events + 1
    assert (latest[:, -1] == batch.users[window] % 5 + 1).all()
    added = trained.add(torch.zeros(len(window), term.warm), latest, None).detach()
    scale = neighbours._LARGEST / largest(small, 5)[1].max()
    expected = torch.zeros_like(added)
    for part in range(5):
        items, values = largest(small, 5, without=1 + part)
        table = torch.zeros(term.warm, term.warm).scatter(
            1, torch.from_numpy(items), scale * torch.from_numpy(values).clamp(min=0)
        )
        for row in (batch.users[window] % 5 == part).nonzero().flatten().tolist():
            for age in range(term.events):
                item, kind = int(latest[row, age]) - 1, int(latest[row, term.events + age])
                if 0 <= item < term.warm:
                    expected[row] += of_event(term, table, item, kind, age)
    torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-5)
    own = trained.of(latest.unsqueeze(1), torch.arange(term.warm).expand(len(window), -1))
    torch.testing.assert_close(own.detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_saved_student_has_its_pattern(small, tmp_path):
    trained = train_model(CONFIG, small, SHORT, seed=0)
    fresh = build_model(CONFIG, small, 0)
    assert not torch.equal(trained.model.neighbours.items, fresh.neighbours.items)
    save_model(trained, tmp_path)
    again = load_model(tmp_path, small).model
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_resumed_training_ends_as_one_in_one_go(small, tmp_path):
    once = build_model(CONFIG, small, 0)
    train(once, small, Objective(GROUND_TRUTH), SHORT, seed=0)

    class Stop(Exception):
        pass

    def stop(epoch, total):
        if epoch.epoch == 1:
            raise Stop

    options = RunOptions(checkpoint=tmp_path / "checkpoint", on_epoch=stop)
    with pytest.raises(Stop):
        train(
            build_model(CONFIG, small, 0),
            small,
            Objective(GROUND_TRUTH),
            SHORT,
            seed=0,
            options=options,
        )
    resumed = build_model(CONFIG, small, 0)
    train(
        resumed, small, Objective(GROUND_TRUTH), SHORT, seed=0,
        options=RunOptions(checkpoint=tmp_path / "checkpoint"),
    )  # fmt: skip
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)


def test_a_student_from_before_there_were_repeats_is_read(small):
    """With r = 0 it answers as it did."""
    was = build_model(msgspec.structs.replace(CONFIG, repeat_events=0), small, 0)
    now = build_model(msgspec.structs.replace(CONFIG, repeat_events=6), small, 1)
    weights = {name: one for name, one in was.state_dict().items() if name != REPEATS}
    now.load_state_dict(weights)
    assert not now.neighbours.repeats.any() and now.neighbours.repeats.numel()
    carried = carried_over(
        {name: one.numpy() for name, one in weights.items()}, now, small.info, small.info
    )
    assert torch.equal(carried[REPEATS], now.neighbours.repeats)


def test_repeats_are_learned_without_neighbours_too(small):
    """What is bought again in each second row is above what is not."""
    users, length = small.users, 10
    rng = np.random.default_rng(0)
    first = rng.integers(small.info.warm_items, size=(users, length // 2))
    log = np.stack([first, first], axis=2).reshape(users, length).astype(np.int32)
    ends = (np.arange(users) + 1) * length
    made = replace(
        small,
        offsets=np.concatenate([[0], ends]).astype(np.int64),
        train_end=ends - 2,
        validation_end=ends - 1,
        items=log.ravel(),
        events=np.zeros(log.size, np.int32),
        times=np.zeros(log.size),
        info=msgspec.structs.replace(small.info, repeats=True),
    )
    model = build_model(RecurrentConfig(dim=4, neighbours=0, dropout=0.0), made, 0)
    assert model.neighbours.repeats.shape[1] == 50
    train(
        model, made, Objective(GROUND_TRUTH), TrainingConfig(epochs=30, learning_rate=0.05), seed=0
    )
    learned = model.neighbours.repeats.detach()[0]
    assert learned[0] > learned[1] + 0.2


def test_a_student_has_no_more_neighbours_than_there_are_items(small):
    many = msgspec.structs.replace(CONFIG, neighbours=10_000)
    model = build_model(many, small, 0)
    model.begin(small)
    assert model.neighbours.items.shape == (small.info.warm_items, small.info.warm_items)


def test_a_catalogue_that_is_too_large_is_refused(small, monkeypatch):
    monkeypatch.setattr(recurrent, "LARGEST_CATALOGUE", 5)
    with pytest.raises(ConfigError, match="can have 5 items") as caught:
        build_model(CONFIG, small, 0)
    assert "neighbours = 0" in caught.value.fix
    none = msgspec.structs.replace(CONFIG, neighbours=0, repeat_events=0)
    assert build_model(none, small, 0).neighbours is None
    assert neighbours.LARGEST_CATALOGUE == 2**24


@pytest.mark.parametrize("repeats", [True, False])
def test_by_default_a_log_with_repeats_has_neighbours(small, repeats, monkeypatch):
    info = msgspec.structs.replace(small.info, repeats=repeats)
    dataset = replace(small, info=info)
    model = build_model(RecurrentConfig(dim=8), dataset, 0)
    assert (model.neighbours is not None) == repeats
    none = RecurrentConfig(dim=8, neighbours=0, repeat_events=0)
    assert build_model(none, dataset, 0).neighbours is None
    monkeypatch.setattr(recurrent, "_LARGEST_WITH_REPEATS", 5)
    large = build_model(RecurrentConfig(dim=8), dataset, 0).neighbours
    assert (large is not None) == repeats
    assert large is None or large.items.shape[1] == 0


@pytest.fixture(scope="module")
def in_visits(small):
    return small_run.in_visits(small)


def test_by_default_a_log_with_repeats_and_visits_knows_them(small, in_visits):
    def gap_of(dataset, **settings):
        return build_model(RecurrentConfig(dim=8, **settings), dataset, 0).visit_gap

    assert gap_of(in_visits) == 1800
    assert gap_of(in_visits, visit_gap=0) == 0
    assert gap_of(in_visits, visit_gap=600) == 600
    assert gap_of(in_visits, neighbours=0, repeat_events=0) == 0
    dates = replace(in_visits, times=np.floor(in_visits.times / 86_400) * 86_400)
    assert "dates" in dates.why_no_times
    assert gap_of(dates) == 1800
    never = replace(in_visits, times=1.5e9 + 7_200.0 * np.arange(len(small.items)))
    one = replace(in_visits, times=1.5e9 + np.arange(len(small.items)) % 7)
    untimed = replace(in_visits, times=np.zeros(len(small.items)))
    once = replace(in_visits, info=msgspec.structs.replace(in_visits.info, repeats=False))
    assert [gap_of(data) for data in (never, one, untimed, once)] == [0, 0, 0, 0]
    assert gap_of(never, visit_gap=600) == 600


def test_neighbours_are_those_of_one_visit(in_visits, kind):
    """What was bought in which visit does not matter where visits are known."""
    place = np.arange(len(in_visits.items)) - in_visits.offsets[in_visits.user_rows()]
    whole = in_visits.train_end - in_visits.offsets[:-1] >= 6  # two visits
    turned = in_visits.items.copy()
    for start in in_visits.offsets[:-1][whole]:
        turned[start : start + 6] = np.roll(turned[start : start + 6], 3)
    assert (turned[place < 6] != in_visits.items[place < 6]).any()
    swapped = replace(in_visits, items=turned)
    ours, theirs = (
        transitions.largest_transitions(data, 5, 5, 1800.0) for data in (in_visits, swapped)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-4, atol=1e-6)
    assert not np.allclose(largest(in_visits, 5)[1], largest(swapped, 5)[1], rtol=1e-2)


def test_what_is_in_the_basket_is_told_from_what_was_bought_before(in_visits):
    """Each user takes the same three items in each visit, in another order: never one twice in
    it.
    """
    place = np.arange(len(in_visits.items)) - in_visits.offsets[in_visits.user_rows()]
    drawn = np.random.default_rng(0).random(len(place))
    order = np.lexsort((drawn, place // 3, in_visits.user_rows()))
    items = (3 * in_visits.user_rows() + place[order] % 3) % in_visits.info.warm_items
    data = replace(in_visits, items=items.astype(np.int32))
    config = RecurrentConfig(dim=8, max_history=20, neighbours=0, repeat_events=4)
    term = train_model(
        config, data, TrainingConfig(epochs=40, batch_size=8, learning_rate=2e-2), seed=0
    ).model.neighbours
    this, earlier = (
        table[1:, :2].detach().mean() for table in (term.repeats, term.earlier_repeats)
    )
    assert this < -0.5 < 0.5 < earlier


def test_a_student_from_before_there_were_visits_is_read_and_trained_on(in_visits):
    visiting = msgspec.structs.replace(CONFIG, repeat_events=6, visit_gap=1800.0)
    was = build_model(msgspec.structs.replace(visiting, visit_gap=0.0), in_visits, 0)
    with torch.no_grad():
        was.neighbours.repeats.normal_(generator=torch.Generator().manual_seed(0))
    now = build_model(visiting, in_visits, 1)
    weights = {name: tensor.numpy() for name, tensor in was.state_dict().items()}
    histories = in_visits.histories(np.arange(9), in_visits.train_end[:9])
    expected = TorchScorer(was.eval()).scores(histories)
    for state in (
        was.state_dict(),
        carried_over(weights, now, in_visits.info, in_visits.info),
    ):
        now.load_state_dict(state)
        np.testing.assert_array_equal(TorchScorer(now.eval()).scores(histories), expected)
        torch.testing.assert_close(now.neighbours.earlier_repeats, was.neighbours.repeats)


def test_a_log_that_gets_its_first_repeat_is_trained_on(small):
    """With the weights that there were, and the neighbours of a fresh model."""
    was = build_model(RecurrentConfig(dim=8, neighbours=0, repeat_events=0), small, 0)
    now = build_model(RecurrentConfig(dim=8, neighbours=4), small, 1)
    weights = {name: tensor.numpy() for name, tensor in was.state_dict().items()}
    carried = carried_over(weights, now, small.info, small.info)
    torch.testing.assert_close(carried["mix.weight"], was.mix.weight.detach())
    torch.testing.assert_close(carried["neighbours.ages"], now.neighbours.ages.detach())
    now.load_state_dict(carried)
