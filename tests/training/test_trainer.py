from __future__ import annotations

import mmap
import platform
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from distilrec.distill.distillation import DistillationConfig, distill_model, distillation_loss
from distilrec.distill.losses import hard_loss, soft_losses_stored
from distilrec.errors import ConfigError, LabelStoreError, TrainingError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.labels.store import open_labels
from distilrec.measure.ranking import questions
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.training import trainer
from distilrec.training.checkpoints import _CHECKPOINT
from distilrec.training.memory import peak_memory, reset_peak_memory, reuse_freed_memory
from distilrec.training.options import Epoch, RunOptions, TrainingConfig, TrainingResult
from distilrec.training.scoring import (
    MASKED_LOGIT,
    Objective,
    Sampled,
    Scored,
    encode_positions,
    ground_truth,
    score_positions,
    seen_so_far,
)
from distilrec.training.trained import finished, train_model
from distilrec.training.trainer import train
from distilrec.training.validation import mean_ndcg, sample_of, validation_ndcg
from distilrec.training.warm import Start
from tests.small_run import dataset

pytestmark = pytest.mark.slow

STUDENT = RecurrentConfig(dim=8, max_history=12)
TRAINING = TrainingConfig(epochs=6, patience=6, batch_size=16)


class Interrupted(Exception):
    pass


def interrupt_after(epochs):
    def on_epoch(epoch, total):
        if epoch.epoch == epochs:
            raise Interrupted

    return on_epoch


def weights(trained):
    return trained.model.state_dict()


def test_a_resumed_run_equals_an_uninterrupted_one(small, tmp_path):
    whole = train_model(STUDENT, small, TRAINING, seed=3)
    with pytest.raises(Interrupted):
        train_model(
            STUDENT,
            small,
            TRAINING,
            seed=3,
            options=RunOptions(checkpoint=tmp_path / "c", on_epoch=interrupt_after(2)),
        )
    epochs = []
    resumed = train_model(
        STUDENT,
        small,
        TRAINING,
        seed=3,
        options=RunOptions(
            checkpoint=tmp_path / "c", on_epoch=lambda epoch, _: epochs.append(epoch.epoch)
        ),
    )
    assert epochs == [3, 4, 5, 6]
    assert all(torch.equal(weights(whole)[name], weights(resumed)[name]) for name in weights(whole))
    assert whole.record.identity == resumed.record.identity


def test_a_checkpoint_of_another_run_is_refused(small, tmp_path):
    with pytest.raises(Interrupted):
        train_model(
            STUDENT,
            small,
            TRAINING,
            seed=3,
            options=RunOptions(checkpoint=tmp_path, on_epoch=interrupt_after(1)),
        )
    with pytest.raises(TrainingError, match="belongs to a run with another seed"):
        train_model(STUDENT, small, TRAINING, seed=4, options=RunOptions(checkpoint=tmp_path))
    saved = _CHECKPOINT.read(tmp_path)
    _CHECKPOINT.write(
        tmp_path, saved.about, {"epoch": saved.arrays("epoch") | {"model/theta": np.zeros((1, 2))}}
    )
    with pytest.raises(TrainingError, match="another version of distilrec"):
        train_model(STUDENT, small, TRAINING, seed=3, options=RunOptions(checkpoint=tmp_path))
    (epoch,) = tmp_path.glob("epoch-*.safetensors")
    epoch.write_bytes(b"half a file")
    with pytest.raises(TrainingError, match=r"epoch-\w+\.safetensors has 11 bytes instead of"):
        train_model(STUDENT, small, TRAINING, seed=3, options=RunOptions(checkpoint=tmp_path))


def test_the_best_epoch_is_kept_and_training_stops_early(small):
    trained = train_model(
        STUDENT, small, TrainingConfig(epochs=40, patience=2, batch_size=16), seed=0
    )
    curve = trained.record.curve
    best = trained.record.best_epoch
    assert len(curve) == best + 2 < 40
    assert curve[best - 1].validation_ndcg == max(point.validation_ndcg for point in curve)
    assert validation_ndcg(TorchScorer(trained.model), small) == curve[best - 1].validation_ndcg


