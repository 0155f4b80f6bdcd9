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
from dataclasses import replace

import numpy as np
import torch

from distilrec.data.dataset import Dataset
from distilrec.errors import TrainingError
from distilrec.measure.ranking import questions
from distilrec.networks.batches import Batch, training_batches, training_windows
from distilrec.networks.orders import Orders
from distilrec.networks.sequence import SequenceModel, TorchScorer
from distilrec.training import parallel
from distilrec.training.checkpoints import Progress, is_checkpoint, load_checkpoint, save_checkpoint
from distilrec.training.devices import resolve_device
from distilrec.training.gradients import add_gradients
from distilrec.training.memory import enough_memory, reuse_freed_memory
from distilrec.training.options import Epoch, RunOptions, TrainingConfig, TrainingResult
from distilrec.training.precision import computing_in, resolve_precision
from distilrec.training.schedule import average, learning_rate, parameter_groups
from distilrec.training.scoring import NEGATIVE_POWER, Objective, Positions, encode_positions
from distilrec.training.validation import mean_ndcg, sample_of


def train(
    model: SequenceModel,
    dataset: Dataset,
    objective: Objective,
    config: TrainingConfig,
    *,
    seed: int,
    task: str = "",
    options: RunOptions | None = None,
) -> TrainingResult:
    """Train in place and leave the weights of the best validation epoch in the model, on the CPU.

    A training that goes on with earlier weights (`objective.trained_from`) leaves these where no
    epoch is better. Where epochs are compared on a sample of the validation users, the weights that
    are kept are measured on all of them at the end.

    task: what a checkpoint belongs to, besides seed and config.
    Raises TrainingError when the loss is no longer finite, when memory does not suffice for a step,
    and when the checkpoint belongs to another run; ConfigError for a device that this machine
    lacks, and for a precision that the device lacks.
    """
    reuse_freed_memory()
    options = options or RunOptions()
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    model.begin(dataset)
    training = _Training(model, dataset, objective, config, seed, device, precision)
    best = copy.deepcopy(model.state_dict())
    begun = -math.inf if objective.trained_from is None else training.validate()
    progress = Progress(seed, config, task, (), 0)
    checkpoint = options.checkpoint
    if checkpoint is not None and is_checkpoint(checkpoint):
        progress = load_checkpoint(
            checkpoint, model, training.averaged, training.optimizer, best, progress
        )
    curve, best_epoch = list(progress.curve), progress.best_epoch
    earlier, asked_earlier = (curve[-1].seconds, curve[-1].asked) if curve else (0.0, 0.0)
    began, asked_before = time.perf_counter(), objective.asked_seconds()
    while len(curve) < config.epochs and len(curve) - best_epoch < config.patience:
        number = len(curve) + 1
        mean_loss = training.train_epoch(number)
        ndcg = training.validate()
        seconds = earlier + time.perf_counter() - began
        asked = asked_earlier + objective.asked_seconds() - asked_before
        curve.append(Epoch(number, mean_loss, ndcg, seconds, asked))
        if ndcg > (curve[best_epoch - 1].validation_ndcg if best_epoch else begun):
            best_epoch = number
            best = copy.deepcopy(training.averaged.state_dict())
        if checkpoint is not None and parallel.rank_and_size()[0] == 0:
            save_checkpoint(
                checkpoint,
                model,
                training.averaged,
                training.optimizer,
                best,
                Progress(seed, config, task, tuple(curve), best_epoch),
            )
        options.on_epoch(curve[-1], config.epochs)
    model.load_state_dict(best)
    over_all = training.validate_over_all()
    if over_all is None and best_epoch == 0:
        over_all = begun
    model.cpu().eval()
    return TrainingResult(tuple(curve), best_epoch, over_all)


