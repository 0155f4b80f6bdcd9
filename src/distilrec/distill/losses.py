"""The losses of distillation, one equation each, and `TERMS`, the table of the losses that settings
turn on. Every loss is a mean over positions.

s: student logits, (positions, items); y: index of the true next item; z: teacher logits; T:
temperature; pi: the K best items of the teacher that are stored, best first; U: the stored items
that were drawn uniformly and are not in pi. Items that the user has had have the logit
`MASKED_LOGIT`, and no list of items has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from distilrec.distill.altered import AlteredConfig
from distilrec.distill.sources import Source
from distilrec.labels.store import StoredLabels
from distilrec.networks.sequence import SequenceModel
from distilrec.settings import Count, NotNegative, Positive, Settings, Share
from distilrec.training.scoring import MASKED_BELOW, Scored

_MASKED_TEACHER = -5e4  # masked items have about the lowest float16 in the store
_NOTHING = -1e9  # the logit of an item that is left out: finite, so that gradients are finite


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return L_s = -T^2 sum_i softmax(z / T)_i log softmax(s / T)_i, a scalar (Hinton et al. 2015,
    sec. 2). student, teacher: logits, (positions, items).
    """
    log_student = torch.log_softmax(student / temperature, dim=-1)
    return soft_losses(log_student, teacher, temperature).mean()