def test_epochs_are_compared_on_a_sample_and_what_is_kept_is_measured_on_all(small, tmp_path):
    config = msgspec.structs.replace(TRAINING, validation_users=7)
    whole = train_model(STUDENT, small, config, seed=3)
    record = whole.record
    asked = questions(small, "validation")
    sample = sample_of(asked, 7, 3)
    assert len(sample.histories) == 7
    scorer = TorchScorer(whole.model)
    assert mean_ndcg(scorer, sample) == record.curve[record.best_epoch - 1].validation_ndcg
    assert whole.best_ndcg == record.validation_ndcg == validation_ndcg(scorer, small)
    assert whole.best_ndcg != mean_ndcg(scorer, sample)
    with pytest.raises(Interrupted):
        train_model(
            STUDENT,
            small,
            config,
            seed=3,
            options=RunOptions(checkpoint=tmp_path, on_epoch=interrupt_after(1)),
        )
    resumed = train_model(STUDENT, small, config, seed=3, options=RunOptions(checkpoint=tmp_path))
    assert resumed.record.identity == record.identity
    assert resumed.best_ndcg == whole.best_ndcg


def test_the_sample_follows_from_the_seed_and_keeps_what_was_asked(small):
    asked = questions(small, "validation")
    users = len(asked.histories)
    for number in (0, users, users + 1, 20_000):
        assert sample_of(asked, number, 0) is asked
    one, again, other = sample_of(asked, 9, 0), sample_of(asked, 9, 0), sample_of(asked, 9, 1)
    assert np.array_equal(one.histories.users, again.histories.users)
    assert not np.array_equal(one.histories.users, other.histories.users)
    assert len(np.unique(one.histories.users)) == 9
    for place, user in enumerate(one.histories.users):
        (before,) = np.flatnonzero(asked.histories.users == user)
        assert np.array_equal(one.histories.of(place), asked.histories.of(before))
        assert np.array_equal(
            one.select(place, place + 1).targets, asked.select(before, before + 1).targets
        )


def test_training_learns():
    """Everybody takes the items in turn, from a place of their own: what comes next follows from the last one."""
    turns = dataset()
    users = turns.user_rows()
    places = np.arange(len(users)) - turns.offsets[users]
    turns.items[:] = (users + places) % turns.info.warm_items
    before = validation_ndcg(TorchScorer(build_model(STUDENT, turns, 0)), turns)
    training = TrainingConfig(epochs=30, patience=30, batch_size=16, learning_rate=1e-2)
    curve = train_model(STUDENT, turns, training, seed=0).record.curve
    assert curve[-1].loss < curve[0].loss
    assert max(epoch.validation_ndcg for epoch in curve) > before + 0.2


def test_test_rows_do_not_reach_the_training():
    """The trained weights stay the same whatever stands in the test rows."""
    one, two = dataset(), dataset()
    two.items[two.validation_end] = (two.items[two.validation_end] + 1) % two.catalogue_size
    a = train_model(STUDENT, one, TRAINING, seed=0)
    b = train_model(STUDENT, two, TRAINING, seed=0)
    assert all(torch.equal(weights(a)[name], weights(b)[name]) for name in weights(a))


def test_seen_items_are_the_whole_history_so_far(small):
    """Also that part of it which lies before the window."""
    for batch in training_batches(small, training_windows(small, 4), 16, None):
        window, position = (batch.targets >= 0).nonzero(as_tuple=True)
        seen = seen_so_far(batch, small.catalogue_size, window, position).among(
            slice(small.info.warm_items)
        )
        for n, row in enumerate(batch.rows[window, position].tolist()):
            history = small.items[small.offsets[batch.users[window[n]]] : row]
            assert set(seen[n].nonzero().flatten().tolist()) == set(history.tolist())
        assert not seen[torch.arange(len(window)), batch.targets[window, position]].any()


