"""The name of a device, and that a device is never a part of what identifies a model."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
import torch

from distilrec.errors import ConfigError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.runs.config import RunConfig
from distilrec.training.devices import resolve_device
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import train_model

STUDENT = RecurrentConfig(dim=8, max_history=12)
TRAINING = TrainingConfig(epochs=1, batch_size=16)


@pytest.fixture
def gpus(monkeypatch):
    """Torch says that it finds so many GPUs."""

    def found(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return found


def test_auto_takes_cuda_where_there_is_one(gpus, monkeypatch):
    gpus(0)
    assert resolve_device("auto") == torch.device("cpu")
    gpus(2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr("distilrec.training.parallel.rank_and_size", lambda: (0, 2))
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("cuda", 0, "torch finds no CUDA device"),
        ("cuda:2", 2, "torch finds 2: cuda:0, cuda:1"),
        ("gpu", 2, "'gpu' is not a device"),
        ("cuda:", 2, "'cuda:' is not a device"),
        ("CPU", 2, "'CPU' is not a device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, small, tmp_path, name, number, message):
    gpus(number)
    options = RunOptions(device=name)
    with pytest.raises(ConfigError, match=message):
        train_model(STUDENT, small, TRAINING, seed=0, options=options)
    teacher = train_model(STUDENT, small, TRAINING, seed=0, options=RunOptions(device="cpu"))
    with pytest.raises(ConfigError, match=message):
        extract_labels(teacher, small, tmp_path, LabelConfig(3, 3), seed=0, options=options)


def test_a_missing_apple_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="the device mps was asked for"):
        resolve_device("mps")


def test_the_device_is_no_part_of_the_configuration_or_the_model(small):
    assert "device" not in str(msgspec.json.schema(RunConfig))
    assert "device" not in TrainingConfig.__struct_fields__
    named = train_model(STUDENT, small, TRAINING, seed=0, options=RunOptions(device="cpu"))
    assert named.model.device == torch.device("cpu")
    assert named.record == msgspec.structs.replace(
        train_model(STUDENT, small, TRAINING, seed=0).record, curve=named.record.curve
    )


@pytest.mark.slow
def test_the_command_line_refuses_a_device_before_it_works(finished_run):
    for command in ("train", "distill", "tune"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "distilrec.cli",
                command,
                "--run",
                str(finished_run.folder),
                "--device",
                "tpu",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "'tpu' is not a device" in done.stderr
        assert "Traceback" not in done.stderr
