"""What a training computes in, and what it says when memory does not suffice."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest
import torch

from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.errors import ConfigError, TrainingError
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.on_cpu import scan
from distilrec.networks.transformer import attention
from distilrec.progress import Silent
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.runs.folder import Run, open_run
from distilrec.runs.stages import prepare
from distilrec.training import trainer
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.precision import computing_in, resolve_precision
from distilrec.training.trained import train_model
from tests.small_run import NETWORKS, STUDENT

TRAINING = TrainingConfig(epochs=3, patience=3, batch_size=16)
FAST = TrainingConfig(epochs=6, patience=6, batch_size=16, learning_rate=1e-2, warmup_steps=2)
CPU = torch.device("cpu")


def in_precision(precision, dataset, training=TRAINING, config=STUDENT, **options):
    return train_model(
        config, dataset, training, seed=1, options=RunOptions("cpu", precision, **options)
    )


def weights(trained):
    return trained.model.state_dict()


def losses_of(trained):
    return [epoch.loss for epoch in trained.record.curve]


def same(some, others):
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: type(config).__name__)
def test_a_training_in_bf16_learns(config, small):
    trained, exact = (in_precision(name, small, FAST, config) for name in ("bf16", "float32"))
    losses = losses_of(trained)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(losses_of(exact), rel=0.05)
    assert {tensor.dtype for tensor in weights(trained).values()} == {torch.float32}
    assert not same(weights(trained), weights(exact))


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: type(config).__name__)
def test_a_sampled_softmax_in_bf16_is_near_that_in_float32(config, small):
    training = msgspec.structs.replace(FAST, epochs=1, negatives=7)
    losses, exact = (
        losses_of(in_precision(name, small, training, config)) for name in ("bf16", "float32")
    )
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses != exact


@pytest.mark.slow
@pytest.mark.parametrize(
    "distillation",
    [DistillationConfig(), DistillationConfig(temperature=2.0, hint_weight=1.0, rrd_weight=1.0)],
    ids=["kernel", "lists and hint"],
)
@pytest.mark.parametrize("negatives", [0, 7])
def test_a_distillation_in_bf16_is_near_that_in_float32(distillation, negatives, small, tmp_path):
    labels = extract_labels(
        in_precision("float32", small),
        small,
        tmp_path,
        LabelConfig(top_k=5, samples=5, states=True),
        seed=0,
    )
    training = msgspec.structs.replace(FAST, epochs=2, negatives=negatives)
    student, exact = (
        distill_model(
            STUDENT, small, labels, training, distillation, seed=1, options=RunOptions("cpu", name)
        )
        for name in ("bf16", "float32")
    )
    assert losses_of(student) == pytest.approx(losses_of(exact), rel=0.05)
    assert losses_of(student) != losses_of(exact)
    assert {tensor.dtype for tensor in weights(student).values()} == {torch.float32}


@pytest.mark.slow
def test_auto_on_the_cpu_is_float32_bit_for_bit(small):
    assert same(weights(in_precision("auto", small)), weights(in_precision("float32", small)))


@pytest.mark.slow
@pytest.mark.parametrize("precisions", [("bf16", "float32"), ("float32", "bf16")])
def test_a_checkpoint_of_one_precision_goes_on_in_another(precisions, small, tmp_path):
    def stop(epoch, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_precision(precisions[0], small, checkpoint=tmp_path / "c", on_epoch=stop)
    epochs = []
    resumed = in_precision(
        precisions[1], small, checkpoint=tmp_path / "c",
        on_epoch=lambda epoch, total: epochs.append(epoch.epoch),
    )  # fmt: skip
    assert epochs == [2, 3]
    first = in_precision(precisions[0], small)
    assert losses_of(resumed)[0] == losses_of(first)[0]
    assert losses_of(resumed)[1:] == pytest.approx(losses_of(first)[1:], rel=0.05)
    assert losses_of(resumed)[1:] != losses_of(first)[1:]


def test_auto_takes_bf16_where_a_gpu_has_it(monkeypatch):
    cuda = torch.device("cuda:1")
    for capability, precision in [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]:
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert resolve_precision("auto", cuda) == precision
        assert resolve_precision("float32", cuda) == torch.float32
    monkeypatch.setattr(torch.version, "hip", "6.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (1, 0))
    assert resolve_precision("auto", cuda) == torch.bfloat16
    assert resolve_precision("auto", torch.device("mps")) == torch.float32
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_bf16_is_refused_where_torch_refuses_it(monkeypatch, name):
    def refused(*args, **kwargs):
        raise RuntimeError("no bf16 here")

    monkeypatch.setattr(torch, "autocast", refused)
    with pytest.raises(ConfigError, match=f"refuses it on {name}: no bf16 here"):
        resolve_precision("bf16", torch.device(name))


def test_an_autocast_that_torch_takes_back_is_a_refusal(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: computing_in(torch.float32, CPU))
    with pytest.raises(ConfigError, match="computes in float32"):
        resolve_precision("bf16", CPU)


def test_an_unknown_precision_is_refused_in_python(tmp_path, finished_run):
    doors = [
        lambda: RunOptions(precision="fp16"),
        lambda: resolve_precision("fp16", CPU),
        lambda: prepare(RunConfig(DataConfig(dataset="ml-100k")), tmp_path, precision="fp16"),
        lambda: open_run(finished_run.folder, precision="fp16"),
    ]
    for door in doors:
        with pytest.raises(ConfigError, match="'fp16' is not a precision") as refused:
            door()
        assert '"auto", "float32", "bf16"' in refused.value.fix
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "distill", "tune"])
def test_the_command_line_refuses_a_precision_before_it_works(command, finished_run):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "distilrec.cli", command),
            *("--run", str(finished_run.folder), "--precision", "fp16"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "'fp16' is not a precision" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_precision_is_no_part_of_the_configuration():
    assert "precision" not in str(msgspec.json.schema(RunConfig))
    assert "precision" not in TrainingConfig.__struct_fields__


def test_the_recurrence_and_attention_compute_in_float32_within_autocast():
    torch.manual_seed(0)
    inputs, decay = torch.randn(2, 9, 2, 4), torch.rand(2, 4)
    heads, slopes = torch.randn(3, 2, 2, 200, 4).bfloat16(), torch.tensor([-1.0, 0.5])
    state = scan(inputs, decay)
    mixed = attention(*heads.float(), slopes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scan(inputs, decay), state)
        assert torch.equal(attention(*heads, slopes), mixed)
        assert (inputs[0, 0].T @ inputs[0, 0]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "problem",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes."),
        RuntimeError("not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=lambda problem: f"{type(problem).__name__} {problem}"[:40],
)
def test_too_little_memory_names_the_settings_to_lower(monkeypatch, small, problem):
    def step(*args):
        raise problem

    monkeypatch.setattr(trainer._Training, "_step", step)
    with pytest.raises(TrainingError, match="16 windows ran out of memory on cpu") as refused:
        in_precision("auto", small)
    assert all(name in refused.value.fix for name in ("batch_size", "positions", "max_history"))
    assert (str(problem) or "MemoryError") in str(refused.value)


def test_other_errors_of_a_step_stay_what_they_are(monkeypatch, small):
    def step(*args):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer._Training, "_step", step)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        in_precision("auto", small)


def test_every_training_of_a_run_gets_its_precision(tmp_path):
    config = RunConfig(DataConfig(dataset="ml-100k"))
    assert Run(tmp_path, config, Silent(), precision="bf16").options.precision == "bf16"
    sent = []
    workers = SimpleNamespace(together=lambda make, report: make(lambda *_: None))
    options = RunOptions(precision="bf16", workers=workers)
    options.train_together(lambda options: sent.append(options.precision))
    assert sent == ["bf16"]