@pytest.mark.parametrize("training", [TRAINING, msgspec.structs.replace(TRAINING, negatives=7)])
def test_users_of_whom_none_had_some_item(small, training):
    """It is in the catalogue as before, and the training of these users has a loss."""
    few = small.select_users(np.arange(3))
    assert (few.popularity()[: few.info.warm_items] == 0).any()
    trained = train_model(STUDENT, few, training, seed=0)
    assert all(np.isfinite(epoch.loss) for epoch in trained.record.curve)
    assert np.isfinite(TorchScorer(trained.model).scores(few.histories(
        np.arange(3), few.train_end))).all()  # fmt: skip


@pytest.mark.parametrize(
    ("window", "context", "length", "seen"),
    [(0, 0.0, 12, 0), (6, 0.5, 6, 3), (99, 0.25, 12, 3), (1, 0.9, 1, 0)],
)
def test_windows_of_a_training(small, monkeypatch, window, context, length, seen):
    """Their length, never above what the network looks at, and the part of them that is only seen."""
    asked = []

    def recorded(*arguments):
        asked.append(arguments[1:])
        return training_windows(*arguments)

    monkeypatch.setattr(trainer, "training_windows", recorded)
    training = msgspec.structs.replace(TRAINING, window=window, context=context, epochs=2)
    trained = train_model(STUDENT, small, training, seed=0)
    assert STUDENT.max_history == 12
    assert asked == [(length, seen, None)]
    assert all(np.isfinite(epoch.loss) for epoch in trained.record.curve)


@pytest.mark.parametrize("good", [True, False])
def test_a_training_that_goes_on_keeps_the_earlier_weights_where_no_epoch_is_better(
    small, tmp_path, good
):
    before = build_model(STUDENT, small, 1)
    if good:
        before = train_model(
            STUDENT, small, msgspec.structs.replace(TRAINING, epochs=2), seed=0
        ).model
    weights = {name: of.clone() for name, of in before.state_dict().items()}
    start = Start(weights, small.offsets[:-1], "key")
    longer = msgspec.structs.replace(TRAINING, epochs=4, learning_rate=0.05, averaging=0.0)

    def trained(**options):
        return train_model(
            STUDENT, small, longer, seed=0, start=start, options=RunOptions(**options)
        )

    after = trained()
    now = after.model.state_dict()
    same = all(torch.equal(now[name], of) for name, of in weights.items())
    assert same == good == (after.record.best_epoch == 0)
    best = mean_ndcg(TorchScorer(after.model), questions(small, "validation"))
    assert after.best_ndcg == pytest.approx(best)
    curve = [epoch.validation_ndcg for epoch in after.record.curve]
    assert (
        after.best_ndcg == max(curve) if after.record.best_epoch else after.best_ndcg >= max(curve)
    )

    def stop(epoch, total):
        if epoch.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(checkpoint=tmp_path, on_epoch=stop)
    assert trained(checkpoint=tmp_path).record.identity == after.record.identity


def test_a_loss_that_is_not_finite_stops_the_training(small):
    model = build_model(STUDENT, small, 0)
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1"):
        nothing = Objective(lambda scored: scored.logits.sum() * float("nan"))
        train(model, small, nothing, TRAINING, seed=0)


def test_a_student_has_a_dropout_of_its_own_while_it_is_distilled(small, tmp_path):
    teacher = build_model(DnnConfig(dim=8, hidden=8, layers=1, max_history=12), small, 0)
    trained = finished(
        teacher, DnnConfig(dim=8), 0, small, TrainingResult((Epoch(1, 1.0, 0.1, 0.5),), 1)
    )
    labels = extract_labels(trained, small, tmp_path, LabelConfig(top_k=5, samples=5), seed=0)
    config = RecurrentConfig(dim=8, max_history=12, dropout=0.5)

    def distilled(config, dropout):
        training = TrainingConfig(epochs=2, patience=2, batch_size=16)
        return distill_model(
            config, small, labels, training, DistillationConfig(dropout=dropout), seed=0
        )

    without = distilled(config, 0.0)
    assert without.record.config == RecurrentConfig(dim=8, max_history=12, dropout=0.0)
    assert distilled(config, 0.5).record.config == config
    assert distilled(config, 0.5).record.identity != without.record.identity
    assert distilled(SoftTreeConfig(depth=2, max_history=12), 0.0).record.config == SoftTreeConfig(
        2, max_history=12
    )


