"""The service without HTTP: its parts, and how they start and stop. It lives on one event loop; the
store works in threads of its own.
"""

from __future__ import annotations

import logging

from distilrec.engine.recommender import Recommender
from distilrec.serve.answers import Answers
from distilrec.serve.config import ServiceConfig
from distilrec.serve.events import Events
from distilrec.serve.experiments import Experiments
from distilrec.serve.health import Health
from distilrec.serve.impressions import Impressions
from distilrec.serve.items import Items
from distilrec.serve.latest import Latest
from distilrec.serve.logs import log
from distilrec.serve.metrics import Metrics
from distilrec.serve.models import Choice, Models
from distilrec.serve.outcome_report import OutcomeReport
from distilrec.serve.outcomes import Outcomes
from distilrec.serve.popular import Popular
from distilrec.serve.rules import PlacementRules
from distilrec.serve.similar import Similar
from distilrec.serve.storage import Storage
from distilrec.serve.swap import ACTIVE_BUNDLE, Swap, first_model, switched_to
from distilrec.serve.upkeep import Upkeep
from distilrec.serve.users import Users
from distilrec.stores.opening import open_store
from distilrec.stores.records import Store


class Service:
    """The parts of a service, made by `open_service`.

    `start` and `stop` belong to the event loop that it lives on.
    """

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        recommender: Recommender,
        choice: Choice | None = None,
    ) -> None:
        self.config, self.store, self.metrics = config, store, Metrics()
        self.models = Models(recommender, choice)
        self.storage = Storage(config, store, self.models, self.metrics)
        self.swap = Swap(config, self.models, self.storage, self.metrics)
        self.rules = PlacementRules(config, self.models, self.storage)
        self.outcomes = Outcomes(config, store, self.storage, self.metrics)
        self.experiments = Experiments(
            config, self.models, self.storage, self.swap, self.rules, self.outcomes
        )
        self.upkeep = Upkeep(
            config,
            self.models,
            self.storage,
            self.swap,
            self.rules,
            self.experiments,
            self.outcomes,
            self.metrics,
        )
        impressions = Impressions(self.storage, self.outcomes, self.metrics)
        self.answers = Answers(
            config,
            self.models,
            self.storage,
            self.rules,
            impressions,
            self.outcomes,
            self.metrics,
        )
        self.similar = Similar(config, self.models, self.storage, self.outcomes)
        self.popular = Popular(config, self.models, self.storage, self.outcomes)
        self.latest = Latest(config, self.models, self.storage, self.outcomes)
        self.events = Events(config, self.models, self.storage, self.outcomes, self.metrics)
        self.outcome_report = OutcomeReport(self.outcomes)
        self.items = Items(self.models, self.storage)
        self.users = Users(self.models, self.storage, self.upkeep, self.events)
        self.health = Health(self.storage, self.upkeep, self.metrics)

    async def start(self) -> None:
        """Start the threads and follow what the store knows about items. Raises StoreError."""
        self.storage.start()
        active = self.models.active
        await self.storage.follow_store(active)
        await self.rules.follow()
        await self.experiments.follow_at_start()
        self.metrics.show_model(active.version)
        self.upkeep.start()
        self.health.started = True
        log("ready", model_version=active.version, store=type(self.store).__name__)

    def drain(self) -> None:
        """Let `/readyz` say no from now on, so that no new requests are sent here."""
        self.health.draining = True
        self.swap.stop()

    @property
    def draining(self) -> bool:
        """Whether it is about to stop."""
        return self.health.draining

    async def stop(self) -> None:
        """Store what was taken, then let go of the store."""
        self.drain()
        await self.upkeep.stop()
        await self.outcomes.stop()
        await self.storage.stop()
        log("stopped")


def open_service(config: ServiceConfig) -> Service:
    """Open the store, load and compile the model, and return the service over both. Raises
    BundleErrors and StoreErrors.
    """
    store = open_store(config.store, config.store_prefix, config.store_password_file)
    try:
        for warning in store.check():
            log("store", logging.WARNING, warning=warning)
        choice = switched_to(config, store.setting(ACTIVE_BUNDLE))
        return Service(config, store, first_model(config, choice), choice)
    except BaseException:
        store.close()
        raise
