"""Differentially private training of a student: DP-SGD (Abadi et al. 2016, algorithm 1) with users
as the examples.

    g = 1/L (sum over the drawn users of g_u min(1, C / |g_u|) + N(0, sigma^2 C^2 I))

Every step draws each user with the same probability (Poisson sampling), clips the gradient of the
user's mean loss, and adds noise. Clipping, noise and accounting are those of Opacus (Yousefpour et
al. 2021); the noise multiplier is the smallest one whose steps, together with the noisy item counts
that the biases begin with, spend no more than the epsilon asked for.

What is covered, and what is not, says docs/privacy.md. Labels of a teacher that was trained on the
same users carry what it learned from them, so there are none here: the student learns from the
ground truth.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from distilrec.bundle.privacy import PrivacyRecord
from distilrec.data.dataset import Dataset, derived_features
from distilrec.errors import ConfigError
from distilrec.networks.batches import Batch, Windows, batch_of
from distilrec.networks.build import StudentConfig, build_model
from distilrec.networks.on_cpu import only_torch
from distilrec.networks.orders import Orders
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import SequenceModel, TorchScorer
from distilrec.privacy.accounting import PrivateTrainingConfig, noise_of_one_release
from distilrec.training.memory import reuse_freed_memory
from distilrec.training.options import Epoch, RunOptions, TrainingResult
from distilrec.training.schedule import average
from distilrec.training.scoring import MASKED_LOGIT, seen_so_far
from distilrec.training.trained import TrainedModel, finished
from distilrec.training.validation import validation_ndcg

_LOGITS = 2**23  # of the users whose gradients are computed together
_COUNT_SHARE = 0.1  # of epsilon: what the item counts alone would spend
_REPORTS = 10  # how often a training says how far it is
_ERROR = 0.01  # of epsilon: how exact the accountant is
_MOST_NOISE = 2.0**20
_CLOSE = 0.02  # of epsilon: how near the search for the noise multiplier comes


def train_private(
    config: StudentConfig,
    dataset: Dataset,
    training: PrivateTrainingConfig,
    *,
    seed: int,
    start: TrainedModel | None = None,
    options: RunOptions | None = None,
) -> TrainedModel:
    """Return a student whose weights are differentially private; its record says what was spent.

    No step is chosen on validation: the mean of the last weights is kept, and its validation
    NDCG@10 is for information.
    start: a student of the same catalogue whose weights to begin with, of users who need no
    protection; without it the biases begin with noisy item counts, which cost a little of epsilon.
    options: of them only `on_epoch` counts, which is called ten times, and at the end with the
    figure; a private training runs on the CPU in float32 and keeps no checkpoint.
    Raises ConfigError for a student that is not recurrent, and for data with features that are
    derived from the log.
    """
    on_epoch = (options or RunOptions()).on_epoch
    _check(config, dataset)
    assert isinstance(config, RecurrentConfig)
    # Neighbours would come from the log without noise, and repeats belong to them
    config = msgspec.structs.replace(config, neighbours=0, repeat_events=0)
    reuse_freed_memory()
    model = build_model(msgspec.structs.replace(config, dropout=0.0), dataset, seed)
    latest = _latest_windows(dataset, min(training.events, model.max_history))
    plan = _Plan.of(training, len(latest.starts), with_counts=start is None)
    generator = torch.Generator().manual_seed(seed)
    if start is None:
        _begin_with_counts(model, dataset, latest, plan.spent.count_noise, generator)
    else:
        _begin_with(model, start)
    began = time.perf_counter()
    mean_loss = _take_steps(
        _Steps(model, dataset, latest, plan, generator),
        seed,
        lambda step, loss: on_epoch(
            Epoch(step, loss, 0.0, time.perf_counter() - began), training.steps
        ),
    )
    ndcg = validation_ndcg(TorchScorer(model), dataset)
    last = Epoch(1, mean_loss, ndcg, time.perf_counter() - began)
    on_epoch(msgspec.structs.replace(last, epoch=training.steps), training.steps)
    trained = finished(model, config, seed, dataset, TrainingResult((last,), 1))
    return TrainedModel(model, msgspec.structs.replace(trained.record, privacy=plan.record()))


@dataclass(frozen=True)
class _Plan:
    """What a private training is accounted for.

    users: number of users with training rows; rate: probability of each of them in a step; delta:
    of the guarantee; spent: the noise and the epsilon.
    """

    training: PrivateTrainingConfig
    users: int
    rate: float
    delta: float
    spent: Spent

    @classmethod
    def of(cls, training: PrivateTrainingConfig, users: int, *, with_counts: bool) -> _Plan:
        rate = min(1.0, training.users_per_step / users)
        delta = 1 / (10 * users) if training.delta is None else training.delta
        spent = noise_for(training.epsilon, delta, rate, training.steps, with_counts=with_counts)
        return cls(training, users, rate, delta, spent)

    def record(self) -> PrivacyRecord:
        """Return what the record of the trained model says."""
        return PrivacyRecord(
            self.spent.epsilon,
            self.delta,
            self.spent.noise_multiplier,
            self.spent.count_noise,
            self.training.users_per_step,
            self.users,
            self.training.steps,
            self.training.clip_norm,
        )


class _Steps:
    """The steps of a private training, one after the other."""

    def __init__(
        self,
        model: SequenceModel,
        dataset: Dataset,
        latest: Windows,
        plan: _Plan,
        generator: torch.Generator,
    ) -> None:
        self.model, self.plan = model, plan
        self.dataset, self._latest = dataset, latest
        self._loss = _UserLoss(model)
        self._parameters = dict(model.named_parameters())
        self._optimizer = DPOptimizer(
            torch.optim.Adam(model.parameters(), lr=plan.training.learning_rate),
            noise_multiplier=plan.spent.noise_multiplier,
            max_grad_norm=plan.training.clip_norm,
            expected_batch_size=max(1, round(plan.rate * plan.users)),
            generator=generator,
        )
        self._users_together = max(1, _LOGITS // (plan.training.events * model.items.warm_items))

    def take(self, step: int, drawn: NDArray[np.int64]) -> list[float]:
        """Take a step with the users drawn for it; return the loss of each."""
        training = self.plan.training
        for group in self._optimizer.param_groups:
            group["lr"] = training.learning_rate * (
                0.55 + 0.45 * math.cos(math.pi * step / training.steps)
            )
        # Without any user, a step of noise alone
        starts = range(0, max(1, len(drawn)), self._users_together)
        losses: list[float] = []
        for start in starts:
            values, gradients = _user_gradients(
                self._loss,
                self._parameters,
                self.dataset,
                self._latest,
                drawn[start : start + self._users_together],
            )
            for name, parameter in self._parameters.items():
                # What Opacus reads
                parameter.grad_sample = gradients[name]  # type: ignore[attr-defined]
            losses += values.tolist()
            self._optimizer.signal_skip_step(do_skip=start != starts[-1])
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return losses


def _take_steps(steps: _Steps, seed: int, report: Callable[[int, float], None]) -> float:
    """Take all steps, give the model the mean of its last weights, and return the latest mean loss.
    The histories of a log without order are shuffled whenever each user has been drawn once on
    average; how those of one user are shuffled says nothing of another user.

    report: called ten times, with the number of steps and the mean loss of those since the last
    call.
    """
    model, plan, training = steps.model, steps.plan, steps.plan.training
    rng = np.random.default_rng([seed, 1])
    averaged = copy.deepcopy(model)
    dataset, epoch = steps.dataset, 0
    recent: list[float] = []
    mean_loss = 0.0
    for step in range(training.steps):
        if int(step * plan.rate) + 1 > epoch:
            epoch = int(step * plan.rate) + 1
            steps.dataset = Orders(seed).of_epoch(dataset, epoch).dataset
        recent += steps.take(step, np.flatnonzero(rng.random(plan.users) < plan.rate))
        average(averaged, model, training.averaging, step)
        if (step + 1) % max(1, training.steps // _REPORTS) == 0:
            mean_loss = float(np.mean(recent)) if recent else mean_loss
            report(step + 1, mean_loss)
            recent = []
    model.load_state_dict(averaged.state_dict())
    model.eval()
    return mean_loss


class Spent(msgspec.Struct, frozen=True):
    """Noise multipliers of the steps and of the item counts, and the epsilon that both spend
    together.
    """

    noise_multiplier: float
    count_noise: float
    epsilon: float


def noise_for(
    epsilon: float, delta: float, rate: float, steps: int, *, with_counts: bool = True
) -> Spent:
    """Return the smallest noise that keeps to epsilon, found by bisection with the PRV accountant
    (Gopi et al. 2021).

    rate: how likely a user is drawn in a step; with_counts: item counts are told as well.
    Raises ConfigError where no amount of noise does, or none is needed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the accountant takes logarithms of 0 on purpose
            return _noise_for(epsilon, delta, rate, steps, with_counts)
    except RuntimeError as problem:  # noise so small that the accountant's numerics give up
        raise ConfigError(
            f"what an epsilon of {epsilon} allows cannot be accounted for: {problem}",
            fix="ask for an epsilon below 100; a larger one does not protect users",
            parameter="epsilon",
        ) from None


