"""A search for the hyper-parameters of a student within a budget, on validation data only (Optuna).

The student without distillation gets a search of its own with the same budget, so that the gain of
distillation is measured against the best student that the log alone gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from distilrec.data.dataset import Dataset
from distilrec.distill.altered import AlteredConfig
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.distill.sources import Labels
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import key_of
from distilrec.networks.build import StudentConfig, student_class
from distilrec.training.options import Epoch, RunOptions, TrainingConfig
from distilrec.training.trained import TrainedModel, train_model

if TYPE_CHECKING:
    import optuna

_BEFORE_PRUNING = 5  # first trials, and first steps of a trial, that are never pruned
_STEPS = 20  # comparisons of a trial with others, at equal shares of its epochs
# The choices of a trial, besides the value that the search begins with
_WINDOWS = (0, 25, 50, 100, 200)
_CONTEXTS = (0.0, 0.25, 0.5, 0.75)
_BATCHES = (8, 16, 32, 64)
_AVERAGES = (0.99, 0.995, 0.998, 0.999)
_DECAYS = (0.0, 0.001, 0.01, 0.1)
_TEMPERATURES = (0.5, 1.0, 2.0)
_ALTERED = (0.0, 0.25, 0.5)


@dataclass(frozen=True)
class Setup:
    """The settings that a search changes: student, training, and distillation, which is None for a
    student without distillation.
    """

    student: StudentConfig
    training: TrainingConfig
    distillation: DistillationConfig | None


@dataclass(frozen=True)
class Choice:
    """The best settings of a search, and the validation NDCG@10 that they reached. trial: the
    number of the trial, from 1; trials: number of trials so far.
    """

    student: StudentConfig
    training: TrainingConfig
    distillation: DistillationConfig | None
    validation_ndcg: float
    trial: int
    trials: int


@dataclass(frozen=True)
class Tuned:
    """The results of the searches, for the student with distillation and for that without; None
    where there was no search.
    """

    student: Choice | None
    baseline: Choice | None

    def toml(self) -> str:
        """Return the results as sections of a configuration file."""
        sections: dict[str, object] = {}
        lines = []
        if self.student is not None:
            lines.append(_found("student", self.student))
            sections["student"] = self.student.student
            sections["student_training"] = self.student.training
            sections["distillation"] = self.student.distillation
        if self.baseline is not None:
            lines.append(_found("student without distillation", self.baseline))
            sections["baseline.student"] = self.baseline.student
            sections["baseline.training"] = self.baseline.training
        sections["tuned"] = {
            name: choice.trials
            for name, choice in (("student", self.student), ("baseline", self.baseline))
            if choice is not None
        }
        for name, config in sections.items():
            lines += _section(name, msgspec.to_builtins(config))
        return "\n".join(lines) + "\n"


def _found(name: str, choice: Choice) -> str:
    return (
        f"# {name}: validation NDCG@10 {choice.validation_ndcg:.4f} in trial {choice.trial} of "
        f"{choice.trials}"
    )


def _section(name: str, values: dict[str, Any]) -> list[str]:
    """Return the lines of a section of TOML and of the sections inside it."""
    lines, inside = ["", f"[{name}]"], []
    for key, value in values.items():
        if isinstance(value, dict):
            inside += _section(f"{name}.{key}", value)
        elif value is not None:
            lines.append(f"{key} = {json.dumps(value)}")
    return lines + inside


@dataclass(frozen=True)
class Budget:
    """The maximum number of trainings, and the minutes after which no new one begins. Raises
    ConfigError for a budget without any training.
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
    """Return the best student that a search finds within a budget. All trials use the same labels,
    or none where the setup has no distillation.

    start: the setup of the first trial. folder: keeps the trials, so that a search that was
    interrupted, or is called again, continues. A trial below the median of the earlier ones ends
    early. options: only device and precision are used. on_trial: is called after each trial with
    its number, its validation NDCG@10 and the best so far.
    Raises TrainingError when no trial was finished.
    """
    import optuna

    study = _open_study(folder, _key(start, dataset, labels, seed), seed)
    if not study.trials:
        study.enqueue_trial(_as_parameters(start))

    options = options or RunOptions()
    shared = RunOptions(options.device, options.precision)

    def objective(trial: optuna.Trial) -> float:
        of_trial = replace(shared, on_epoch=_pruned(trial))
        return _trained(_suggest(trial, start), dataset, labels, seed, of_trial).best_ndcg

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
    return Choice(
        setup.student,
        setup.training,
        setup.distillation,
        ndcg,
        best.number + 1,
        len(study.trials),
    )