def soft_losses(
    log_student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the soft loss of each position, (positions,), from log softmax(s / T) and z, both
    (positions, items).
    """
    labels = torch.softmax(teacher / temperature, dim=-1)
    return -(temperature**2) * (labels * log_student).sum(-1)


def believed(labels: StoredLabels, targets: torch.Tensor, left_out: float) -> torch.Tensor:
    """Return which positions keep their ground truth, (positions,) bool: all but the share
    `left_out`, whose true next items the teacher expected least.

    These events are the likeliest to be noise (in the manner of Wang et al. 2021, sec. 4, who use
    the loss of the model itself). An item that is not among the teacher's K best gets the lowest of
    their logits minus 1.
    targets: (positions,) int64, items as in the labels.
    """
    total = torch.logaddexp(torch.logsumexp(labels.top_logits, -1), labels.rest_log_sum)
    logits = torch.where(
        labels.top_items == targets.unsqueeze(-1), labels.top_logits, -torch.inf
    ).amax(-1)
    losses = total - torch.maximum(logits, labels.top_logits.amin(-1) - 1.0)  # (positions,)
    number = max(1, round((1 - left_out) * len(targets)))
    expected = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    expected[torch.argsort(losses, stable=True)[:number]] = True
    return expected


def hard_loss(log_student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return L_h = -log softmax(s)[argmax z], a scalar. log_student: log softmax(s), (positions,
    items); labels: argmax z, (positions,) int64.
    """
    return functional.nll_loss(log_student, labels)


def soft_losses_stored(
    log_student: torch.Tensor,
    labels: StoredLabels,
    temperature: float,
    catalogue: int | None = None,
) -> torch.Tensor:
    """Return the soft loss of each position, (positions,): exact on the teacher's top K,
    importance-weighted on the rest.

    log_student: log softmax(s / T), (positions, items). catalogue: number of items of the softmax,
    where `log_student` has fewer columns.
    """
    items = labels.items()
    log_chosen = log_student.gather(-1, items)  # (positions, K + M)
    probabilities = soft_labels(
        labels, log_chosen > MASKED_BELOW, temperature, catalogue or log_student.shape[-1]
    )
    return -(temperature**2) * (probabilities * log_chosen).sum(-1)


def soft_labels(
    labels: StoredLabels, allowed: torch.Tensor, temperature: float, catalogue: int
) -> torch.Tensor:
    """Return the teacher's probabilities of the items that are stored, (positions, K + M).

    allowed: (positions, K + M) bool, the stored items that the position may predict. A label that
    is the same for all events of a user does not know which items the user had before an event.
    catalogue: number of items of the softmax.

    The M items that were drawn uniformly stand for the rest of the catalogue. With M' of them
    outside the top K, each stands for (items - K) / M' items. At T = 1 the stored log-sum-exp of
    the rest gives its exact total; at other temperatures the total is estimated from the sample.
    """
    t = temperature
    top_k = labels.top_logits.shape[-1]
    top = torch.where(allowed[:, :top_k], labels.top_logits / t, -torch.inf)  # (positions, K)
    threshold = labels.top_logits.min(-1, keepdim=True).values
    # (positions, M): not among the top K
    outside = (labels.sample_logits < threshold) & allowed[:, top_k:]
    sample = torch.where(outside, labels.sample_logits / t, -torch.inf)
    if temperature == 1.0:
        rest = labels.rest_log_sum.unsqueeze(-1)  # (positions, 1)
    else:
        rest = torch.logsumexp(sample, -1, keepdim=True) + torch.log(
            (catalogue - top_k) / outside.sum(-1, keepdim=True).clamp(min=1)
        )
    spread = torch.softmax(sample, -1).nan_to_num(0.0)  # the share of each sampled item in the rest
    total = torch.logaddexp(torch.logsumexp(top, -1, keepdim=True), rest)
    return torch.cat([torch.exp(top - total), torch.exp(rest - total) * spread], -1)


def ranking_distillation_loss(
    student: torch.Tensor, labels: StoredLabels, sharpness: float = 10.0
) -> torch.Tensor:
    """Return the loss of ranking distillation (RD), a scalar (Tang & Wang 2018, eq. 6 and 8).

    L = -sum_k w_k log sigmoid(s_pi_k), w_k ~ exp(-k / sharpness), sum w = 1.
    """
    chosen = student.gather(-1, labels.top_items)  # (positions, K)
    allowed = chosen > MASKED_BELOW
    ranks = torch.arange(chosen.shape[-1], dtype=student.dtype, device=student.device)
    weights = torch.exp(-ranks / sharpness) * allowed
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return -(weights * functional.logsigmoid(torch.where(allowed, chosen, 0.0))).sum(-1).mean()


def plackett_luce_loss(student: torch.Tensor, labels: StoredLabels) -> torch.Tensor:
    """Return the Plackett-Luce loss of the teacher's order of its K best items, a scalar (Xia et
    al. 2008, eq. 7).

    L = -1/K sum_k [s_pi_k - log sum_{j >= k} exp s_pi_j].
    """
    return _order_loss(student, labels.top_items, None)


def relaxed_ranking_loss(student: torch.Tensor, labels: StoredLabels) -> torch.Tensor:
    """Return the loss of relaxed ranking distillation (RRD), a scalar (Kang et al. 2020, eq. 5).

    L = -1/K sum_k [s_pi_k - log(sum_{j >= k} exp s_pi_j + sum_{u in U} exp s_u)]. The items of U
    must rank below those of pi, in any order.
    """
    return _order_loss(student, labels.top_items, _outside(labels))


def candidates_loss(
    student: torch.Tensor, labels: StoredLabels, temperature: float, own_candidates: int = 50
) -> torch.Tensor:
    """Return the candidate cross-entropy (RCE), a scalar (in the manner of RCE-KD, Yang et al.
    2025).

    L = -T^2 sum_{i in C} softmax_C(z / T)_i log softmax_C(s / T)_i, where C is the union of the
    teacher's K best items and the student's L best, L = `own_candidates`. It corrects items that
    the student wrongly ranks high, without a sum over the catalogue. An item that only the student
    ranks high has the mean logit of the items outside pi, log(exp(rest) / (items - K)).
    """
    t = temperature
    # (positions, L)
    best = student.detach().topk(min(own_candidates, student.shape[-1]), dim=-1).indices
    # (positions, L): in the teacher's list too
    in_both = (best.unsqueeze(-1) == labels.top_items.unsqueeze(-2)).any(-1)
    masked = student.gather(-1, best) < MASKED_BELOW
    items_outside = max(student.shape[-1] - labels.top_items.shape[-1], 1)
    outside = (labels.rest_log_sum - math.log(items_outside)).unsqueeze(-1).expand_as(best)
    skipped = in_both | masked
    teacher = torch.cat([labels.top_logits, outside.masked_fill(skipped, -torch.inf)], dim=-1) / t
    left_out = torch.cat([student.gather(-1, labels.top_items) < MASKED_BELOW, skipped], dim=-1)
    logits = torch.cat([student.gather(-1, labels.top_items), student.gather(-1, best)], dim=-1) / t
    probabilities = torch.softmax(teacher.masked_fill(left_out, -torch.inf), dim=-1)
    log_student = torch.log_softmax(logits.masked_fill(left_out, -torch.inf), dim=-1)
    return -(t**2) * (probabilities * log_student.masked_fill(left_out, 0.0)).sum(-1).mean()


def unbiased_loss(
    student: torch.Tensor, labels: StoredLabels, groups: torch.Tensor, most: int = 20
) -> torch.Tensor:
    """Return the loss of unbiased distillation (UnKD), a scalar (Chen et al. 2023, eq. 12).

    L = -mean over pairs (i before j in pi, same popularity group) of log sigmoid(s_i - s_j). The
    teacher's order counts only among items of similar popularity, so that the student does not
    learn its popularity bias. The first `most` items of pi, then up to `most` items of U, are
    compared. groups: (items,) int64, the popularity group of each item.
    """
    sample = _outside(labels)[:, :most]
    items = torch.cat([labels.top_items[:, :most], sample.clamp(min=0)], dim=-1)  # (positions, n)
    scores = student.gather(-1, items)
    ranked = items.shape[-1] - sample.shape[-1]
    usable = scores > MASKED_BELOW
    usable[:, ranked:] &= sample >= 0
    ranks = torch.arange(items.shape[-1], device=items.device)
    # (n, n): the first of the pair is in pi
    before = (ranks.unsqueeze(1) < ranks) & (ranks < ranked).unsqueeze(1)
    group = groups[items]
    pairs = (
        before
        & (group.unsqueeze(2) == group.unsqueeze(1))
        & usable.unsqueeze(2)
        & usable.unsqueeze(1)
    )
    gaps = torch.where(pairs, scores.unsqueeze(2) - scores.unsqueeze(1), 0.0)
    number = pairs.sum((1, 2))
    sums = -(functional.logsigmoid(gaps) * pairs).sum((1, 2))
    return (sums / number.clamp(min=1)).mean()


def hint_loss(projected: torch.Tensor, teacher_states: torch.Tensor) -> torch.Tensor:
    """Return the hint loss, a scalar (FitNets, Romero et al. 2015, eq. 3).

    L = mean over positions and channels of (P h_student - h_teacher)^2. projected: P h_student,
    (positions, teacher dim), where P is trained with the student; teacher_states: h_teacher, the
    same shape.
    """
    return functional.mse_loss(projected, teacher_states)


def curriculum_loss(losses: torch.Tensor, progress: float, sharpness: float = 20.0) -> torch.Tensor:
    """Return one loss for several teachers, the easiest teacher first, a scalar (in the manner of
    HetComp, Kang et al. 2023, sec. 4).

    L = mean of sum_m w_m L_m, w = softmax(-(1 - progress) sharpness L_m). At first each position
    learns from the teacher with the lowest loss, at the end equally from all. losses: (positions,
    teachers); progress: of the training, in [0, 1].
    """
    weights = torch.softmax(-(1 - progress) * sharpness * losses.detach(), dim=-1)
    return (weights * losses).sum(-1).mean()


def _outside(labels: StoredLabels) -> torch.Tensor:
    """Return the uniformly drawn items that are neither among the top K nor masked by the teacher,
    (positions, M) int64; -1 in place of the others.
    """
    threshold = labels.top_logits.min(-1, keepdim=True).values
    usable = (labels.sample_logits < threshold) & (labels.sample_logits > _MASKED_TEACHER)
    return torch.where(usable, labels.sample_items, -1)


def _order_loss(
    student: torch.Tensor, ranked: torch.Tensor, below: torch.Tensor | None
) -> torch.Tensor:
    """Return -log of the Plackett-Luce probability of the order of `ranked`, a mean over its items.
    below: items that rank after them, -1 for none.
    """
    scores = student.gather(-1, ranked)  # (positions, K)
    allowed = scores > MASKED_BELOW
    rest = torch.where(allowed, scores, _NOTHING)
    # (positions, K): over the items from k on
    behind = torch.logcumsumexp(rest.flip(-1), dim=-1).flip(-1)
    if below is not None:
        low = student.gather(-1, below.clamp(min=0))
        low = torch.where((below >= 0) & (low > MASKED_BELOW), low, _NOTHING)
        behind = torch.logaddexp(behind, torch.logsumexp(low, dim=-1, keepdim=True))
    losses = torch.where(allowed, behind - scores, 0.0)
    return (losses.sum(-1) / allowed.sum(-1).clamp(min=1)).mean()


# --- the terms of a distillation: settings, and one row for each weight ---


class DistillationConfig(Settings, frozen=True):
    """The loss is (1 - soft_weight) L_y + soft_weight L_s + the other losses, each times its
    weight. L_y is the loss of the ground truth, L_s the soft loss.

    The losses are the rows of `TERMS`. With several teachers, all but the soft loss use the labels
    of the first.
    """

    soft_weight: Annotated[float, Meta(ge=0, le=1)] = 0.6
    """Weight of the soft loss, lambda; the ground truth has 1 - lambda."""
    hard_weight: NotNegative = 0.0
    """Weight of the hard loss, mu."""
    temperature: Positive = 1.0
    """Temperature of the soft labels, T."""
    rd_weight: NotNegative = 0.0
    """Weight of ranking distillation (RD)."""
    rrd_weight: NotNegative = 0.0
    """Weight of relaxed ranking distillation (RRD)."""
    plackett_luce_weight: NotNegative = 0.0
    """Weight of the Plackett-Luce loss."""
    rce_weight: NotNegative = 0.0
    """Weight of the candidate cross-entropy (RCE)."""
    unkd_weight: NotNegative = 0.0
    """Weight of unbiased distillation (UnKD)."""
    hint_weight: NotNegative = 0.0
    """Weight of the feature hint."""
    own_candidates: Count = 50
    """Number of the student's best items that are candidates of RCE."""
    groups: Count = 4
    """Number of popularity groups of UnKD."""
    curriculum: bool = False
    """Whether the student learns from each member of an ensemble, the easiest first, in place of
    their average.
    """
    labels: Literal["stored", "asked"] = "stored"
    """Whether the labels are stored once for every event ("stored"), or the teacher is asked during
    training about the windows of the student ("asked"). A window then has at most as many events as
    the teacher's `max_history`.
    """
    all_logits: bool = True
    """Whether a teacher that is asked gives the soft loss its logits of all items; otherwise it
    gives the best and the drawn items of `[labels]`, as with stored labels.
    """
    dropout: Share = 0.0
    """Dropout of the student with distillation, in place of that in `[student]`; none for trees."""
    altered: AlteredConfig = AlteredConfig()
    """Altered histories, for which only a teacher that is asked has labels."""
    denoise: Share = 0.0
    """Share of the events whose ground truth is left out: those that the teacher expected least."""


class View(NamedTuple):
    """The student and one teacher at the scored positions.

    student: logits, (positions, items); log_student: log softmax(s / T), the same shape; labels:
    their items are columns of both; teacher: the teacher's logits of all items, (positions, items),
    where the soft loss uses them.
    """

    student: torch.Tensor
    log_student: torch.Tensor
    labels: StoredLabels
    teacher: torch.Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What a loss is computed from: the scored positions of one training step and their labels.

    views: one for each teacher, at the temperature of the settings. plain: returns the view of the
    first teacher at temperature 1. groups: (items,) int64, the popularity group of each item, for a
    term that needs "groups". states: returns the first teacher's states, (positions, dim) float32,
    for a term that needs "states". modules: the weights of the terms that have some, by name.
    """

    config: DistillationConfig
    scored: Scored
    views: Sequence[View]
    plain: Callable[[], View]
    groups: torch.Tensor | None
    states: Callable[[], torch.Tensor]
    modules: Mapping[str, nn.Module]


Need = Literal["labels", "catalogue", "groups", "states"]


@dataclass(frozen=True)
class Term:
    """One loss of the sum. Its weight is the setting `<name>_weight`, and 0 leaves it out.

    function: returns the loss of a step, a scalar. needs: "labels" of a teacher, which every
    distillation has; logits of the whole "catalogue", which a sampled softmax lacks; popularity
    "groups"; "states" of the teacher. module: makes the weights of a term that has some, for a
    student and its labels; they are trained with the student, and then removed.
    """

    name: str
    function: Callable[[Step], torch.Tensor]
    needs: frozenset[Need] = frozenset({"labels"})
    module: Callable[[SequenceModel, Source], nn.Module] | None = None

    @property
    def setting(self) -> str:
        """The name of the weight in `DistillationConfig`."""
        return f"{self.name}_weight"

    def weight(self, config: DistillationConfig) -> float:
        """Return the weight that the settings give this term."""
        weight: float = getattr(config, self.setting)
        return weight


class Projection(nn.Module):
    """The learned projection P of the hint, from the student's states to those of the teacher."""

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(student_dim, teacher_dim, bias=False).weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (positions, teacher dim) from (positions, student dim)."""
        return functional.linear(states, self.weight)


def _soft(step: Step) -> torch.Tensor:
    return soft_of(step.scored, step.views, step.config)


def soft_of(scored: Scored, views: Sequence[View], config: DistillationConfig) -> torch.Tensor:
    """Return the soft loss on the labels of one teacher or of several, a scalar."""
    sampled = scored.sampled
    catalogue = sampled.catalogue if sampled else None
    t = config.temperature
    by_teacher = [
        soft_losses_stored(view.log_student, view.labels, t, catalogue)
        if view.teacher is None
        else soft_losses(view.log_student, view.teacher, t)
        for view in views
    ]
    if len(by_teacher) == 1:
        return by_teacher[0].mean()
    return curriculum_loss(torch.stack(by_teacher, dim=-1), scored.progress)


def _hard(step: Step) -> torch.Tensor:
    plain = step.plain()
    return hard_loss(plain.log_student, plain.labels.top_items[:, 0])


def _ranking_distillation(step: Step) -> torch.Tensor:
    return ranking_distillation_loss(step.views[0].student, step.views[0].labels)


def _relaxed_ranking(step: Step) -> torch.Tensor:
    return relaxed_ranking_loss(step.views[0].student, step.views[0].labels)


def _plackett_luce(step: Step) -> torch.Tensor:
    return plackett_luce_loss(step.views[0].student, step.views[0].labels)


def _candidates(step: Step) -> torch.Tensor:
    config, view = step.config, step.views[0]
    return candidates_loss(view.student, view.labels, config.temperature, config.own_candidates)


def _unbiased(step: Step) -> torch.Tensor:
    assert step.groups is not None
    return unbiased_loss(step.views[0].student, step.views[0].labels, step.groups)


def _hint(step: Step) -> torch.Tensor:
    return hint_loss(step.modules["hint"](step.scored.states), step.states())


def _projection(model: SequenceModel, labels: Source) -> nn.Module:
    return Projection(model.state_dim, labels.state_width())


TERMS = (  # summed in this order
    Term("soft", _soft),
    Term("hard", _hard),
    Term("rd", _ranking_distillation),
    Term("rrd", _relaxed_ranking),
    Term("plackett_luce", _plackett_luce),
    Term("rce", _candidates, frozenset({"labels", "catalogue"})),
    Term("unkd", _unbiased, frozenset({"labels", "catalogue", "groups"})),
    Term("hint", _hint, frozenset({"labels", "states"}), _projection),
)
