"""Run experiments: load a variant, split users, stop, or promote the variant.

One experiment runs at a time. What is stored decides: every process follows it, and a restart goes
on with it. A promotion is stored before it begins; where the process that makes it ends, another
one, or the next start, finishes it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from pathlib import Path

from distilrec.errors import (
    ConfigError,
    DistilrecError,
    ExperimentConflictError,
    RequestError,
    StoreError,
)
from distilrec.ids import as_label
from distilrec.serve.arms import Running
from distilrec.serve.config import ServiceConfig, bundle_root
from distilrec.serve.experiment_log import Experiment, ExperimentLog
from distilrec.serve.experiment_results import results_of
from distilrec.serve.http import Endpoint
from distilrec.serve.logs import log
from distilrec.serve.models import Models, Served
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.parameters import inside
from distilrec.serve.rules import PlacementRules
from distilrec.serve.schemas import (
    MAX_EXPERIMENT,
    ExperimentRequest,
    ExperimentResponse,
    ExperimentResult,
    ExperimentsResponse,
    StartRequest,
)
from distilrec.serve.storage import Storage
from distilrec.serve.swap import Swap, load_for

KEY = "experiments_key"  # name of the setting in the store
_TAKEN_OVER = 10.0  # seconds after which a promotion that another process began is finished here


class Experiments:
    """Change the experiments in the store, and answer as it says."""

    def __init__(
        self,
        config: ServiceConfig,
        models: Models,
        storage: Storage,
        swap: Swap,
        rules: PlacementRules,
        outcomes: Outcomes,
    ) -> None:
        self._config, self._models, self._storage = config, models, storage
        self._swap, self._rules, self._outcomes = swap, rules, outcomes
        self._log = ExperimentLog(storage)
        self._changing = asyncio.Lock()
        swap.guard = self.check_none_runs

    async def all(self) -> ExperimentsResponse:
        """Return all experiments, the latest first. Raises StoreErrors."""
        async with self._changing:
            await self._log.follow()
        found = sorted(self._log.by_name.values(), key=lambda one: one.started, reverse=True)
        results = await results_of(found, self._outcomes) if self._config.outcomes else {}
        return ExperimentsResponse([self._shown(one, results.get(one.name)) for one in found])

    async def start(self, request: StartRequest) -> ExperimentResponse:
        """Load the variant, and split users from now on.

        Raises ExperimentConflictError where an experiment runs, a model is being loaded, or the
        name is taken; RequestError where nothing differs; BundleErrors, ConfigError, InvalidIdError
        and FileMissingError for a variant that cannot be used; StoreErrors. Then nothing changed.
        """
        name = as_label(request.name, "name", MAX_EXPERIMENT)
        if "/" in name:
            raise ConfigError(
                f"the name {name!r} holds a slash", fix="use another character", parameter="name"
            )
        if request.bundle is None and request.rules is None:
            raise RequestError(
                "nothing differs between the arms",
                fix="give the `bundle` of the variant, its `rules`, or both",
            )
        async with self._changing:
            await self._log.follow()
            self._check_free(name)
            try:
                experiment = await self._loaded(name, request)
                await self._log.change(experiment)
            except BaseException:
                self._models.variant = None
                raise
            await self._begin(experiment)
        return self._shown(experiment)

    async def stop(self, request: ExperimentRequest) -> ExperimentResponse:
        """Answer everybody with the control again. Raises ExperimentConflictError where it does not
        run, StoreErrors.
        """
        async with self._changing:
            experiment = (await self._current(request.name)).now("stopped")
            await self._log.change(experiment)
            self._end()
        return self._shown(experiment)

    async def promote(self, request: ExperimentRequest) -> ExperimentResponse:
        """Answer everybody with the variant. Raises ExperimentConflictError where it does not run,
        BundleErrors, StoreErrors; where it had begun, it is finished later.
        """
        async with self._changing:
            experiment = await self._current(request.name)
            await self._begin(experiment)  # before anything is stored: can it be loaded here?
            experiment = experiment.now("promoting")
            await self._log.change(experiment)
            await self._finish(experiment)
        return self._shown(self._log.by_name[request.name])

    async def follow(self) -> None:
        """Answer as the store says. Raises StoreErrors, BundleErrors."""
        if self._changing.locked():  # this process is changing it
            return
        async with self._changing:
            await self._log.follow()
            experiment = self._log.open
            if experiment is None:
                self._end()
                return
            await self._begin(experiment)
            age = time.time() - experiment.changed
            if experiment.state == "promoting" and (not self._storage.shared or age > _TAKEN_OVER):
                await self._finish(experiment)

    async def follow_at_start(self) -> None:
        """Go on with the experiment that runs. Raises StoreErrors; a variant that cannot be loaded
        is tried again later.
        """
        try:
            await self.follow()
        except StoreError:
            raise
        except (DistilrecError, OSError) as problem:
            code = getattr(problem, "code", type(problem).__name__)
            log("the variant of an experiment cannot be loaded", logging.ERROR, code=code)

    async def check_none_runs(self) -> None:
        """Raise ExperimentConflictError where an experiment runs, StoreErrors."""
        async with self._changing:
            await self._log.follow()
            self._check_none_open()

    def _check_none_open(self) -> None:
        if (running := self._log.open) is not None:
            raise ExperimentConflictError(
                f"the experiment {running.name!r} runs", fix="stop or promote it first"
            )

    def _check_free(self, name: str) -> None:
        self._check_none_open()
        if name in self._log.by_name:
            raise ExperimentConflictError(
                f"there was an experiment {name!r}", fix="give this one another name"
            )
        if self._swap.is_busy:
            raise ExperimentConflictError(
                "a model is being loaded", fix="wait until that has finished"
            )

    async def _loaded(self, name: str, request: StartRequest) -> Experiment:
        """Return the experiment of a request, whose variant is in memory and has been checked."""
        folder, recommender = None, self._models.active.recommender
        control = recommender.model_version
        if request.bundle is not None:
            root = bundle_root(self._config)
            folder = inside(root, request.bundle, "bundle", "bundle")
            recommender = (await self._variant(folder)).recommender
        rules = None
        if request.rules is not None:
            rules, _ = self._rules.checked(request.rules, recommender)
        now = time.time()
        return Experiment(
            name,
            request.share,
            request.metric,
            "running",
            now,
            control,
            recommender.model_version,
            None if folder is None else str(folder),
            rules,
            request.planned,
            now,
        )

    async def _variant(self, folder: Path) -> Served:
        """Return the model of a folder, loaded unless it is in memory. Raises BundleErrors."""
        for known in (self._models.active, self._models.variant):
            if known is not None and known.recommender.folder == folder:
                return known
        recommender = await asyncio.to_thread(load_for, self._config, folder)
        served = self._models.variant = Served(recommender)
        await self._storage.follow_store(served)
        return served

    async def _begin(self, experiment: Experiment) -> None:
        """Split users for an experiment, unless they are."""
        running = self._models.running
        if running is not None and running.experiment.name == experiment.name:
            return
        served = None
        if experiment.bundle is not None:
            served = await self._variant(Path(experiment.bundle))
            if served is self._models.active:  # an experiment without a difference, or promoted
                served = None
        key = await self._storage.first_setting(KEY, secrets.token_hex(32))
        self._models.running = Running(experiment, bytes.fromhex(key), self._models, served)
        log("experiment running", experiment=experiment.name, model_version=self._version)

    def _end(self) -> None:
        """Answer everybody with the active model."""
        if self._models.running is not None:
            log("experiment ended", experiment=self._models.running.experiment.name)
        self._models.running = self._models.variant = None

    @property
    def _version(self) -> str:
        served = self._models.variant or self._models.active
        return served.version

    async def _current(self, name: str) -> Experiment:
        await self._log.follow()
        experiment = self._log.by_name.get(name)
        if experiment is None or experiment.state != "running":
            state = "is unknown" if experiment is None else f"is {experiment.state}"
            raise ExperimentConflictError(
                f"the experiment {name!r} {state}", fix="name the one that runs"
            )
        return experiment

    async def _finish(self, experiment: Experiment) -> None:
        """Make the variant what answers everybody; each step may have been done before."""
        running = self._models.running
        if running is not None and running.served is not None:
            await self._swap.promote(running.served)
        if experiment.rules is not None:
            await self._rules.put(experiment.rules)
        await self._log.change(experiment.now("promoted"))
        self._end()

    def _shown(
        self, experiment: Experiment, result: ExperimentResult | None = None
    ) -> ExperimentResponse:
        running = self._models.running
        here = running is not None and running.experiment.name == experiment.name
        return ExperimentResponse(
            experiment.name,
            experiment.state,
            experiment.share,
            experiment.metric,
            experiment.started,
            experiment.changed,
            experiment.control_version,
            experiment.variant_version,
            experiment.planned,
            experiment.rules,
            "" if here or not experiment.is_open else "the variant is not loaded here yet",
            result,
        )


def endpoints(experiments: Experiments) -> list[Endpoint]:
    """Return the endpoints of experiments."""
    return [
        Endpoint(
            "GET", "/v1/experiments", "experiments", "All experiments, the latest first.", "admin",
            None, ExperimentsResponse, lambda call: experiments.all(),
        ),
        Endpoint(
            "POST", "/v1/experiments/start", "start_experiment",
            "Answers a share of users with another model or other rules.", "admin", StartRequest,
            ExperimentResponse, lambda call: experiments.start(call.body),
        ),
        Endpoint(
            "POST", "/v1/experiments/stop", "stop_experiment",
            "Answers everybody with the control again.", "admin", ExperimentRequest,
            ExperimentResponse, lambda call: experiments.stop(call.body),
        ),
        Endpoint(
            "POST", "/v1/experiments/promote", "promote_experiment",
            "Answers everybody with the variant.", "admin", ExperimentRequest, ExperimentResponse,
            lambda call: experiments.promote(call.body),
        ),
    ]  # fmt: skip
