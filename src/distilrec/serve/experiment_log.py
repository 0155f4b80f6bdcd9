"""The experiments of a service, as its store keeps them.

Each change is a setting of its own, numbered, and set only where it is not set yet: of two
processes that change something together one learns that the other was first, and a process that
was killed leaves a change that all others see, or none.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from distilrec.confidence import PLANNED
from distilrec.engine.rules import Placement, Rules
from distilrec.errors import ExperimentConflictError, StoreCorruptedError
from distilrec.serve.schemas import Metric
from distilrec.serve.storage import Storage

CHANGE = "experiments:"  # and a number: names of the settings in the store

State = Literal["running", "promoting", "promoted", "stopped"]


class Experiment(msgspec.Struct, frozen=True):
    """One experiment, as it is now."""

    name: str
    share: float
    """Of users who get the variant."""
    metric: Metric
    state: State
    started: float
    """Seconds since 1970."""
    control_version: str
    variant_version: str
    bundle: str | None = None
    """Folder of the variant's bundle; the active one without it."""
    rules: dict[Placement, Rules] | None = None
    """Rules of the variant; those in force without them."""
    planned: int = PLANNED
    """Answers in both arms at which the interval is narrowest."""
    changed: float = 0.0
    """When its state changed last, seconds since 1970."""

    @property
    def is_open(self) -> bool:
        """Whether users are split."""
        return self.state in {"running", "promoting"}

    def now(self, state: State) -> Experiment:
        """Return it in another state."""
        return msgspec.structs.replace(self, state=state, changed=time.time())


class ExperimentLog:
    """All experiments, followed from the store. One task at a time may call its methods."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._changes = 0
        self.by_name: dict[str, Experiment] = {}

    @property
    def open(self) -> Experiment | None:
        """The experiment that users are split for."""
        return next((one for one in self.by_name.values() if one.is_open), None)

    async def follow(self) -> None:
        """Read what was changed here or by other processes. Raises StoreErrors."""
        if self._changes and await self._storage.setting(f"{CHANGE}{self._changes}") is None:
            self._changes, self.by_name = 0, {}  # a backup was restored
        while (text := await self._storage.setting(f"{CHANGE}{self._changes + 1}")) is not None:
            self._apply(text)

    async def change(self, experiment: Experiment) -> None:
        """Store a change, durably. Raises ExperimentConflictError where another process was first,
        StoreErrors.
        """
        text = msgspec.json.encode(experiment, order="deterministic").decode()
        first = await self._storage.first_setting(f"{CHANGE}{self._changes + 1}", text)
        self._apply(first)
        if first != text:
            raise ExperimentConflictError(
                "another process has changed the experiments just now",
                fix="look at GET /v1/experiments, and try again",
            )

    def _apply(self, text: str) -> None:
        try:
            experiment = msgspec.json.decode(text, type=Experiment)
        except msgspec.MsgspecError as problem:
            raise StoreCorruptedError(
                f"change {self._changes + 1} of the experiments cannot be read: {problem}",
                fix="upgrade distilrec, or restore the store",
            ) from None
        self._changes += 1
        self.by_name[experiment.name] = experiment
