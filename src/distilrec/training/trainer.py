"""One training loop for teachers and students: early stopping on validation, checkpoints, exact resumption.

Each epoch draws its randomness from (seed, epoch) alone, so a run that was interrupted and resumed gives the same
weights as one that was not. In a group of processes (`distilrec.training.parallel`) each takes its share of every batch.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.files import RecordKind, remove
from distilrec.settings import Count, NotNegative, Part, Positive, Settings, Share, ZeroOrMore
from distilrec.training import parallel
from distilrec.training.batches import Batch, training_batches, training_windows
from distilrec.training.memory import reuse_freed_memory
from distilrec.training.model import SequenceModel, TorchScorer
from distilrec.training.validation import validation_ndcg

MASKED_LOGIT = -1e9  # finite, so that 0 * log(0) stays 0 in the soft loss
NEGATIVE_POWER = 0.75  # negatives are drawn by popularity to this power (Mikolov et al. 2013, sec. 2.2)


@dataclass(frozen=True)
class Scored:
    """The positions that a step scores, as a loss sees them.

    logits: (positions, items); targets: (positions,) int64, columns of the logits; warm: how many columns are of items that
    can be a target, the others come behind them; rows: (positions,) int64, of the data
    set; states: (positions, dim); progress: the share of the training that is done.
    sampled: where the softmax is sampled. Then the logits are those of the target and of the drawn items.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    states: torch.Tensor
    warm: int
    progress: float = 0.0
    sampled: Sampled | None = None


@dataclass(frozen=True)
class Sampled:
    """A softmax of which only some columns are there.

    correction: (columns,), what has been added to the logit of each column (0 for the target); catalogue: how many items
    there are; logits_of: the logits of any items, (positions, n) from (positions, n) int64.
    """

    correction: torch.Tensor
    catalogue: int
    logits_of: Callable[[torch.Tensor], torch.Tensor]


Loss = Callable[[Scored], torch.Tensor]


def ground_truth(scored: Scored) -> torch.Tensor:
    """L_y = -log softmax(s)[y] over the items with training rows, the mean over positions."""
    return functional.cross_entropy(scored.logits[:, : scored.warm], scored.targets)


class TrainingConfig(Settings, frozen=True):
    """epochs: at most this many; patience: stop after so many epochs without a better validation NDCG@10.

    averaging: validate and keep an exponential moving average of the weights, of which this share stays at each step
    (Polyak & Juditsky 1992); 0 keeps the weights themselves.
    positions: at most this many positions of a batch are scored, drawn at random (0: all of them).
    negatives: 0 scores the whole catalogue; otherwise the softmax is over the target and so many items drawn by
    popularity for each step, with the logQ correction; distillation then scores these and the items of the labels.
    item_dropout: the share of items whose own vector is left out in a step, so that the features carry what they can: for
    catalogues where new items are the norm.
    mask_seen: leave items of the history out of the softmax, as they are left out of recommendations; ignored where the
    log has repeats.
    """

    epochs: Count = 40
    patience: Count = 6
    batch_size: Count = 32
    learning_rate: Part = 2e-3
    weight_decay: NotNegative = 0.01
    warmup_steps: ZeroOrMore = 50
    clip_norm: Positive = 1.0
    averaging: Share = 0.995
    positions: ZeroOrMore = 0
    negatives: ZeroOrMore = 0
    mask_seen: bool = True
    item_dropout: Share = 0.0


class Epoch(msgspec.Struct, frozen=True):
    """One line of the learning curve. seconds: since the beginning, training and validation."""

    epoch: int
    loss: float
    validation_ndcg: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """The learning curve and the best epoch, whose weights the model now has."""

    curve: tuple[Epoch, ...]
    best_epoch: int


class _Progress(msgspec.Struct, frozen=True):
    """The part of a checkpoint that is not a tensor."""

    seed: int
    config: TrainingConfig
    task: str
    curve: tuple[Epoch, ...]
    best_epoch: int


_CHECKPOINT = RecordKind(
    "progress.json",
    _Progress,
    ("epoch",),
    1,
    TrainingError,
    what="checkpoint",
    fix="begin without one",
    again="delete {folder} to begin again",
)