@pytest.mark.parametrize("config", [STUDENT, MlpConfig(dim=8, hidden=8, max_history=12)])
def test_distillation_pulls_the_student_to_the_teacher(config, small, tmp_path):
    teacher = train_model(
        DnnConfig(dim=8, hidden=32, layers=1, max_history=12), small, TRAINING, seed=0
    )
    # A teacher with opinions that the data does not support: only its labels can pass them on
    with torch.no_grad():
        torch.manual_seed(0)
        teacher.model.items.bias += torch.randn(small.info.warm_items)
    labels = extract_labels(
        teacher, small, tmp_path, LabelConfig(top_k=20, samples=20), seed=0, mask_seen=False
    )

    batch = next(training_batches(small, training_windows(small, 12), 64, None))
    window, position = ((batch.targets >= 0) & (batch.targets < small.info.warm_items)).nonzero(
        as_tuple=True
    )

    @torch.inference_mode()
    def log_softmax(model):
        vectors = model.eval().items.vectors()[: small.info.warm_items]
        hidden = model.encode(batch, model.items.vectors())[window, position]
        return torch.log_softmax(model.score(hidden, vectors, model.items.bias), -1)

    def distance_after_training(loss):
        """Kullback-Leibler divergence from the teacher after the last epoch (not the best one on validation)."""
        model, distances = build_model(config, small, 0), []
        training = TrainingConfig(
            epochs=12, patience=12, batch_size=16, learning_rate=1e-2, mask_seen=False
        )
        labelled = log_softmax(teacher.model)
        train(
            model, small, Objective(loss), training, seed=0,
            options=RunOptions(on_epoch=lambda *_: distances.append(
                float((labelled.exp() * (labelled - log_softmax(model))).sum(-1).mean())
            )),
        )  # fmt: skip
        return distances[-1]

    distilled = distance_after_training(
        distillation_loss(labels, DistillationConfig(1.0, 0.0, 1.0))
    )
    alone = distance_after_training(ground_truth)
    assert distilled < 0.5 * alone


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distillation_loss_is_the_weighted_sum(small, tmp_path, temperature):
    teacher = train_model(
        DnnConfig(dim=8, hidden=16, layers=1, max_history=12), small, TRAINING, seed=0
    )
    labels = extract_labels(teacher, small, tmp_path, LabelConfig(top_k=5, samples=7), seed=0)
    rows = torch.from_numpy(small.is_training().nonzero()[0][:9])
    student, targets = (
        torch.randn(9, small.info.warm_items),
        torch.from_numpy(small.items[rows]).long(),
    )
    known = labels.at(rows)
    soft = soft_losses_stored(
        torch.log_softmax(student / temperature, -1), known, temperature
    ).mean()
    expected = (
        0.4 * torch.nn.functional.cross_entropy(student, targets)
        + 0.6 * soft
        + 0.2 * hard_loss(torch.log_softmax(student, -1), known.top_items[:, 0])
    )
    loss = distillation_loss(labels, DistillationConfig(0.6, 0.2, temperature))
    torch.testing.assert_close(
        loss(Scored(student, targets, rows, student, student.shape[1])), expected
    )


def test_labels_are_the_teachers_softmax(small, tmp_path):
    teacher = train_model(
        DnnConfig(dim=8, hidden=16, layers=1, max_history=12), small, TRAINING, seed=0
    )
    labels = extract_labels(teacher, small, tmp_path, LabelConfig(top_k=5, samples=7), seed=0)
    assert len(labels) == int(small.is_training().sum())
    batch = next(training_batches(small, training_windows(small, 12, 6), 4, None))
    window, position = (batch.targets >= 0).nonzero(as_tuple=True)
    items = small.info.warm_items
    model = teacher.model
    with torch.inference_mode():
        vectors = model.items.vectors()
        logits = model.score(
            model.encode(batch, vectors)[window, position], vectors[:items], model.items.bias
        )
        logits = logits.masked_fill(
            seen_so_far(batch, small.catalogue_size, window, position).among(slice(items)),
            MASKED_LOGIT,
        )
        logits = logits - logits.amax(1, keepdim=True)  # what labels keep is relative to the best
    known = labels.at(batch.rows[window, position])
    assert torch.equal(known.top_items, logits.topk(5).indices)
    torch.testing.assert_close(known.top_logits, logits.topk(5).values, rtol=1e-3, atol=1e-3)
    total = torch.logaddexp(known.top_logits.logsumexp(1), known.rest_log_sum)
    torch.testing.assert_close(total, logits.logsumexp(1), rtol=1e-3, atol=1e-3)
    assert (known.top_items[:, 0] == logits.argmax(1)).all()
    assert labels.hard_labels().shape == (len(labels),)


