"""The table of losses: its rows and the settings fit, what a row needs is checked, and a new loss is one row."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from distilrec.distill.distillation import distill_model, distillation_loss
from distilrec.distill.losses import TERMS, DistillationConfig, Term
from distilrec.errors import ConfigError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model

NETWORK = RecurrentConfig(dim=8, max_history=12)
TRAINING = TrainingConfig(epochs=1, batch_size=16)


class WithToy(DistillationConfig, frozen=True):
    toy_weight: float = 0.0


@pytest.fixture(scope="module")
def labels(small, tmp_path_factory):
    teacher = train_model(NETWORK, small, TRAINING, seed=0)
    config = LabelConfig(top_k=8, samples=8, states=True)
    return extract_labels(teacher, small, tmp_path_factory.mktemp("labels"), config, seed=0)


def test_every_weight_has_a_term_and_every_term_a_weight():
    fields = [field.name for field in msgspec.structs.fields(DistillationConfig)]
    assert {term.setting for term in TERMS} == {name for name in fields if name.endswith("_weight")}
    assert len({term.name for term in TERMS}) == len(TERMS)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_the_sampled_softmax_is_refused_where_a_term_needs_the_catalogue(small, labels, term):
    config = DistillationConfig(0.0)
    config = msgspec.structs.replace(config, **{term.setting: 0.5})
    training = msgspec.structs.replace(TRAINING, negatives=5)
    if "catalogue" not in term.needs:
        distill_model(NETWORK, small, labels, training, config, seed=0)
        return
    with pytest.raises(ConfigError, match=f"{term.setting} needs the logits") as at:
        distill_model(NETWORK, small, labels, training, config, seed=0)
    assert f"or {term.setting} = 0" in str(at.value)


def test_a_new_loss_is_one_row(small, labels):
    """A toy loss with weights of its own and groups: it is trained, and its weights are taken out."""
    steps = []

    def toy(step):
        steps.append(step.groups.shape)
        return step.modules["toy"](step.scored.states).square().mean()

    def weights(model, store):
        return nn.Linear(model.state_dim, 3)

    terms = (*TERMS, Term("toy", toy, frozenset({"labels", "groups"}), weights))
    plain = distill_model(NETWORK, small, labels, TRAINING, WithToy(), seed=0, terms=terms)
    assert not steps
    assert (
        plain.record.identity
        == distill_model(
            NETWORK, small, labels, TRAINING, DistillationConfig(), seed=0
        ).record.identity
    )
    how = WithToy(toy_weight=0.5)
    trained = distill_model(NETWORK, small, labels, TRAINING, how, seed=0, terms=terms)
    assert set(steps) == {(small.info.warm_items,)}
    assert trained.model.state_dict().keys() == plain.model.state_dict().keys()
    assert trained.record.identity != plain.record.identity
    refused = (*TERMS, Term("toy", toy, frozenset({"catalogue"})))
    sampled = msgspec.structs.replace(TRAINING, negatives=5)
    with pytest.raises(ConfigError, match="toy_weight"):
        distill_model(NETWORK, small, labels, sampled, how, seed=0, terms=refused)


def test_a_term_of_weight_zero_is_not_computed(small, labels):
    def never(step):
        raise AssertionError("the weight is 0")

    loss = distillation_loss(labels, WithToy(), None, small, (*TERMS, Term("toy", never)))
    assert callable(loss)
    distill_model(
        NETWORK, small, labels, TRAINING, WithToy(), seed=0, terms=(*TERMS, Term("toy", never))
    )


def test_the_projection_of_the_hint_begins_like_a_linear_layer():
    from distilrec.distill.losses import Projection

    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = nn.Linear(4, 6, bias=False)
        torch.manual_seed(3)
        projection = Projection(4, 6)
    assert torch.equal(projection.weight, expected.weight)
    states = torch.randn(2, 4)
    assert torch.equal(projection(states), expected(states))