def train(
    model: SequenceModel,
    dataset: Dataset,
    loss: Loss,
    config: TrainingConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    task: str = "",
    cold_items: bool = False,
    on_epoch: Callable[[Epoch, int], None] = lambda epoch, total: None,
) -> TrainingResult:
    """Trains in place and leaves the weights of the best validation epoch in the model.

    loss: gives a scalar, a mean over the scored positions.
    checkpoint: a folder; an unfinished run found there is resumed if seed, config and `task` are the same.
    cold_items: the loss wants logits of the items without training rows as well.
    on_epoch: is called with each finished epoch and the total number of epochs.
    Raises TrainingError when the loss is no longer finite or the checkpoint belongs to another run.
    """
    reuse_freed_memory()
    windows = training_windows(dataset, model.max_history)
    steps_per_epoch = math.ceil(len(windows.starts) / config.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    mask_seen = config.mask_seen and not dataset.info.repeats
    popular = torch.from_numpy(dataset.popularity()[: dataset.info.warm_items].astype(np.float64))
    drawn_by = popular**NEGATIVE_POWER / (popular**NEGATIVE_POWER).sum()  # (items,)
    curve: list[Epoch] = []
    best_epoch = 0
    averaged = copy.deepcopy(model)
    best = copy.deepcopy(model.state_dict())
    if checkpoint is not None and (checkpoint / "progress.json").is_file():
        progress = _load(checkpoint, model, averaged, optimizer, best, seed, config, task)
        curve, best_epoch = list(progress.curve), progress.best_epoch
    earlier = curve[-1].seconds if curve else 0.0
    here = parallel.place()
    began = time.perf_counter()
    while len(curve) < config.epochs and len(curve) - best_epoch < config.patience:
        number = len(curve) + 1
        rng = np.random.default_rng([seed, number])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)) + here[0])
            model.train()
            losses = []
            for place, batch in enumerate(training_batches(dataset, windows, config.batch_size, rng, here)):
                step = (number - 1) * steps_per_epoch + place
                for group in optimizer.param_groups:
                    group["lr"] = _learning_rate(config, step, steps_per_epoch)
                done = step / (config.epochs * steps_per_epoch)
                optimizer.zero_grad(set_to_none=True)
                own, positions = 0.0, 0
                if scored := _score(model, batch, config, mask_seen, drawn_by, done, here[1], cold_items):
                    whole = loss(scored) + model.penalty()
                    whole.backward()  # type: ignore[no-untyped-call]
                    own, positions = float(whole.detach()), len(scored.targets)
                losses.append(parallel.share_gradients(model, own, positions))
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimizer.step()
                average(averaged, model, config.averaging, step)
        mean_loss = float(np.mean(losses))
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"the loss is {mean_loss} in epoch {number}", fix="lower training.learning_rate", epoch=number
            )
        ndcg = validation_ndcg(TorchScorer(averaged), dataset)
        curve.append(Epoch(number, mean_loss, ndcg, earlier + time.perf_counter() - began))
        if best_epoch == 0 or ndcg > curve[best_epoch - 1].validation_ndcg:
            best_epoch = number
            best = copy.deepcopy(averaged.state_dict())
        if checkpoint is not None and here[0] == 0:
            _save(checkpoint, model, averaged, optimizer, best, _Progress(seed, config, task, tuple(curve), best_epoch))
        on_epoch(curve[-1], config.epochs)
    model.load_state_dict(best)
    model.eval()
    return TrainingResult(tuple(curve), best_epoch)


