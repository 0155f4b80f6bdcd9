"""Distillation losses against values computed independently with numpy, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from distilrec.distill.losses import ground_truth_loss, hard_loss, soft_loss, soft_loss_stored
from distilrec.knowledge.store import StoredLabels

STUDENT = np.array([[1.0, 2.0, 0.5, -1.0], [0.0, 0.0, 3.0, 1.0]])
TEACHER = np.array([[2.0, 1.0, 0.0, -2.0], [0.5, 0.0, 1.0, 4.0]])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def test_ground_truth_and_hard_loss():
    expected = -(np.log(softmax(STUDENT))[[0, 1], [2, 0]]).mean()
    assert float(ground_truth_loss(tensor(STUDENT), torch.tensor([2, 0]))) == pytest.approx(expected, abs=1e-12)
    expected = -(np.log(softmax(STUDENT))[[0, 1], TEACHER.argmax(1)]).mean()
    assert float(hard_loss(tensor(STUDENT), torch.tensor([0, 3]))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 5.0])
def test_soft_loss(t):
    expected = -(t**2) * (softmax(TEACHER / t) * np.log(softmax(STUDENT / t))).sum(1).mean()
    assert float(soft_loss(tensor(STUDENT), tensor(TEACHER), t)) == pytest.approx(expected, abs=1e-12)


def test_soft_loss_golden_value():
    # By hand: teacher (ln 3, 0) -> (3/4, 1/4); student (0, 0) -> (1/2, 1/2); cross entropy ln 2, T = 1.
    value = soft_loss(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]), 1.0)
    assert float(value) == pytest.approx(np.log(2), abs=1e-6)
    # At T = 2 the labels are (sqrt 3, 1) / (sqrt 3 + 1), the student stays even: T^2 ln 2.
    assert float(soft_loss(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]), 2.0)) == pytest.approx(
        4 * np.log(2), abs=1e-6
    )


def test_soft_loss_is_smallest_at_the_teacher():
    at_teacher = soft_loss(tensor(TEACHER), tensor(TEACHER), 2.0)
    for seed in range(20):
        other = tensor(TEACHER + np.random.default_rng(seed).normal(0, 0.3, TEACHER.shape))
        assert soft_loss(other, tensor(TEACHER), 2.0) > at_teacher


def stored(teacher, k, sample):
    """What the label store would keep of these logits."""
    z = tensor(teacher)
    top = z.topk(k)
    rest = z.scatter(1, top.indices, -torch.inf).logsumexp(1)
    sample = torch.tensor(sample).expand(len(z), -1)
    return StoredLabels(top.indices, top.values, rest, sample, z.gather(1, sample))


def stored_loss(student, labels, t):
    return soft_loss_stored(torch.log_softmax(student / t, dim=-1), labels, t)


@pytest.mark.parametrize("t", [1.0, 2.0, 4.0])
def test_stored_labels_that_hold_everything_give_the_full_loss(t):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(6, 40)), rng.normal(size=(6, 40)) * 3
    full = float(soft_loss(tensor(student), tensor(teacher), t))
    # Every item is either among the top 10 or in the sample: nothing is left to estimate.
    whole = float(stored_loss(tensor(student), stored(teacher, 10, list(range(40))), t))
    assert whole == pytest.approx(full, rel=1e-9)


def test_stored_labels_estimate_the_full_loss_without_bias():
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(1, 200)), rng.normal(size=(1, 200))
    full = float(soft_loss(tensor(student), tensor(teacher), 2.0))
    estimates = [
        float(stored_loss(tensor(student), stored(teacher, 20, rng.integers(200, size=100).tolist()), 2.0))
        for _ in range(200)
    ]
    assert np.mean(estimates) == pytest.approx(full, rel=0.01)


def test_rest_is_exact_at_temperature_1():
    teacher = np.array([[3.0, 2.0, 1.0, 0.0, -1.0, -1.0]])
    student = np.zeros((1, 6))
    labels = stored(teacher, 2, [4, 5])  # the sample misses items 2 and 3, but their mass is in the log-sum
    # Student is even, so the loss is (total mass = 1) * ln 6 whatever the split of the mass.
    assert float(stored_loss(tensor(student), labels, 1.0)) == pytest.approx(np.log(6), abs=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: ground_truth_loss(s, torch.tensor([2, 0])),
        lambda s: hard_loss(s, torch.tensor([0, 3])),
        lambda s: soft_loss(s, tensor(TEACHER), 2.0),
        lambda s: stored_loss(s, stored(TEACHER, 2, [0, 1, 2, 3]), 2.0),
    ],
)
def test_gradients(loss):
    assert gradcheck(loss, (tensor(STUDENT).requires_grad_(),))


def test_masked_items_leave_the_loss_finite():
    student = torch.tensor([[0.0, 1.0, -1e9]], requires_grad=True)
    value = stored_loss(student, stored([[1.0, 0.0, -6e4]], 2, [2, 2]), 2.0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