def test_labels_are_used_again_and_checked(small, tmp_path):
    teacher = train_model(
        DnnConfig(dim=8, hidden=16, layers=1, max_history=12), small, TRAINING, seed=0
    )
    config = LabelConfig(top_k=5, samples=5)
    extract_labels(teacher, small, tmp_path, config, seed=0)
    shard = tmp_path / "labels-00000.npy"
    made = shard.stat().st_mtime_ns
    extract_labels(teacher, small, tmp_path, config, seed=0)
    assert shard.stat().st_mtime_ns == made
    extract_labels(teacher, small, tmp_path, LabelConfig(top_k=6, samples=5), seed=0)
    assert shard.stat().st_mtime_ns != made
    with pytest.raises(LabelStoreError, match="of another data set"):
        open_labels(tmp_path, dataset("global-time"))
    shard.write_bytes(b"broken")
    with pytest.raises(LabelStoreError, match=r"labels-00000\.npy has 6 bytes instead of"):
        open_labels(tmp_path, small)


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: DistillationConfig(soft_weight=1.5), "soft_weight"),
        (lambda: DistillationConfig(dropout=1.0), "dropout"),
        (lambda: DistillationConfig(hard_weight=-1), "hard_weight"),
        (lambda: DistillationConfig(temperature=0), "temperature"),
        (lambda: TrainingConfig(epochs=0), "epochs"),
        (lambda: TrainingConfig(learning_rate=0), "learning_rate"),
        (lambda: LabelConfig(top_k=0), "top_k"),
    ],
)
def test_wrong_settings_name_the_parameter(make, parameter):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.context["parameter"] == parameter


def scored(model, batch, config, drawn_by, progress=0.0):
    positions = encode_positions(model, batch, config, mask_seen=True, drawn_by=drawn_by.double())
    return score_positions(model, positions, progress)


def test_a_sampled_softmax_has_the_partition_sum_of_the_whole_one_in_expectation(small):
    """The logQ correction: targets, drawn items and their multiplicity add up to the catalogue; seen items stay out."""
    model = build_model(STUDENT, small, 0).eval()
    with torch.no_grad():
        model.items.embedding.mul_(8)  # scores that differ
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    drawn_by = torch.softmax(
        torch.randn(small.info.warm_items, generator=torch.Generator().manual_seed(0)) / 2, 0
    )
    with torch.no_grad():
        whole = scored(model, batch, TrainingConfig(), drawn_by)
        torch.manual_seed(0)
        sums = []
        for _ in range(4_000):
            sampled = scored(model, batch, TrainingConfig(negatives=12), drawn_by)
            sums.append(sampled.logits.exp().sum(1))
    assert (sampled.targets == 0).all()
    rows = torch.arange(len(whole.targets))
    torch.testing.assert_close(sampled.logits[:, 0], whole.logits[rows, whole.targets])
    error = torch.stack(sums).mean(0) / whole.logits.exp().sum(1) - 1
    assert error.abs().mean() < 0.03
    assert abs(float(error.mean())) < 0.01


