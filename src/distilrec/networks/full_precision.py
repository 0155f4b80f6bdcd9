"""What needs all digits of float32, also where a training computes in bf16."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch


def in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function of tensors that computes in float32, also within `torch.autocast`.

    Outside of it the function gets its tensors as they are.
    """

    @wraps(function)
    def computed(*tensors: torch.Tensor) -> torch.Tensor:
        device = tensors[0].device.type
        # Torch raises an error where it has no autocast, as on meta and, when it is old, on mps
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(*tensors)
        with torch.autocast(device, enabled=False):
            return function(*(tensor.float() for tensor in tensors))

    return computed
