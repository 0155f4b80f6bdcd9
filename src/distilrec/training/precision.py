"""How many digits a training step computes with: the one place that turns the name of a precision
into a type of numbers.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from distilrec.errors import ConfigError
from distilrec.training.options import check_precision

# From this compute capability on, CUDA devices multiply bf16 matrices themselves; torch emulates it
# on older ones, which is slow.
_BF16_CAPABILITY = 8


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type of numbers that networks are computed in on a device: float32 or bfloat16.

    "auto" is bfloat16 on a CUDA device that has it in hardware, and float32 elsewhere.
    Raises ConfigError for an unknown name, and for bf16 where torch refuses it.
    """
    check_precision(name)
    if name == "auto":
        own = device.type == "cuda" and _has_bf16(device)
        return torch.bfloat16 if own else torch.float32
    if name == "float32":
        return torch.float32
    _try_bf16(device)
    return torch.bfloat16


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Compute matrix products in this type of numbers within; weights stay float32."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def _has_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device has bf16 in hardware, as all AMD devices that torch runs on."""
    if torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device)[0] >= _BF16_CAPABILITY


def _try_bf16(device: torch.device) -> None:
    """Raise ConfigError where torch does not multiply in bf16 on this device."""
    try:
        with warnings.catch_warnings():
            # What torch refuses it computes in float32, with a warning
            warnings.simplefilter("error")
            with torch.autocast(device.type, dtype=torch.bfloat16):
                one = torch.ones(1, 1, device=device)
                taken = (one @ one).dtype == torch.bfloat16
        reason = "" if taken else ": it computes in float32"
    except (RuntimeError, TypeError, UserWarning) as problem:
        taken, reason = False, f": {problem}"
    if not taken:
        raise ConfigError(
            f"the precision bf16 was asked for, and torch {torch.__version__} refuses it on "
            f"{device}{reason}",
            fix='use precision "float32" or "auto"',
            parameter="precision",
        )
