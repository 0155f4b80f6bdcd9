"""Distillation losses against values computed independently with numpy, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from distilrec.distill.losses import (
    believed,
    candidates_loss,
    curriculum_loss,
    hard_loss,
    hint_loss,
    plackett_luce_loss,
    ranking_distillation_loss,
    relaxed_ranking_loss,
    soft_loss,
    soft_losses_stored,
    unbiased_loss,
)
from distilrec.labels.store import StoredLabels
from distilrec.measure.slices import item_groups
from distilrec.training.scoring import Scored, ground_truth

STUDENT = np.array([[1.0, 2.0, 0.5, -1.0], [0.0, 0.0, 3.0, 1.0]])
TEACHER = np.array([[2.0, 1.0, 0.0, -2.0], [0.5, 0.0, 1.0, 4.0]])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def truth(logits, targets, warm=None):
    return ground_truth(Scored(logits, targets, targets, logits, warm or logits.shape[1]))


def test_ground_truth_and_hard_loss():
    expected = -(np.log(softmax(STUDENT))[[0, 1], [2, 0]]).mean()
    assert float(truth(tensor(STUDENT), torch.tensor([2, 0]))) == pytest.approx(expected, abs=1e-12)
    expected = -(np.log(softmax(STUDENT))[[0, 1], TEACHER.argmax(1)]).mean()
    assert float(
        hard_loss(torch.log_softmax(tensor(STUDENT), -1), torch.tensor([0, 3]))
    ) == pytest.approx(expected, abs=1e-12)


def test_an_item_that_nobody_had_is_no_wrong_answer():
    expected = -(np.log(softmax(STUDENT[:, :3]))[[0, 1], [2, 0]]).mean()
    assert float(truth(tensor(STUDENT), torch.tensor([2, 0]), 3)) == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 5.0])
def test_soft_loss(t):
    expected = -(t**2) * (softmax(TEACHER / t) * np.log(softmax(STUDENT / t))).sum(1).mean()
    assert float(soft_loss(tensor(STUDENT), tensor(TEACHER), t)) == pytest.approx(
        expected, abs=1e-12
    )


def test_soft_loss_golden_value():
    # By hand: teacher (ln 3, 0) -> (3/4, 1/4); student (0, 0) -> (1/2, 1/2); cross entropy ln 2, T = 1.
    value = soft_loss(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]), 1.0)
    assert float(value) == pytest.approx(np.log(2), abs=1e-6)
    # At T = 2 the labels are (sqrt 3, 1) / (sqrt 3 + 1), the student stays even: T^2 ln 2.
    assert float(
        soft_loss(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]), 2.0)
    ) == pytest.approx(4 * np.log(2), abs=1e-6)


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
    return soft_losses_stored(torch.log_softmax(student / t, dim=-1), labels, t).mean()


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
        float(
            stored_loss(
                tensor(student), stored(teacher, 20, rng.integers(200, size=100).tolist()), 2.0
            )
        )
        for _ in range(200)
    ]
    assert np.mean(estimates) == pytest.approx(full, rel=0.01)


@pytest.mark.parametrize("catalogue", [None, 50])
def test_the_rest_at_other_temperatures_by_hand(catalogue):
    """Three of the ten items outside the best two were drawn, one of them twice: each draw stands for a quarter of the rest."""
    rng = np.random.default_rng(5)
    student, z, t = rng.normal(size=12), np.sort(rng.normal(size=12))[::-1].copy(), 2.0
    drawn = [4, 7, 7, 11, 0]  # item 0 is among the best and does not count
    outside = [4, 7, 7, 11]
    others = (catalogue or 12) - 2
    mass = np.exp(z[outside] / t).sum() * others / 4
    total = np.exp(z[:2] / t).sum() + mass
    log_student = np.log(softmax(student / t))
    expected = -(np.exp(z[:2] / t) / total * log_student[:2]).sum()
    expected -= (
        np.exp(z[outside] / t) / np.exp(z[outside] / t).sum() * mass / total * log_student[outside]
    ).sum()
    labels = stored(z[None], 2, drawn)
    value = soft_losses_stored(tensor(log_student[None]), labels, t, catalogue)
    assert float(value) == pytest.approx(t**2 * expected, rel=1e-9)
    # Nothing outside was drawn: the best items alone carry the loss.
    alone = soft_losses_stored(tensor(log_student[None]), stored(z[None], 2, [0, 1]), t, catalogue)
    share = np.exp(z[:2] / t) / np.exp(z[:2] / t).sum()
    assert float(alone) == pytest.approx(-(t**2) * (share * log_student[:2]).sum(), rel=1e-9)
    # At temperature 1 the mass of the rest is known although nothing stands for it.
    share, log_student = np.exp(z[:2]) / np.exp(z).sum(), np.log(softmax(student))
    alone = soft_losses_stored(tensor(log_student[None]), stored(z[None], 2, [0, 1]), 1.0)
    assert float(alone) == pytest.approx(-(share * log_student[:2]).sum(), rel=1e-9)


def test_rest_is_exact_at_temperature_1():
    teacher = np.array([[3.0, 2.0, 1.0, 0.0, -1.0, -1.0]])
    student = np.zeros((1, 6))
    # The sample misses items 2 and 3, but their mass is in the log-sum
    labels = stored(teacher, 2, [4, 5])
    # Student is even, so the loss is (total mass = 1) * ln 6 whatever the split of the mass.
    assert float(stored_loss(tensor(student), labels, 1.0)) == pytest.approx(np.log(6), abs=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: truth(s, torch.tensor([2, 0])),
        lambda s: hard_loss(s, torch.tensor([0, 3])),
        lambda s: soft_loss(s, tensor(TEACHER), 2.0),
        lambda s: stored_loss(s, stored(TEACHER, 2, [0, 1, 2, 3]), 2.0),
        lambda s: ranking_distillation_loss(s, stored(TEACHER, 3, [0, 1])),
        lambda s: plackett_luce_loss(s, stored(TEACHER, 3, [0, 1])),
        lambda s: relaxed_ranking_loss(s, stored(TEACHER, 2, [0, 1, 2, 3])),
        lambda s: candidates_loss(s, stored(TEACHER, 2, [0, 1]), 2.0, 2),
        lambda s: unbiased_loss(s, stored(TEACHER, 3, [0, 1, 2, 3]), torch.tensor([0, 0, 1, 0])),
        lambda s: hint_loss(s, tensor(TEACHER)),
        # The weights of the curriculum are no function of the student for the gradient: the loss is, at progress 1.
        lambda s: curriculum_loss(
            torch.stack(
                [
                    soft_losses_stored(torch.log_softmax(s, -1), stored(z, 2, [0, 1, 2, 3]), 1.0)
                    for z in (TEACHER, -TEACHER)
                ],
                -1,
            ),
            1.0,
        ),
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


# --- the losses that rank: golden values computed with plain Python from their definitions ---


def logs(x):
    return -np.log1p(np.exp(-x))  # log sigmoid


def test_ranking_distillation_golden_value():
    # Teacher's best three of user 0: items 0, 1, 2; of user 1: items 3, 2, 0.
    w = np.exp(-np.arange(3) / 10.0)
    w /= w.sum()
    expected = np.mean(
        [-(w * logs(STUDENT[0, [0, 1, 2]])).sum(), -(w * logs(STUDENT[1, [3, 2, 0]])).sum()]
    )
    value = ranking_distillation_loss(tensor(STUDENT), stored(TEACHER, 3, [0]))
    assert float(value) == pytest.approx(expected, abs=1e-12)


def order_by_hand(scores, ranked, below):
    """-1/K sum_k [s_k - log(sum of exp over everything not yet placed)], item after item."""
    total = 0.0
    for k, item in enumerate(ranked):
        total -= scores[item] - np.log(sum(np.exp(scores[j]) for j in [*ranked[k:], *below]))
    return total / len(ranked)


def test_plackett_luce_golden_value():
    expected = np.mean(
        [order_by_hand(STUDENT[0], [0, 1, 2], []), order_by_hand(STUDENT[1], [3, 2, 0], [])]
    )
    value = plackett_luce_loss(tensor(STUDENT), stored(TEACHER, 3, [0]))
    assert float(value) == pytest.approx(expected, abs=1e-12)


def test_relaxed_ranking_golden_value():
    # Of the drawn items those outside the teacher's best two stand below: user 0 (best 0, 1): 2 and 3; user 1 (best 3, 2):
    # 0 and 1. Drawn twice counts twice.
    expected = np.mean(
        [order_by_hand(STUDENT[0], [0, 1], [2, 3, 3]), order_by_hand(STUDENT[1], [3, 2], [0, 1])]
    )
    value = relaxed_ranking_loss(tensor(STUDENT), stored(TEACHER, 2, [0, 1, 2, 3, 3]))
    assert float(value) == pytest.approx(expected, abs=1e-12)
    # The second best is masked: the first stands before the drawn ones, and the mean is over one item.
    masked = tensor(STUDENT[:1]).clone()
    masked[0, 1] = -1e9
    value = relaxed_ranking_loss(masked, stored(TEACHER[:1], 2, [2, 3]))
    assert float(value) == pytest.approx(order_by_hand(STUDENT[0], [0], [2, 3]), abs=1e-12)


@pytest.mark.parametrize("t", [1.0, 2.0])
@pytest.mark.parametrize("own_candidates", [2, 3])
def test_candidates_golden_value(t, own_candidates):
    """Teacher's best two and the student's own; what the teacher does not rank has its mean logit of the rest."""
    values = []
    for s, z in zip(STUDENT, TEACHER, strict=True):
        top = list(np.argsort(-z)[:2])
        own = [i for i in np.argsort(-s)[:own_candidates] if i not in top]
        rest = np.log(np.exp(np.delete(z, top)).sum()) - np.log(2)
        p = softmax(np.array([*z[top], *[rest] * len(own)]) / t)
        q = softmax(s[[*top, *own]] / t)
        values.append(-(t**2) * (p * np.log(q)).sum())
    value = candidates_loss(tensor(STUDENT), stored(TEACHER, 2, [0]), t, own_candidates)
    assert float(value) == pytest.approx(np.mean(values), abs=1e-12)


def test_unbiased_golden_value():
    # Groups: items 0, 1, 3 are popular, item 2 is not. User 0 (best 0, 1; drawn outside: 3, 2): pairs 0>1, 0>3, 1>3.
    # User 1 (best 3, 2; drawn outside: 0): pair 3>0.
    s = STUDENT
    expected = np.mean(
        [
            -np.mean([logs(s[0, 0] - s[0, 1]), logs(s[0, 0] - s[0, 3]), logs(s[0, 1] - s[0, 3])]),
            -logs(s[1, 3] - s[1, 0]),
        ]
    )
    value = unbiased_loss(tensor(s), stored(TEACHER, 2, [0, 3, 2]), torch.tensor([0, 0, 1, 0]))
    assert float(value) == pytest.approx(expected, abs=1e-12)
    # A drawn item that is masked is compared with nothing: as if it had not been drawn.
    masked = tensor(s).clone()
    masked[:, 3] = -1e9
    everybody = torch.zeros(4, dtype=torch.long)
    with_it = unbiased_loss(masked[:1], stored(TEACHER[:1], 2, [2, 3]), everybody)
    assert float(with_it) == float(
        unbiased_loss(masked[:1], stored(TEACHER[:1], 2, [2]), everybody)
    )


def test_groups_of_items_share_the_interactions():
    assert item_groups(np.array([50, 25, 14, 10, 1]), 2).tolist() == [0, 1, 1, 1, 1]
    assert item_groups(np.array([40, 30, 20, 10]), 3).tolist() == [0, 1, 2, 2]


def test_the_least_believed_positions_are_left_out():
    """A quarter of four positions: the one whose true next item the teacher expected least, by -log softmax(z)[y]."""
    z = np.array(
        [[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, -2.0], [4.0, 3.0, 2.0, 1.0], [1.0, 0.0, 0.5, 2.0]]
    )
    targets = np.array([1, 2, 2, 3])
    surprise = -np.log(softmax(z)[np.arange(4), targets])
    assert surprise.argsort().tolist() == [3, 1, 0, 2]
    for left_out, kept in (
        (0.25, {0, 1, 3}),
        (0.5, {1, 3}),
        (0.75, {3}),
        (0.9, {3}),
        (0.1, {0, 1, 2, 3}),
    ):
        found = believed(stored(z, 3, [0]), torch.from_numpy(targets), left_out)
        assert set(torch.nonzero(found).ravel().tolist()) == kept
    # Outside the K best an item is as surprising as one that is a logit below the last of them: 1.0 - 1 against 0.6.
    two = np.array([[3.0, 1.0, 0.9], [3.0, 0.6, 0.5]])
    assert believed(stored(two, 2, [0]), torch.tensor([2, 1]), 0.5).tolist() == [False, True]
    two[0, 1] = 2.0
    assert believed(stored(two, 2, [0]), torch.tensor([2, 1]), 0.5).tolist() == [True, False]
    found = believed(stored(z, 2, [0]), torch.tensor([2, 3, 3, 1]), 0.5)
    total = np.log(np.exp(z).sum(1))
    capped = total - (np.sort(z, 1)[:, -2] - 1)
    assert set(torch.nonzero(found).ravel().tolist()) == set(capped.argsort()[:2].tolist())


def test_defaults_of_the_candidates_and_of_the_compared():
    """Fifty of the student's own; twenty of the teacher's and as many drawn."""
    rng = np.random.default_rng(0)
    s, z = tensor(rng.normal(size=(2, 80))), rng.normal(size=(2, 80))
    labels = stored(z, 5, list(range(80)))
    assert float(candidates_loss(s, labels, 1.0)) == float(candidates_loss(s, labels, 1.0, 50))
    assert float(candidates_loss(s, labels, 1.0)) != float(candidates_loss(s, labels, 1.0, 51))
    groups = torch.zeros(80, dtype=torch.long)
    assert float(unbiased_loss(s, labels, groups)) == float(unbiased_loss(s, labels, groups, 20))
    assert float(unbiased_loss(s, labels, groups)) != float(unbiased_loss(s, labels, groups, 21))
    assert float(candidates_loss(s, labels, 1.0, 80)) == float(candidates_loss(s, labels, 1.0, 500))


def test_hint_golden_value():
    assert float(hint_loss(tensor([[1.0, 2.0]]), tensor([[0.0, 4.0]]))) == pytest.approx(2.5)


def test_the_curriculum_goes_from_the_easiest_teacher_to_all():
    losses = tensor([[1.0, 3.0], [4.0, 2.0]])
    # The smaller one of each row
    assert float(curriculum_loss(losses, 0.0)) == pytest.approx(1.5, abs=1e-6)
    assert float(curriculum_loss(losses, 1.0)) == pytest.approx(2.5)
    assert float(
        curriculum_loss(tensor([[1.0, 3.0], [4.0, 2.0], [0.0, 1.0]]), 1.0)
    ) == pytest.approx(5.5 / 3)
    w = 1 / (1 + np.exp(-0.25 * 20 * 2))  # two apart, sharpness 20, three quarters done
    assert float(curriculum_loss(losses, 0.75)) == pytest.approx(w * 1.5 + (1 - w) * 3.5, abs=1e-9)


RANKING = [
    ranking_distillation_loss,
    plackett_luce_loss,
    relaxed_ranking_loss,
    lambda s, labels: candidates_loss(s, labels, 1.0, 3),
    lambda s, labels: unbiased_loss(s, labels, torch.zeros(s.shape[-1], dtype=torch.long)),
    lambda s, labels: soft_losses_stored(torch.log_softmax(s, -1), labels, 1.0).mean(),
]


@pytest.mark.parametrize("loss", RANKING)
def test_masked_items_take_no_part(loss):
    """An item that the user has had changes neither value nor gradients, also where the labels know nothing of it."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(5, 12)), rng.normal(size=(5, 12))
    seen = torch.zeros(5, 12, dtype=torch.bool)
    # The teacher's second best
    seen[torch.arange(5), stored(teacher, 4, [0]).top_items[:, 1]] = True
    values = []
    for shift in (0.0, 5.0):
        s = tensor(student + shift * seen.numpy()).requires_grad_()
        labels = stored(teacher, 4, [1, 3, 5, 7, 9])
        value = loss(s.masked_fill(seen, -1e9), labels)
        value.backward()
        assert torch.isfinite(s.grad).all()
        assert (s.grad[seen] == 0).all()
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert abs(values[0]) < 1e3


@pytest.mark.parametrize("loss", RANKING[:3])
def test_the_order_losses_fall_when_the_student_agrees(loss):
    rng = np.random.default_rng(3)
    teacher = rng.normal(size=(4, 20))
    labels = stored(teacher, 5, list(range(20)))
    student = tensor(rng.normal(size=(4, 20))).requires_grad_()
    before = loss(student, labels)
    before.backward()
    with torch.no_grad():
        after = loss(student - 0.1 * student.grad, labels)
    assert after < before
