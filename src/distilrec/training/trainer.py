"""One training loop for teachers and students: early stopping on validation, checkpoints, exact
resumption.

Each epoch draws its randomness from (seed, epoch) alone, so a run that was interrupted and resumed
gives the same weights as one that was not. In a group of processes (`distilrec.training.parallel`)
each takes its share of every batch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.networks.batches import training_batches, training_windows
from distilrec.networks.sequence import SequenceModel, TorchScorer
from distilrec.training import parallel
from distilrec.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from distilrec.training.memory import reuse_freed_memory
from distilrec.training.options import Epoch, TrainingConfig, TrainingResult
from distilrec.training.schedule import average, learning_rate, parameter_groups
from distilrec.training.scoring import NEGATIVE_POWER, Loss, score_positions
from distilrec.training.validation import validation_ndcg


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
    checkpoint: a folder; an unfinished run found there is resumed if seed, config and `task` are
    the same.
    cold_items: the loss wants logits of the items without training rows as well.
    on_epoch: is called with each finished epoch and the total number of epochs.
    Raises TrainingError when the loss is no longer finite or the checkpoint belongs to another run.
    """
    reuse_freed_memory()
    windows = training_windows(dataset, model.max_history)
    steps_per_epoch = math.ceil(len(windows.starts) / config.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate
    )
    mask_seen = config.mask_seen and not dataset.info.repeats
    popular = torch.from_numpy(dataset.popularity()[: dataset.info.warm_items].astype(np.float64))
    drawn_by = popular**NEGATIVE_POWER / (popular**NEGATIVE_POWER).sum()  # (items,)
    curve: list[Epoch] = []
    best_epoch = 0
    averaged = copy.deepcopy(model)
    best = copy.deepcopy(model.state_dict())
    if checkpoint is not None and (checkpoint / "progress.json").is_file():
        progress = load_checkpoint(checkpoint, model, averaged, optimizer, best, seed, config, task)
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
            for place, batch in enumerate(
                training_batches(dataset, windows, config.batch_size, rng, here)
            ):
                step = (number - 1) * steps_per_epoch + place
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, steps_per_epoch)
                done = step / (config.epochs * steps_per_epoch)
                optimizer.zero_grad(set_to_none=True)
                own, positions = 0.0, 0
                if scored := score_positions(
                    model, batch, config, mask_seen, drawn_by, done, here[1], cold_items
                ):
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
                f"the loss is {mean_loss} in epoch {number}",
                fix="lower training.learning_rate",
                epoch=number,
            )
        ndcg = validation_ndcg(TorchScorer(averaged), dataset)
        curve.append(Epoch(number, mean_loss, ndcg, earlier + time.perf_counter() - began))
        if best_epoch == 0 or ndcg > curve[best_epoch - 1].validation_ndcg:
            best_epoch = number
            best = copy.deepcopy(averaged.state_dict())
        if checkpoint is not None and here[0] == 0:
            save_checkpoint(
                checkpoint,
                model,
                averaged,
                optimizer,
                best,
                Progress(seed, config, task, tuple(curve), best_epoch),
            )
        on_epoch(curve[-1], config.epochs)
    model.load_state_dict(best)
    model.eval()
    return TrainingResult(tuple(curve), best_epoch)
