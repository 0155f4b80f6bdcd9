"""A search for hyper-parameters of student and distillation within a budget, on validation data
only (Optuna).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from distilrec.data.dataset import Dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.errors import ConfigError, TrainingError
from distilrec.files import key_of
from distilrec.labels.store import LabelStore
from distilrec.networks.build import StudentConfig, student_class
from distilrec.training.options import Epoch, RunOptions, TrainingConfig

if TYPE_CHECKING:
    import optuna

_BEFORE_PRUNING = 5  # trials, and epochs of a trial, that run without being compared


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
                f"a search of {self.trials} trials in {self.minutes} minutes is none",
                fix="use at least 1 and more than 0",
                parameter="trials",
            )


def tune(
    student: StudentConfig,
    dataset: Dataset,
    labels: Sequence[LabelStore],
    training: TrainingConfig,
    distillation: DistillationConfig,
    folder: Path,
    *,
    seed: int,
    budget: Budget,
    device: str = "auto",
    on_trial: Callable[[int, float, float], None] = lambda trial, value, best: None,
) -> Choice:
    """Return the best student that a search finds within a budget; each trial learns from the same
    stored labels.

    The first trial is the given configuration itself. Trials are kept in `folder`: a search that
    was interrupted, or is called again, goes on with what is known; a trial that is behind the
    median is given up early.
    on_trial: is called with the number of each trial, its value and the best one so far.
    Raises TrainingError when no trial was finished.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    task = key_of(
        dataset.fingerprint(),
        [each.manifest for each in labels],
        student,
        training,
        distillation,
        seed,
    )
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "trials.jsonl"))),
        study_name=task[:16],
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_BEFORE_PRUNING),
        pruner=optuna.pruners.MedianPruner(_BEFORE_PRUNING, _BEFORE_PRUNING),
    )
    if not study.trials:
        study.enqueue_trial(_as_parameters(student, training, distillation))

    def objective(trial: optuna.Trial) -> float:
        chosen = _suggest(trial, student, training, distillation)
        best = 0.0

        def on_epoch(epoch: Epoch, total: int) -> None:
            nonlocal best
            best = max(best, epoch.validation_ndcg)
            trial.report(best, epoch.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        options = RunOptions(device=device, on_epoch=on_epoch)
        return distill_model(
            chosen[0], dataset, labels, chosen[1], chosen[2], seed=seed, options=options
        ).best_ndcg

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        best = max((each.value for each in finished if each.value is not None), default=0.0)
        on_trial(trial.number + 1, max(trial.intermediate_values.values(), default=0.0), best)

    study.optimize(
        objective,
        n_trials=budget.trials,
        timeout=60 * budget.minutes,
        callbacks=[after],
        catch=(TrainingError,),
    )
    if not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        raise TrainingError("no trial of the search was finished", fix="give it more minutes")
    best = study.best_trial
    chosen = _suggest(optuna.trial.FixedTrial(best.params), student, training, distillation)
    return Choice(*chosen, validation_ndcg=float(best.value or 0.0), trial=best.number + 1)


def _as_parameters(
    student: StudentConfig, training: TrainingConfig, distillation: DistillationConfig
) -> dict[str, Any]:
    """Return the given configuration as a trial; the sampler chooses values outside the space."""
    wanted: dict[str, Any] = {
        "learning_rate": training.learning_rate,
        "soft_weight": distillation.soft_weight,
        "temperature": distillation.temperature,
    }
    if "dropout" in student.__struct_fields__:
        wanted["dropout"] = distillation.dropout
    wanted |= {name: getattr(student, name) for name in student_class(student).space}
    return wanted


def _suggest(
    trial: Any, student: StudentConfig, training: TrainingConfig, distillation: DistillationConfig
) -> tuple[StudentConfig, TrainingConfig, DistillationConfig]:
    """Return the space. The width of the student is the caller's choice of size and stays."""
    learning_rate = trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True)
    soft_weight = trial.suggest_float("soft_weight", 0.0, 1.0)
    temperature = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    has_dropout = "dropout" in student.__struct_fields__
    dropout = trial.suggest_float("dropout", 0.0, 0.6) if has_dropout else 0.0
    space = student_class(student).space
    changed = msgspec.structs.replace(
        student, **{name: values.suggest(trial, name) for name, values in space.items()}
    )
    return (
        changed,
        msgspec.structs.replace(training, learning_rate=learning_rate),
        msgspec.structs.replace(
            distillation, soft_weight=soft_weight, temperature=temperature, dropout=dropout
        ),
    )