def _trained(
    setup: Setup, dataset: Dataset, labels: Sequence[Labels], seed: int, options: RunOptions
) -> TrainedModel:
    """Train a student as its setup says."""
    student, training = setup.student, setup.training
    if setup.distillation is None:
        return train_model(student, dataset, training, seed=seed, options=options)
    return distill_model(
        student, dataset, labels, training, setup.distillation, seed=seed, options=options
    )


def _pruned(trial: optuna.Trial) -> Callable[[Epoch, int], None]:
    """Return a callback for the epochs of a trial, which ends a trial below the median."""
    import optuna

    best, reported = 0.0, 0

    def on_epoch(epoch: Epoch, total: int) -> None:
        nonlocal best, reported
        best, step = max(best, epoch.validation_ndcg), _STEPS * epoch.epoch // total
        if step > reported:
            trial.report(best, reported := step)
        if trial.should_prune():
            raise optuna.TrialPruned

    return on_epoch


def _key(start: Setup, dataset: Dataset, labels: Sequence[Labels], seed: int) -> str:
    """Return a key of everything that the trials of a search depend on."""
    return key_of(
        dataset.fingerprint(),
        [of_teacher.manifest for of_teacher in labels],
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
    """Return a setup as the parameters of the first trial."""
    student, distillation = setup.student, setup.distillation
    searched = (
        "learning_rate", "window", "context", "epochs", "batch_size", "averaging", "weight_decay",
    )  # fmt: skip
    parameters: dict[str, Any] = {name: getattr(setup.training, name) for name in searched}
    if distillation is not None:
        parameters["soft_weight"] = distillation.soft_weight
        parameters["temperature"] = distillation.temperature
        if distillation.labels == "asked":
            parameters["altered"] = distillation.altered.share
    if "dropout" in student.__struct_fields__:
        settings = student if distillation is None else distillation
        parameters["dropout"] = settings.dropout  # type: ignore[union-attr]
    return parameters | {name: getattr(student, name) for name in student_class(student).space}


def _suggest(trial: Any, start: Setup) -> Setup:
    """Return the setup of a trial. The size of the student is the user's choice and stays."""
    student, distillation, replace = start.student, start.distillation, msgspec.structs.replace
    training = _suggest_training(trial, start.training, student.max_history)  # type: ignore[attr-defined]
    space = student_class(student).space
    changes = {name: values.suggest(trial, name) for name, values in space.items()}
    dropout = {}
    if "dropout" in student.__struct_fields__:
        dropout["dropout"] = trial.suggest_float("dropout", 0.0, 0.6)
    if distillation is None:
        return Setup(replace(student, **changes, **dropout), training, None)
    temperatures = _with(_TEMPERATURES, distillation.temperature)
    distillation = replace(
        distillation,
        soft_weight=trial.suggest_float("soft_weight", 0.0, 1.0),
        temperature=trial.suggest_categorical("temperature", temperatures),
        altered=_suggest_altered(trial, distillation),
        **dropout,
    )
    return Setup(replace(student, **changes), training, distillation)


def _suggest_training(trial: Any, start: TrainingConfig, longest: int) -> TrainingConfig:
    """Return the training settings of a trial. longest: `max_history` of the student.

    Where the settings at the start exclude early stopping, those of every trial do.
    """
    windows = _with([window for window in _WINDOWS if window < longest], start.window)
    epochs = trial.suggest_int("epochs", max(1, start.epochs // 2), 2 * start.epochs, log=True)
    return msgspec.structs.replace(
        start,
        epochs=epochs,
        patience=start.patience if start.patience < start.epochs else max(start.patience, epochs),
        learning_rate=trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True),
        window=trial.suggest_categorical("window", windows),
        context=trial.suggest_categorical("context", _with(_CONTEXTS, start.context)),
        batch_size=trial.suggest_categorical("batch_size", _with(_BATCHES, start.batch_size)),
        averaging=trial.suggest_categorical("averaging", _with(_AVERAGES, start.averaging)),
        weight_decay=trial.suggest_categorical("weight_decay", _with(_DECAYS, start.weight_decay)),
    )


def _suggest_altered(trial: Any, start: DistillationConfig) -> AlteredConfig:
    """Return the altered histories of a trial; searched only where the teacher is asked."""
    if start.labels != "asked":
        return start.altered
    share = trial.suggest_categorical("altered", _with(_ALTERED, start.altered.share))
    return msgspec.structs.replace(start.altered, share=share)


def _with(values: Sequence[float], start: float) -> list[float]:
    """Return the values and the one at the start, in rising order."""
    return sorted({*values, start})
