"""A teacher that is asked during the training of its student, in place of stored labels."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch

from distilrec import runs
from distilrec.distill.distillation import distill_model, distillation_loss
from distilrec.distill.losses import TERMS, DistillationConfig, soft_loss
from distilrec.distill.sources import AskedTeacher
from distilrec.errors import ConfigError, LabelStoreError, TeacherError
from distilrec.labels.extract import LabelConfig
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.build import build_model
from distilrec.networks.mlp import MlpConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.teachers.build import EnsembleConfig, MemberConfig
from distilrec.teachers.ensemble import EnsembleTeacher
from distilrec.teachers.external import ScoresConfig, function_teacher
from distilrec.teachers.linear import LinearConfig, fit_linear
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training import gradients, trainer
from distilrec.training.gradients import add_gradients
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.scoring import (
    MASKED_LOGIT,
    CrossEntropy,
    encode_positions,
    ground_truth,
    score_positions,
)
from distilrec.training.trained import train_model
from tests.small_run import small_config, tables, write_tables

pytestmark = pytest.mark.slow

STUDENT = RecurrentConfig(dim=8, max_history=12, dropout=0.0)
TRAINING = TrainingConfig(epochs=3, batch_size=16, window=10, context=0.5)
FEW = LabelConfig(top_k=8, samples=8)
ASKED = DistillationConfig(labels="asked")


@pytest.fixture(scope="module")
def network(small):
    config = TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=11)
    return ModelTeacher(train_model(config, small, TrainingConfig(epochs=2, batch_size=16), seed=0))


@pytest.fixture(scope="module")
def ensemble(small, network):
    linear = fit_linear(LinearConfig(decay=0.8, rows=10_000), small, 0)
    return EnsembleTeacher([network, linear], [0.7, 2.0])


def positions_of(model, small, training=TRAINING, mask_seen=True, cold_items=False):
    batch = next(training_batches(small, training_windows(small, 10, 5), 16, None))
    popular = torch.ones(small.info.warm_items, dtype=torch.float64) / small.info.warm_items
    torch.manual_seed(0)
    return encode_positions(
        model, batch, training, mask_seen=mask_seen, drawn_by=popular, cold_items=cold_items
    )


def step(student, small, loss, *, whole, mask_seen=True, cold_items=False):
    """The loss of one batch and the gradients; whole: by torch alone, all positions together."""
    model = build_model(student, small, 0).train()
    positions = positions_of(model, small, mask_seen=mask_seen, cold_items=cold_items)
    torch.manual_seed(1)
    if whole:
        value = loss(score_positions(model, positions, 0.5)) + model.penalty()
        value.backward()
    else:
        value = add_gradients(model, positions, loss, 0.5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return float(value.detach()), gradients


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("student", [STUDENT, MlpConfig(dim=8, hidden=8, dropout=0.0)])
def test_the_soft_loss_is_that_against_all_logits_of_the_teacher(
    small, ensemble, student, mask_seen
):
    """The fast way, torch, and the equation written out give the same value and gradients."""
    loss = distillation_loss(AskedTeacher(ensemble, small, FEW), ASKED)
    assert isinstance(loss, CrossEntropy)

    def equation(scored):
        origin, warm = scored.positions.origin, small.info.warm_items
        teacher = ensemble.answer(origin.batch, origin.window, origin.place, warm).logits.clone()
        if mask_seen:
            teacher = teacher.masked_fill(scored.positions.seen.among(slice(warm)), MASKED_LOGIT)
        soft = ASKED.soft_weight * soft_loss(scored.logits, teacher, 1.0)
        return (1 - ASKED.soft_weight) * ground_truth(scored) + soft

    expected = step(student, small, equation, whole=True, mask_seen=mask_seen)
    for whole in (True, False):
        value, found = step(student, small, loss, whole=whole, mask_seen=mask_seen)
        assert value == pytest.approx(expected[0], rel=1e-5)
        for name, gradient in expected[1].items():
            if gradient is not None:
                torch.testing.assert_close(found[name], gradient, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    "config",
    [
        ASKED,
        DistillationConfig(labels="asked", soft_weight=1.0),
        DistillationConfig(labels="asked", temperature=2.0),
        DistillationConfig(labels="asked", hard_weight=0.3, rce_weight=0.2),
    ],
)
def test_chunks_change_nothing(small, ensemble, monkeypatch, config):
    loss = distillation_loss(AskedTeacher(ensemble, small, FEW), config)
    together = step(STUDENT, small, loss, whole=False)
    monkeypatch.setattr(gradients, "_CPU_LOGITS", 1)
    value, found = step(STUDENT, small, loss, whole=False)
    assert value == pytest.approx(together[0], rel=1e-5)
    for name, gradient in together[1].items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=2e-4, atol=2e-6, msg=name)


def test_the_best_and_drawn_items_have_the_teachers_logits(small, ensemble):
    source = AskedTeacher(ensemble, small, LabelConfig(top_k=small.info.warm_items, samples=6))
    positions = positions_of(build_model(STUDENT, small, 0), small)
    labels, logits = source.labels(positions), source.logits(positions)
    seen = positions.seen.among(slice(small.info.warm_items))
    relative = (logits - logits.amax(1, keepdim=True)).masked_fill(seen, MASKED_LOGIT)
    torch.testing.assert_close(labels.top_logits, relative.gather(1, labels.top_items))
    torch.testing.assert_close(labels.sample_logits, relative.gather(1, labels.sample_items))
    assert (labels.top_logits[:, 0] == 0).all()
    assert source.seconds > 0


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
@pytest.mark.parametrize("all_logits", [True, False])
def test_every_term_has_its_labels(small, network, term, all_logits):
    config = DistillationConfig(0.0, labels="asked", all_logits=all_logits)
    config = msgspec.structs.replace(config, **{term.setting: 0.5})
    trained = distill_model(
        STUDENT, small, AskedTeacher(network, small, FEW), TRAINING, config, seed=0
    )
    assert all(np.isfinite(epoch.loss) for epoch in trained.record.curve)
    assert 0 < trained.seconds_asked < trained.seconds
    alone = train_model(STUDENT, small, TRAINING, seed=0)
    assert trained.record.identity != alone.record.identity
    assert alone.seconds_asked == 0


def test_several_teachers_are_asked(small, network, ensemble):
    teachers = [AskedTeacher(teacher, small, FEW) for teacher in (network, ensemble)]
    config = DistillationConfig(labels="asked", curriculum=True)
    trained = distill_model(STUDENT, small, teachers, TRAINING, config, seed=0)
    assert trained.seconds_asked == pytest.approx(
        sum(teacher.seconds for teacher in teachers), abs=1e-3
    )


def test_an_ensemble_of_two_networks_has_no_states_for_the_hint(small, ensemble):
    ensemble = EnsembleTeacher([ensemble.members[0]] * 2, [0.5, 0.5])
    config = DistillationConfig(labels="asked", hint_weight=1.0)
    with pytest.raises(LabelStoreError, match="no hidden layer"):
        distill_model(STUDENT, small, AskedTeacher(ensemble, small), TRAINING, config, seed=0)


def test_all_logits_need_the_whole_catalogue(small, network):
    training, asked = msgspec.structs.replace(TRAINING, negatives=7), AskedTeacher(network, small)
    with pytest.raises(ConfigError, match="all_logits"):
        distill_model(STUDENT, small, asked, training, ASKED, seed=0)
    few = msgspec.structs.replace(ASKED, all_logits=False)
    distill_model(STUDENT, small, asked, training, few, seed=0)


def test_items_without_training_rows_are_asked_for(small, network):
    config = LabelConfig(top_k=8, samples=8, cold_items=True)
    loss = distillation_loss(AskedTeacher(network, small, config), ASKED)
    value, found = step(STUDENT, small, loss, whole=False, cold_items=True)
    assert np.isfinite(value)
    assert found["items.embedding"].any()
    trained = distill_model(
        STUDENT, small, AskedTeacher(network, small, config), TRAINING, ASKED, seed=0
    )
    assert trained.record.identity


def test_a_window_is_no_longer_than_the_teacher_can_look_at(small, network, monkeypatch):
    lengths = []

    def recorded(dataset, length, *others):
        lengths.append(length)
        return training_windows(dataset, length, *others)

    monkeypatch.setattr(trainer, "training_windows", recorded)
    for window in (0, 5):
        training = TrainingConfig(epochs=1, batch_size=16, window=window)
        distill_model(STUDENT, small, AskedTeacher(network, small), training, ASKED, seed=0)
    assert lengths == [11, 5]


def test_a_resumed_training_ends_with_the_same_bits(small, ensemble, tmp_path):
    few = msgspec.structs.replace(ASKED, all_logits=False)  # which draws items

    class Interrupted(Exception):
        pass

    def stop(epoch, total):
        if epoch.epoch == 2:
            raise Interrupted

    def distilled(config, **options):
        source = AskedTeacher(ensemble, small, FEW)
        return distill_model(
            STUDENT, small, source, TRAINING, config, seed=3, options=RunOptions(**options)
        )

    for number, config in enumerate((ASKED, few)):
        checkpoint = tmp_path / str(number)
        with pytest.raises(Interrupted):
            distilled(config, checkpoint=checkpoint, on_epoch=stop)
        resumed, whole = distilled(config, checkpoint=checkpoint), distilled(config)
        assert resumed.record.identity == whole.record.identity
        assert resumed.seconds_asked > resumed.record.curve[0].asked > 0


def test_one_list_of_scores_per_user_cannot_be_asked(small):
    teacher = function_teacher(
        lambda histories: np.zeros((len(histories), small.info.warm_items), np.float32),
        small, identity="one list", per="user",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="one list of scores for each user") as at:
        AskedTeacher(teacher, small)
    assert 'distillation.labels = "stored"' in str(at.value)


def test_scores_that_are_no_numbers_are_refused(small, network):
    class Broken(ModelTeacher):
        def read(self, batch, items):
            answer = super().read(batch, items)
            return lambda window, position: answer(window, position)._replace(
                logits=torch.full((len(window), items), float("nan"))
            )

    with pytest.raises(TeacherError, match="NaN"):
        distill_model(
            STUDENT, small, AskedTeacher(Broken(network.trained), small), TRAINING, ASKED, seed=0
        )


def test_a_run_asks_its_teacher_and_says_what_it_cost(tmp_path):
    write_tables(tmp_path)
    config = msgspec.structs.replace(
        small_config(tmp_path),
        teacher=EnsembleConfig(
            (MemberConfig(small_config(tmp_path).teacher), MemberConfig(LinearConfig()))
        ),
        distillation=ASKED,
    )
    lines = []

    class Saying(runs.Silent):
        def say(self, line):
            lines.append(line)

    comparison = runs.run_all(config, tmp_path / "run", Saying())
    assert not (tmp_path / "run" / "labels").exists()
    cost = next(cost for cost in comparison.costs if cost.stage == "teacher asked")
    student = next(cost for cost in comparison.costs if cost.stage == "student")
    assert 0 < cost.seconds < student.seconds
    assert any(line.startswith("labels: the teacher was asked") for line in lines)
    assert "teacher asked" in (tmp_path / "run" / "report.html").read_text()
    written = json.loads((tmp_path / "run" / "costs.json").read_text())
    lines.clear()
    again = runs.run_all(config, tmp_path / "run", Saying())
    assert any(line.startswith("student: already trained") for line in lines)
    assert again.row("student").ndcg_by_seed == comparison.row("student").ndcg_by_seed
    by_stage = {cost["stage"]: cost for cost in written}
    assert {cost.stage: cost.seconds for cost in again.costs}["teacher asked"] == pytest.approx(
        by_stage["teacher asked"]["seconds"]
    )


def test_a_run_with_a_file_of_scores_refuses_to_ask(tmp_path):
    write_tables(tmp_path)
    log = tables()["log"].select("user_id", "item_id").unique()
    log.with_columns(score=1.0).write_csv(tmp_path / "scores.csv")
    config = msgspec.structs.replace(
        small_config(tmp_path),
        teacher=ScoresConfig(str(tmp_path / "scores.csv"), score="score"),
        distillation=ASKED,
    )
    with pytest.raises(ConfigError, match="one list of scores for each user"):
        runs.run_all(config, tmp_path / "run")


def test_a_linear_teacher_answers_about_a_part_of_a_batch_as_about_the_whole(small):
    teacher = fit_linear(LinearConfig(decay=0.8, rows=10_000), small, 0)
    batch = next(training_batches(small, training_windows(small, 6, 3), 16, None))
    window, position = (batch.targets >= 0).nonzero(as_tuple=True)
    whole = teacher.answer(batch, window, position, small.info.warm_items).logits
    some = torch.randperm(len(window))[:9]
    part = teacher.answer(batch, window[some], position[some], small.info.warm_items).logits
    torch.testing.assert_close(part, whole[some])
    users, rows = batch.users[window].numpy(), batch.rows[window, position].numpy()
    expected = teacher.scores(small.histories(users, rows))[:, : small.info.warm_items]
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-4, atol=1e-5)