def _noise_for(epsilon: float, delta: float, rate: float, steps: int, with_counts: bool) -> Spent:
    counts = noise_of_one_release(_COUNT_SHARE * epsilon, delta) if with_counts else 0.0

    def spent(noise: float) -> float:
        accountant = PRVAccountant()
        accountant.history = [(noise, rate, steps), *([(counts, 1.0, 1)] if with_counts else [])]
        return float(accountant.get_epsilon(delta, eps_error=_ERROR * epsilon))

    low, high = 0.0, 1.0
    while (value := spent(high)) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ConfigError(
                f"no noise keeps {steps} steps within epsilon {epsilon}",
                fix="ask for more epsilon, or fewer steps",
                parameter="epsilon",
            )
    while epsilon - value > _CLOSE * epsilon and high - low > 1e-3 * high:
        middle = (low + high) / 2
        of_middle = spent(middle)
        low, high, value = (
            (middle, high, value) if of_middle > epsilon else (low, middle, of_middle)
        )
    return Spent(high, counts, value)


def _check(config: StudentConfig, dataset: Dataset) -> None:
    if not isinstance(config, RecurrentConfig):
        raise ConfigError(
            "only the recurrent student can be trained privately",
            fix='set kind = "recurrent" in [student]',
            parameter="student",
        )
    if config.neighbours:
        raise ConfigError(
            "the neighbours of the items come from the log without noise",
            fix="set neighbours = 0 in [student]",
            parameter="neighbours",
        )
    if config.repeat_events:
        raise ConfigError(
            "what a choice says of the same item again cannot be learned privately",
            fix="set repeat_events = 0 in [student]",
            parameter="repeat_events",
        )
    if config.time:
        raise ConfigError(
            "a student that is told the time cannot be trained privately",
            fix="set time = false in [student]",
            parameter="time",
        )
    roles, targets = dataset.roles, dataset.info.targets
    if targets is not None and roles is not None:
        negative = roles.negative.any() and targets.negative_weight > 0
        if negative or roles.weighted:
            raise ConfigError(
                "a private student has neither a term of negative events nor weights of targets",
                fix="set negative_weight = 0 in [targets], and leave out loss_weight",
                parameter="targets",
            )
    if dataset.info.schema.context:
        raise ConfigError(
            "a student that is told a context cannot be trained privately",
            fix="leave context_features out of [data.schema]",
            parameter="context_features",
        )
    names = {encoding.name for encoding in dataset.info.item_encoder.encodings}
    if names & {feature.name for feature in derived_features(dataset.info.schema)}:
        raise ConfigError(
            "the popularity of the items, which is a feature of this data set, comes from the log "
            "without noise",
            fix="set derived_features = false in the [data] section and prepare again",
            parameter="data.derived_features",
        )