class _Training:
    """A model on its device with its optimizer and the moving average of its weights."""

    def __init__(
        self,
        model: SequenceModel,
        dataset: Dataset,
        objective: Objective,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.model, self.device, self.precision = model.to(device), device, precision
        self.dataset, self.objective, self.config, self.seed = dataset, objective, config, seed
        self.averaged = copy.deepcopy(model)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            fused=device.type in ("cpu", "cuda"),
        )
        length = min(config.window or model.max_history, model.max_history)
        context = int(config.context * length)
        self.windows = training_windows(dataset, length, context, objective.trained_from)
        self.steps_per_epoch = math.ceil(len(self.windows.starts) / config.batch_size)
        self.mask_seen = config.mask_seen and not dataset.info.repeats
        popular = torch.from_numpy(
            dataset.popularity()[: dataset.info.warm_items].astype(np.float64)
        )
        targets = dataset.info.targets
        if targets is not None:  # an item may have no target, and is still scored
            popular = popular.clamp(min=1.0)
        self.negative_weight = 0.0 if targets is None else targets.negative_weight
        self.drawn_by = popular**NEGATIVE_POWER / (popular**NEGATIVE_POWER).sum()  # (items,)
        self.group = parallel.rank_and_size()
        self.held_out = questions(dataset, "validation")
        self.asked = sample_of(self.held_out, config.validation_users, seed)

    def train_epoch(self, number: int) -> float:
        """Take the steps of an epoch, counted from 1, and return the mean loss.

        Raises TrainingError when it is not finite, and when memory does not suffice for a step.
        """
        rng = np.random.default_rng([self.seed, number])
        changes = np.random.default_rng([self.seed, number, self.group[0], 1])
        own_generators = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=own_generators):
            torch.manual_seed(int(rng.integers(2**31)) + self.group[0])
            self.model.train()
            orders = self.objective.orders or Orders(self.seed)
            ordered = orders.of_epoch(self.dataset, number)
            batches = training_batches(
                ordered.dataset,
                self.windows,
                self.config.batch_size,
                rng,
                self.group,
                ordered.keys,
            )
            first = (number - 1) * self.steps_per_epoch
            with enough_memory(self.device, self.config.batch_size):
                losses = [
                    self._step(batch, first + place, changes) for place, batch in enumerate(batches)
                ]
        mean_loss = float(np.mean(losses))
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"the loss is {mean_loss} in epoch {number}",
                fix="lower training.learning_rate",
                epoch=number,
            )
        return mean_loss

    def validate(self) -> float:
        """Return NDCG@10 of the averaged weights over the users on whom epochs are compared."""
        return mean_ndcg(TorchScorer(self.averaged), self.asked)

    def validate_over_all(self) -> float | None:
        """Return NDCG@10 of the model over all validation users; None where these are the same."""
        if self.asked is self.held_out:
            return None
        return mean_ndcg(TorchScorer(self.model), self.held_out)

    def _step(self, batch: Batch, step: int, changes: np.random.Generator) -> float:
        """Take one step, counted from 0 over all epochs, and return its loss. changes: draws what
        other windows are made of.
        """
        config, model, objective = self.config, self.model, self.objective
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.steps_per_epoch)
        done = step / (config.epochs * self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        positions = self._encoded(batch)
        value, number = 0.0, 0.0
        if positions is not None:
            value = float(add_gradients(model, positions, objective.loss, done, self.precision))
            number = positions.total
        if positions is not None and objective.more is not None:
            others = self._encoded(objective.more.make(batch, changes))
            if others is not None:
                loss = objective.more.loss
                value += float(
                    add_gradients(model, others, loss, done, self.precision, penalized=False)
                )
        shared = parallel.share_gradients(model, value, number)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        self.optimizer.step()
        average(self.averaged, model, config.averaging, step)
        return shared

    def _encoded(self, batch: Batch) -> Positions | None:
        if batch.unwanted is not None and not self.negative_weight:
            batch = replace(batch, unwanted=None)
        with computing_in(self.precision, self.device):
            return encode_positions(
                self.model,
                batch,
                self.config,
                mask_seen=self.mask_seen,
                drawn_by=self.drawn_by,
                processes=self.group[1],
                cold_items=self.objective.cold_items,
                negative_weight=self.negative_weight,
            )