@pytest.mark.parametrize(
    "config",
    [STUDENT, MlpConfig(dim=8, hidden=8, max_history=12), SoftTreeConfig(depth=2, inputs=5)],
)
def test_every_model_scores_single_items_as_it_scores_all(config, small):
    model = build_model(config, small, 0).eval()
    vectors, biases = model.items.vectors(), model.items.biases()
    hidden = torch.softmax(torch.randn(7, model.state_dim), -1)
    items = torch.arange(7) * 3
    own = model.score_own(hidden, vectors[items], biases[items], items)
    torch.testing.assert_close(own, model.score(hidden, vectors, biases)[torch.arange(7), items])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "weights",
    [
        {"soft_weight": 0.7},
        {"soft_weight": 0.0, "hard_weight": 1.0},
        {"soft_weight": 0.3, "rd_weight": 1.0, "rrd_weight": 1.0, "plackett_luce_weight": 1.0},
        {"soft_weight": 0.7, "curriculum": True},
    ],
)
def test_a_sample_that_is_the_whole_catalogue_gives_the_whole_loss(
    small, tmp_path, weights, temperature
):
    """The columns of a sampled softmax, were they all drawn once: loss and gradient are those of the whole."""
    model = build_model(STUDENT, small, 0).eval()
    labels = [
        extract_labels(train_model(STUDENT, small, TrainingConfig(epochs=1), seed=seed), small, tmp_path / str(seed),
                       LabelConfig(top_k=6, samples=9), seed=seed)
        for seed in ((1, 2) if weights.get("curriculum") else (1,))
    ]  # fmt: skip
    loss = distillation_loss(labels, DistillationConfig(temperature=temperature, **weights))
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    warm = small.info.warm_items
    whole = scored(model, batch, TrainingConfig(), torch.ones(warm), 0.5)
    rows = torch.arange(len(whole.targets))
    others = whole.logits.clone()
    others[rows, whole.targets] = MASKED_LOGIT
    own = whole.logits[rows, whole.targets].unsqueeze(1)
    sampled = replace(
        whole,
        logits=torch.cat([own, others], 1),
        warm=warm + 1,
        targets=torch.zeros_like(whole.targets),
        sampled=Sampled(torch.zeros(warm + 1), warm, lambda items: whole.logits.gather(1, items)),
    )
    values = [loss(whole), loss(sampled)]
    torch.testing.assert_close(values[0], values[1])
    gradients = [
        torch.autograd.grad(value, model.items.embedding, retain_graph=True)[0] for value in values
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        STUDENT,
        MlpConfig(dim=8, hidden=8, max_history=12),
        SoftTreeConfig(depth=2, inputs=5, max_history=12),
    ],
)
def test_a_sampled_softmax_gives_the_logits_of_any_item(config, small):
    model = build_model(config, small, 0).eval()
    batch = next(training_batches(small, training_windows(small, 12), 8, None))
    drawn_by = torch.ones(small.info.warm_items).double()
    whole = scored(model, batch, TrainingConfig(), drawn_by)
    sampled = scored(model, batch, TrainingConfig(negatives=5), drawn_by)
    items = torch.randint(
        small.info.warm_items, (len(whole.logits), 20), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(sampled.sampled.logits_of(items), whole.logits.gather(1, items))
    assert (whole.logits.gather(1, items) == MASKED_LOGIT).any()


def test_training_with_a_sampled_softmax_learns(small):
    training = TrainingConfig(
        epochs=20, patience=20, batch_size=16, negatives=10, learning_rate=1e-2
    )
    trained = train_model(STUDENT, small, training, seed=0)
    losses = [epoch.loss for epoch in trained.record.curve]
    assert np.mean(losses[-3:]) < losses[0] - 0.15
    assert all(torch.equal(a, b) for a, b in zip(
        weights(trained).values(), weights(train_model(STUDENT, small, training, seed=0)).values(), strict=True
    ))  # fmt: skip


def test_freed_memory_is_kept():
    """On glibc the setting is taken; elsewhere it says so."""
    assert reuse_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say it")
def test_the_peak_of_memory_is_that_since_the_reset():
    size, page = 64 * 2**20, 4_096
    reset_peak_memory()
    before = peak_memory()
    with mmap.mmap(-1, size) as block:  # new memory, whatever the allocator has kept
        for place in range(0, size, page):
            block[place] = 1
        assert peak_memory() >= before + 0.9 * size
    reset_peak_memory()
    assert peak_memory() < before + 0.9 * size