def _latest_windows(dataset: Dataset, length: int) -> Windows:
    """Return the latest rows of every user with training rows, one window each."""
    users = np.flatnonzero(dataset.train_end > dataset.offsets[:-1])
    stops = dataset.train_end[users]
    starts = np.maximum(dataset.offsets[users], stops - length)
    return Windows(starts, starts, stops, users)


def _begin_with_counts(
    model: SequenceModel,
    dataset: Dataset,
    latest: Windows,
    noise: float,
    generator: torch.Generator,
) -> None:
    """Set the biases to the logarithm of noisy item counts."""
    counts = _counts(dataset, latest, model.items.warm_items)
    noisy = torch.from_numpy(counts) + noise * torch.randn(
        len(counts), generator=generator, dtype=torch.float64
    )
    logarithm = torch.log(noisy.clamp(min=max(noise, 0.1)))
    with torch.no_grad():
        model.items.bias.copy_((logarithm - logarithm.mean()).float())


def _begin_with(model: SequenceModel, start: TrainedModel) -> None:
    try:
        model.load_state_dict(start.model.state_dict())
    except RuntimeError:  # torch's word for names or shapes that do not fit
        raise ConfigError(
            "the student to begin with is of another shape",
            fix="train it with the same [student] section, neighbours = 0 and repeat_events = 0 on "
            "the same catalogue (`Dataset.select_users` keeps it)",
            parameter="start",
        ) from None


