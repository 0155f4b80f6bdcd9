"""A search for hyper-parameters of student and distillation within a budget, on validation data
only (Optuna).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from distilrec.data.dataset import Dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.distill.sources import Labels
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import key_of
from distilrec.networks.build import StudentConfig, student_class
from distilrec.training.options import Epoch, RunOptions, TrainingConfig

if TYPE_CHECKING:
    import optuna

_BEFORE_PRUNING = 5  # trials, and epochs of a trial, that run without being compared


@dataclass(frozen=True)
class Setup:
    """What a search changes: the student, its training and its distillation."""

    student: StudentConfig
    training: TrainingConfig
    distillation: DistillationConfig


@dataclass(frozen=True)
class Choice:
    """A student with its training, and the validation NDCG@10 that it reached."""

    student: StudentConfig
    training: TrainingConfig
    distillation: DistillationConfig
    validation_ndcg: float
    trial: int

    def toml(self) -> str:
        """Return the sections of a configuration file."""
        sections = (
            ("student", self.student),
            ("student_training", self.training),
            ("distillation", self.distillation),
        )
        lines = [f"# validation NDCG@10 {self.validation_ndcg:.4f} in trial {self.trial}"]
        for name, config in sections:
            lines += ["", f"[{name}]"]
            lines += [
                f"{key} = {json.dumps(value)}" for key, value in msgspec.to_builtins(config).items()
            ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Budget:
    """The maximum number of students to train, and the minutes after which none is begun. Raises
    ConfigError for a budget of nothing.
    """

    trials: int
    minutes: float

    def __post_init__(self) -> None:
        if self.trials < 1 or self.minutes <= 0:
            raise ConfigError(
                f"a search of {self.trials} trials in {self.minutes} minutes does nothing",
                fix="use at least 1 and more than 0",
                parameter="trials",
            )


def tune(
    start: Setup,
    dataset: Dataset,
    labels: Sequence[Labels],
    folder: Path,
    *,
    seed: int,
    budget: Budget,
    options: RunOptions | None = None,
    on_trial: Callable[[int, float, float], None] = lambda trial, value, best: None,
) -> Choice:
    """Return the best student that a search finds within a budget; each trial learns from the same
    stored labels.

    start: the setup of the first trial. folder: keeps the trials, so that a search that was
    interrupted, or is called again, continues; a trial that is behind the median is given up early.
    options: of them device and precision count, for each training.
    on_trial: is called with the number of each trial, its value and the best one so far.
    Raises TrainingError when no trial was finished.
    """
    import optuna

    study = _open_study(folder, _key(start, dataset, labels, seed), seed)
    if not study.trials:
        study.enqueue_trial(_as_parameters(start))

    options = options or RunOptions()
    here = RunOptions(options.device, options.precision)

    def objective(trial: optuna.Trial) -> float:
        setup = _suggest(trial, start)
        trained = distill_model(
            setup.student,
            dataset,
            labels,
            setup.training,
            setup.distillation,
            seed=seed,
            options=replace(here, on_epoch=_pruned(trial)),
        )
        return trained.best_ndcg

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        values = [finished.value for finished in _finished(study) if finished.value is not None]
        value = max(trial.intermediate_values.values(), default=0.0)
        on_trial(trial.number + 1, value, max(values, default=0.0))

    study.optimize(
        objective,
        n_trials=budget.trials,
        timeout=60 * budget.minutes,
        callbacks=[after],
        catch=(TrainingError,),
    )
    if not _finished(study):
        raise TrainingError("no trial of the search was finished", fix="give it more minutes")
    best = study.best_trial
    setup = _suggest(optuna.trial.FixedTrial(best.params), start)
    ndcg = float(best.value or 0.0)
    return Choice(setup.student, setup.training, setup.distillation, ndcg, best.number + 1)


def _pruned(trial: optuna.Trial) -> Callable[[Epoch, int], None]:
    """Return what is called after each epoch of a trial: it ends a trial that is behind."""
    import optuna

    best = 0.0

    def on_epoch(epoch: Epoch, total: int) -> None:
        nonlocal best
        best = max(best, epoch.validation_ndcg)
        trial.report(best, epoch.epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    return on_epoch


def _key(start: Setup, dataset: Dataset, labels: Sequence[Labels], seed: int) -> str:
    """Return a key of everything that the trials of a search depend on."""
    return key_of(
        dataset.fingerprint(),
        [one.manifest for one in labels],
        start.student,
        start.training,
        start.distillation,
        seed,
    )


def _open_study(folder: Path, key: str, seed: int) -> optuna.Study:
    """Return the study with this key in a folder, a new one where there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "trials.jsonl"))),
        study_name=key[:16],
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_BEFORE_PRUNING),
        pruner=optuna.pruners.MedianPruner(_BEFORE_PRUNING, _BEFORE_PRUNING),
    )


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _as_parameters(setup: Setup) -> dict[str, Any]:
    """Return a setup as the parameters of a trial; the sampler chooses values outside the space."""
    student, distillation = setup.student, setup.distillation
    parameters: dict[str, Any] = {
        "learning_rate": setup.training.learning_rate,
        "soft_weight": distillation.soft_weight,
        "temperature": distillation.temperature,
    }
    if "dropout" in student.__struct_fields__:
        parameters["dropout"] = distillation.dropout
    return parameters | {name: getattr(student, name) for name in student_class(student).space}


def _suggest(trial: Any, start: Setup) -> Setup:
    """Return the setup of a trial. The width of the student is the caller's choice of size and
    stays.
    """
    student, replace = start.student, msgspec.structs.replace
    learning_rate = trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True)
    soft_weight = trial.suggest_float("soft_weight", 0.0, 1.0)
    temperature = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    has_dropout = "dropout" in student.__struct_fields__
    dropout = trial.suggest_float("dropout", 0.0, 0.6) if has_dropout else 0.0
    space = student_class(student).space
    changes = {name: values.suggest(trial, name) for name, values in space.items()}
    return Setup(
        replace(student, **changes),
        replace(start.training, learning_rate=learning_rate),
        replace(
            start.distillation, soft_weight=soft_weight, temperature=temperature, dropout=dropout
        ),
    )
