"""The losses of distillation, one equation each. All are means over positions.

s: student logits (positions, items); y: index of the true next item; z: teacher logits; T: temperature.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from distilrec.knowledge.store import StoredLabels


def ground_truth_loss(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """L_y = -log softmax(s)[y]; student: (positions, items), targets: (positions,) int64."""
    return functional.cross_entropy(student, targets)


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """L_s = -T^2 sum_i softmax(z / T)_i log softmax(s / T)_i (Hinton et al. 2015, sec. 2); both (positions, items)."""
    labels = torch.softmax(teacher / temperature, dim=-1)
    log_student = torch.log_softmax(student / temperature, dim=-1)
    return -(temperature**2) * (labels * log_student).sum(-1).mean()


def hard_loss(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """L_h = -log softmax(s)[argmax z]; student: (positions, items), labels: (positions,) int64."""
    return functional.cross_entropy(student, labels)


def soft_loss_stored(log_student: torch.Tensor, labels: StoredLabels, temperature: float) -> torch.Tensor:
    """The soft loss from stored labels: exact on the teacher's top K, importance-weighted on the rest.

    log_student: log softmax(s / T), (positions, items), which the caller may need for another loss as well.

    The rest of the catalogue is represented by the M uniform items outside the top K: each stands for
    (items - K) / M' of them, where M' is how many of the M are outside. At T = 1 the stored log-sum-exp of the rest
    gives its exact total; at other temperatures the total is estimated from the same sample.
    """
    t = temperature
    top = labels.top_logits / t  # (positions, K)
    threshold = labels.top_logits.min(-1, keepdim=True).values
    outside = labels.sample_logits < threshold  # (positions, M): not among the top K
    sample = torch.where(outside, labels.sample_logits / t, -torch.inf)
    if temperature == 1.0:
        rest = labels.rest_log_sum.unsqueeze(-1)  # (positions, 1)
    else:
        others = log_student.shape[-1] - top.shape[-1]
        rest = torch.logsumexp(sample, -1, keepdim=True) + torch.log(
            others / outside.sum(-1, keepdim=True).clamp(min=1)
        )
    spread = torch.softmax(sample, -1).nan_to_num(0.0)  # the share of each sampled item in the rest
    total = torch.logaddexp(torch.logsumexp(top, -1, keepdim=True), rest)
    probabilities = torch.cat([torch.exp(top - total), torch.exp(rest - total) * spread], -1)  # (positions, K + M)
    items = torch.cat([labels.top_items, labels.sample_items], -1)
    return -(t**2) * (probabilities * log_student.gather(-1, items)).sum(-1).mean()