def _score(
    model: SequenceModel,
    batch: Batch,
    config: TrainingConfig,
    mask_seen: bool,
    drawn_by: torch.Tensor,
    progress: float,
    processes: int = 1,
    cold_items: bool = False,
) -> Scored | None:
    """The logits of the positions of a batch that have a target in the catalogue; None where there is no such position.

    processes: how many share a batch. cold_items: score the items without training rows as well.
    """
    warm = model.items.warm_items
    vectors = model.items.vectors(config.item_dropout)
    known = (batch.targets >= 0) & (batch.targets < warm)  # (batch, length)
    window, position = known.nonzero(as_tuple=True)  # (positions,) each
    if not len(window):
        return None
    limits = (-(-config.positions // processes), model.most_positions())
    most = min((limit for limit in limits if limit), default=len(window))
    if most < len(window):
        some = torch.randperm(len(window))[:most]
        window, position = window[some], position[some]
    states = model.encode(batch, vectors)[window, position]  # (positions, dim)
    targets, rows = batch.targets[window, position], batch.rows[window, position]
    if 0 < config.negatives < warm:

        def logits_of(items: torch.Tensor) -> torch.Tensor:
            logits = model.score_own(states.unsqueeze(1), vectors[items], model.items.bias[items])
            if not mask_seen:
                return logits
            seen = seen_items(batch, model.items.catalogue_size, window, position, items)
            return logits.masked_fill(seen, MASKED_LOGIT)

        logits, correction = _sampled_logits(
            model, batch, config, mask_seen, drawn_by, vectors, states, window, position
        )  # fmt: skip
        sampled = Sampled(correction, warm, logits_of)
        return Scored(logits, torch.zeros_like(targets), rows, states, logits.shape[1], progress, sampled)
    items = slice(model.items.catalogue_size if cold_items else warm)
    logits = model.score(states, vectors[items], model.items.biases()[items])
    if mask_seen:
        logits.masked_fill_(seen_items(batch, model.items.catalogue_size, window, position, items), MASKED_LOGIT)
    return Scored(logits, targets, rows, states, warm, progress)


def _sampled_logits(
    model: SequenceModel,
    batch: Batch,
    config: TrainingConfig,
    mask_seen: bool,
    drawn_by: torch.Tensor,
    vectors: torch.Tensor,
    states: torch.Tensor,
    window: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the target (column 0) and of the drawn items, (positions, 1 + drawn), and the correction in them.

    A drawn item stands for 1 / (n q) items of its kind: its logit gets log(times drawn / (n q)), so that the sum of
    exponentials is that of the catalogue in expectation (Bengio & Senecal 2008, eq. 8). The target is always there and
    gets no correction.
    """
    drawn = torch.multinomial(drawn_by, config.negatives, replacement=True)
    items, times = torch.unique(drawn, return_counts=True)
    correction = torch.log(times / (config.negatives * drawn_by[items])).float()
    targets = batch.targets[window, position]
    own = model.score_own(states, vectors[targets], model.items.bias[targets]).unsqueeze(1)
    others = model.score(states, vectors[items], model.items.bias[items]) + correction
    left_out = items == targets.unsqueeze(1)
    if mask_seen:
        left_out |= seen_items(batch, model.items.catalogue_size, window, position, items)
    logits = torch.cat([own, others.masked_fill(left_out, MASKED_LOGIT)], dim=1)
    return logits, functional.pad(correction, (1, 0))


def seen_items(
    batch: Batch, catalogue_size: int, window: torch.Tensor, position: torch.Tensor, items: torch.Tensor | slice
) -> torch.Tensor:
    """Which of `items` each position has had so far, in or before its window, (positions, items) bool.

    items: the same for all positions, or (positions, n) of each.
    """
    length = batch.items.shape[1]
    places = torch.arange(length, dtype=torch.int16).expand_as(batch.items)  # small integers: the gather below is large
    first_seen = torch.full((len(batch.items), catalogue_size + 1), length, dtype=torch.int16)
    first_seen = first_seen.scatter_reduce(1, batch.items, places, "amin").scatter(1, batch.earlier, 0)
    if isinstance(items, torch.Tensor) and items.ndim == 2:
        first = first_seen[window.unsqueeze(1), items]
    else:
        first = first_seen[:, items][window]
    return first <= position.to(torch.int16).unsqueeze(1)


@torch.no_grad()
def average(averaged: SequenceModel, model: SequenceModel, share: float, step: int) -> None:
    """Averaged = share * averaged + (1 - share) * model, with a smaller share in the first steps."""
    share = min(share, (1 + step) / (10 + step)) if share else 0.0
    for mean, current in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(current, 1 - share)


def _learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    done = step / max(config.epochs * steps_per_epoch, 1)
    return config.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * done))


def _parameter_groups(model: SequenceModel, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only; gains and biases stay free."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _save(
    folder: Path,
    model: SequenceModel,
    averaged: SequenceModel,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
    progress: _Progress,
) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"averaged/{name}": tensor for name, tensor in averaged.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{place}/{name}": tensor for name, tensor in state.items()}
    _CHECKPOINT.write(
        folder, progress, {"epoch": {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}}
    )


def drop_checkpoint(folder: Path) -> None:
    """Removes a checkpoint that is no longer needed, the file that makes it one first."""
    if folder.is_dir():
        remove([folder / _CHECKPOINT.file])
        shutil.rmtree(folder)


def _load(
    folder: Path,
    model: SequenceModel,
    averaged: SequenceModel,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
    seed: int,
    config: TrainingConfig,
    task: str,
) -> _Progress:
    saved = _CHECKPOINT.read(folder)
    progress = saved.about
    tensors = {name: torch.from_numpy(array) for name, array in saved.arrays("epoch").items()}
    if (progress.seed, progress.config, progress.task) != (seed, config, task):
        raise TrainingError(
            f"the checkpoint in {folder} belongs to a run with another seed, configuration or data set",
            fix=f"delete {folder} to begin again, or use the configuration it was made with",
            file=str(folder),
        )
    try:
        model.load_state_dict(_under("model/", tensors))
        averaged.load_state_dict(_under("averaged/", tensors))
    except RuntimeError:  # torch's word for names or shapes that do not fit
        raise TrainingError(
            f"the checkpoint in {folder} was made by another version of distilrec",
            fix=f"delete {folder} to begin again",
            file=str(folder),
        ) from None
    best.update(_under("best/", tensors))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, place, key = name.split("/")
            state.setdefault(int(place), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
