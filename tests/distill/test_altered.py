"""Altered histories, about which a teacher that is asked gives the only labels."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from distilrec.distill.altered import Alteration, AlteredConfig
from distilrec.distill.distillation import distill_model
from distilrec.distill.losses import DistillationConfig
from distilrec.distill.sources import AskedTeacher
from distilrec.errors import ConfigError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.batches import batch_of, histories_at, training_windows
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.targets import EventRole, Targets
from distilrec.teachers.build import make_teacher
from distilrec.teachers.ease import EaseConfig
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.external import function_teacher
from distilrec.teachers.linear import LinearConfig
from distilrec.teachers.teacher import ModelTeacher
from distilrec.testing.students import small_dataset
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import train_model
from tests.small_run import in_visits

STUDENT = RecurrentConfig(dim=8, max_history=12, dropout=0.0)
TRAINING = TrainingConfig(epochs=3, batch_size=16, window=10, context=0.5)
FEW = LabelConfig(top_k=8, samples=8)
ALTERED = DistillationConfig(labels="asked", altered=AlteredConfig(share=0.5))
NONE = {"share": 0.5, "spliced": 0.0, "swapped": 0.0, "replaced": 0.0, "short": 0.0}


@pytest.fixture(scope="module")
def network(small):
    return ModelTeacher(train_model(STUDENT, small, TRAINING, seed=0))


@pytest.fixture
def batch(small):
    windows = training_windows(small, 10, 5)
    return batch_of(small, windows, np.arange(min(40, len(windows.starts))))


def altered(small, batch, seed=0, **settings):
    config = AlteredConfig(**{**NONE, **settings})
    return Alteration(config, small)(batch, np.random.default_rng(seed))


def contents(batch, row, small):
    """The events of a window that a position has seen, without the start token."""
    stop = int((batch.targets[row] >= 0).nonzero().max()) + 1
    found = [int(item) for item in batch.items[row, :stop]]
    return [item for item in found if item != small.catalogue_size]


def test_nothing_altered_is_the_same_window(small, batch):
    made = altered(small, batch)
    assert torch.equal(made.items, batch.items)
    assert torch.equal(made.events, batch.events)
    assert torch.equal(made.targets >= 0, batch.rows >= 0)
    assert (made.rows == -1).all()
    assert made.earlier.shape == (len(batch.items), 0)


def test_a_splice_has_the_beginning_of_another_window_and_its_own_end(small, batch):
    made = altered(small, batch, spliced=0.99)
    windows = [contents(batch, row, small) for row in range(len(batch.items))]
    changed = 0
    for row, own in enumerate(windows):
        found = contents(made, row, small)
        assert len(found) == len(own)
        assert any(found == other[:n] + own[n:] for other in windows for n in range(len(own) + 1))
        changed += found != own
    assert changed > len(windows) / 2


def test_swaps_keep_the_items(small, batch):
    made = altered(small, batch, swapped=0.5)
    changed = 0
    for row in range(len(batch.items)):
        own, found = contents(batch, row, small), contents(made, row, small)
        assert sorted(own) == sorted(found)
        changed += own != found
    assert changed > len(batch.items) / 2


def test_replaced_items_are_of_the_training(small, batch):
    made = altered(small, batch, replaced=0.9)
    inside = batch.items < small.catalogue_size
    differing = (made.items != batch.items)[inside].float().mean()
    assert 0.7 < float(differing) < 1.0
    assert int(made.items[inside].max()) < small.info.warm_items
    assert torch.equal(made.items[~inside], batch.items[~inside])


def test_short_histories_have_at_most_three_events(small, batch):
    made = altered(small, batch, short=0.999)
    for row in range(len(batch.items)):
        own, found = contents(batch, row, small), contents(made, row, small)
        if own:
            assert 1 <= len(found) <= 3
            assert any(found == own[n : n + len(found)] for n in range(len(own)))
            # The empty history and each event after it are asked about
            assert int((made.targets[row] >= 0).sum()) == len(found) + 1
            assert int(made.items[row, 0]) == small.catalogue_size


def test_the_generator_says_what_is_made(small, batch):
    settings = {"spliced": 0.5, "swapped": 0.2, "replaced": 0.2, "short": 0.2}
    one, again = (altered(small, batch, 3, **settings) for _ in range(2))
    other = altered(small, batch, 4, **settings)
    assert torch.equal(one.items, again.items)
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.items, other.items)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [ALTERED, msgspec.structs.replace(ALTERED, all_logits=False, temperature=2.0, hard_weight=0.1)],
)
@pytest.mark.parametrize("student", [STUDENT, SoftTreeConfig(depth=2, inputs=5, max_history=12)])
def test_a_student_learns_from_altered_histories(small, network, config, student):
    def distilled(config, **options):
        source = AskedTeacher(network, small, FEW)
        return distill_model(
            student, small, source, TRAINING, config, seed=0, options=RunOptions(**options)
        )

    trained, again = distilled(config), distilled(config)
    assert all(np.isfinite(epoch.loss) for epoch in trained.record.curve)
    assert trained.record.identity == again.record.identity
    plain = msgspec.structs.replace(config, altered=AlteredConfig())
    assert distilled(plain).record.identity != trained.record.identity


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_same_bits(small, network, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(epoch, total):
        if epoch.epoch == 2:
            raise Interrupted

    def distilled(**options):
        source = AskedTeacher(network, small, FEW)
        return distill_model(
            STUDENT, small, source, TRAINING, ALTERED, seed=3, options=RunOptions(**options)
        )

    with pytest.raises(Interrupted):
        distilled(checkpoint=tmp_path, on_epoch=stop)
    assert distilled(checkpoint=tmp_path).record.identity == distilled().record.identity


@pytest.mark.slow
@pytest.mark.parametrize("config", [LinearConfig(), EaseConfig()])
@pytest.mark.parametrize("log", ["plain", "visits", "negative events"])
def test_teachers_in_closed_form_are_asked_about_them(small, config, log, tmp_path):
    targets = Targets((EventRole("buy"), EventRole("view", role="negative")))
    data = {
        "plain": small,
        "visits": in_visits(small),
        "negative events": small_dataset(targets),
    }[log]
    teacher = make_teacher(config, data, TRAINING, tmp_path, seed=0)
    asked = AskedTeacher(teacher, data, FEW)
    once = msgspec.structs.replace(TRAINING, epochs=1)
    distilled = distill_model(STUDENT, data, asked, once, ALTERED, seed=0)
    plain = msgspec.structs.replace(ALTERED, altered=AlteredConfig())
    other = distill_model(STUDENT, data, asked, once, plain, seed=0)
    assert distilled.record.curve[-1].loss != other.record.curve[-1].loss


@pytest.mark.slow
def test_stored_labels_say_nothing_about_altered_histories(small, network, tmp_path):
    labels = extract_labels(network, small, tmp_path, FEW, seed=0)
    stored = msgspec.structs.replace(ALTERED, labels="stored")
    with pytest.raises(ConfigError, match="no stored labels") as at:
        distill_model(STUDENT, small, labels, TRAINING, stored, seed=0)
    assert 'labels = "asked"' in str(at.value)


@pytest.mark.slow
def test_altered_histories_need_a_soft_loss(small, network):
    config = msgspec.structs.replace(ALTERED, soft_weight=0.0, hard_weight=1.0)
    with pytest.raises(ConfigError, match="only a soft loss, and its weight is 0"):
        distill_model(STUDENT, small, AskedTeacher(network, small), TRAINING, config, seed=0)


@pytest.mark.slow
def test_a_member_with_one_list_per_user_says_nothing_about_them(small, network):
    lists = function_teacher(
        lambda histories: np.zeros((len(histories), small.info.warm_items), np.float32),
        small, identity="one list", per="user",
    )  # fmt: skip
    mixed = EnsembleTeacher([network, EnsembleTeacher([lists, network], [0.5, 1.0])], [1.0, 0.1])
    plain = msgspec.structs.replace(ALTERED, altered=AlteredConfig())
    distill_model(STUDENT, small, AskedTeacher(mixed, small), TRAINING, plain, seed=0)
    with pytest.raises(ConfigError, match="cannot be asked about altered histories"):
        distill_model(STUDENT, small, AskedTeacher(mixed, small), TRAINING, ALTERED, seed=0)


@pytest.mark.slow
def test_a_function_is_asked_about_the_altered_history(small, batch):
    """Not about that of the log, of which it knows the row."""
    lengths = []

    def scores(histories):
        lengths.extend(np.diff(histories.offsets).tolist())
        return np.zeros((len(histories), small.info.warm_items), np.float32)

    teacher = function_teacher(scores, small, identity="counting")
    made = altered(small, batch, short=0.999)
    window, position = (made.targets >= 0).nonzero(as_tuple=True)
    histories = histories_at(made, window, position, small.catalogue_size)
    lengths.clear()
    teacher.answer(made, window, position, small.info.warm_items)
    assert lengths == np.diff(histories.offsets).tolist()
    assert max(lengths) <= 3


def test_a_share_of_one_is_refused():
    with pytest.raises(ConfigError, match="share"):
        AlteredConfig(share=1.0)
