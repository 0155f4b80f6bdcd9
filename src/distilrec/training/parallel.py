"""Data-parallel training: every process of a `torch.distributed` group has the model and takes its
share of each batch.

A process without a group is a group of one. All processes take the same steps, so their weights
stay the same bit for bit.
"""

from __future__ import annotations

import torch
from torch import distributed


def rank_and_size() -> tuple[int, int]:
    """Return the number of this process in its group, from 0, and the size of the group."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of the tensors of all processes, made in place."""
    if rank_and_size()[1] > 1:
        distributed.all_reduce(values)
    return values


def share_gradients(model: torch.nn.Module, loss: float, positions: float) -> float:
    """Give every process the gradient of the mean over the positions of all of them, and that mean
    loss.

    Before, each has the gradient of the mean over its own `positions`, or of the sum of their
    weights; one without any has none.
    All in one message.
    """
    if rank_and_size()[1] == 1:
        return loss
    parameters = list(model.parameters())
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    message = total(
        torch.cat([*(grad.flatten() for grad in gradients), gradients[0].new_tensor([loss, 1.0])])
        * positions
    )
    message = message / message[-1]
    first = 0
    for parameter in parameters:
        parameter.grad = message[first : first + parameter.numel()].view_as(parameter)
        first += parameter.numel()
    return float(message[-2])
