"""Where a model is trained: the one place that turns the name of a device into a device."""

from __future__ import annotations

import re

import torch

from distilrec.errors import ConfigError
from distilrec.training import parallel

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def resolve_device(name: str) -> torch.device:
    """Return the device of this name; "auto" takes CUDA where there is one, else the CPU.

    In a group of processes "auto" is the CPU: the processes of one machine would share one GPU.
    Raises ConfigError for an unknown name, and for a device that this machine lacks.
    """
    if not _NAMES.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a device",
            fix='use "auto", "cpu", "cuda", a numbered one such as "cuda:1", or "mps"',
            parameter="device",
        )
    if name == "auto":
        alone = parallel.rank_and_size()[1] == 1
        return torch.device("cuda" if alone and torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        _check_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "the device mps was asked for, and torch finds none: it exists on a Mac with Apple "
            "silicon",
            fix='use device "cpu" or "auto"',
            parameter="device",
        )
    return device


def _check_cuda(device: torch.device) -> None:
    """Raise ConfigError where torch cannot use this CUDA device."""
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number == 0:
        built = torch.version.cuda
        build = "is built without CUDA" if built is None else f"is built for CUDA {built}"
        raise ConfigError(
            f"the device {device} was asked for, and torch finds no CUDA device (torch "
            f"{torch.__version__} {build})",
            fix='use device "cpu" or "auto"; for a GPU install its driver and a torch with CUDA',
            parameter="device",
        )
    if (device.index or 0) >= number:
        raise ConfigError(
            f"the device {device} was asked for, and torch finds {number}: "
            + ", ".join(f"cuda:{index}" for index in range(number)),
            fix='use one of these, or "auto"',
            parameter="device",
        )