def _counts(dataset: Dataset, latest: Windows, items: int) -> NDArray[np.float64]:
    """Return how often each item occurs, (items,); the n items of a user count 1/sqrt(n) each, so
    that the counts of a user have length 1.
    """
    counts = np.zeros(items)
    for start, stop in zip(latest.starts, latest.stops, strict=True):
        of_user = dataset.items[start:stop]
        if dataset.roles is not None:
            of_user = of_user[dataset.roles.target[dataset.events[start:stop]]]
        of_user = np.unique(of_user)
        of_user = of_user[(of_user >= 0) & (of_user < items)]
        counts[of_user] += 1 / math.sqrt(max(1, len(of_user)))
    return counts


class _UserLoss(nn.Module):
    """The mean over a user's events of -log softmax(s)[y]."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        user: torch.Tensor,
        items: torch.Tensor,
        events: torch.Tensor,
        targets: torch.Tensor,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """items, events, targets: (length,); seen: (length, items) bool."""
        tower = self.model.items
        batch = Batch(
            user[None], items[None], events[None], targets[None], targets[None], items[None, :0]
        )
        vectors = tower.vectors()
        states = self.model.encode(batch, vectors)[0]
        logits = self.model.score(states, vectors[: tower.warm_items], tower.bias)
        logits = torch.where(seen, MASKED_LOGIT, logits)
        counted = (targets >= 0) & (targets < tower.warm_items)
        losses = functional.cross_entropy(
            logits, torch.where(counted, targets, 0), reduction="none"
        )
        return (losses * counted).sum() / counted.sum().clamp(min=1)


def _user_gradients(
    loss: _UserLoss,
    parameters: dict[str, nn.Parameter],
    dataset: Dataset,
    latest: Windows,
    drawn: NDArray[np.int64],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of every user drawn, (users,), and its gradients, (users, *shape) by name."""
    if not len(drawn):
        return torch.zeros(0), {
            name: parameter.new_zeros(0, *parameter.shape) for name, parameter in parameters.items()
        }
    warm = loss.model.items.warm_items
    batch = batch_of(dataset, latest, drawn)
    length = batch.items.shape[1]
    if dataset.info.repeats:
        seen = torch.zeros(len(drawn), length, warm, dtype=torch.bool)
    else:
        window = torch.arange(len(drawn)).repeat_interleave(length)
        position = torch.arange(length).repeat(len(drawn))
        seen = (
            seen_so_far(batch, dataset.catalogue_size, window, position)
            .among(slice(warm))
            .view(len(drawn), length, warm)
        )
        targets = batch.targets.clamp(0, warm - 1).unsqueeze(-1)
        # An event that repeats an earlier one is still scored
        seen = seen.scatter(2, targets, value=False)

    def of_user(
        values: dict[str, torch.Tensor],
        user: torch.Tensor,
        items: torch.Tensor,
        events: torch.Tensor,
        targets: torch.Tensor,
        seen: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        named = {f"model.{name}": value for name, value in values.items()}
        value: torch.Tensor = functional_call(loss, named, (user, items, events, targets, seen))
        return value, value

    with only_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that some operations are not vectorised
        gradients, values = vmap(grad(of_user, has_aux=True), in_dims=(None, 0, 0, 0, 0, 0))(
            dict(parameters), batch.users, batch.items, batch.events, batch.targets, seen
        )
    return values.detach(), {name: value.detach() for name, value in gradients.items()}
