"""How this process answers while an experiment runs: who gets which model and which rules."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from distilrec.engine.recommender import Recommender
from distilrec.ids import as_id
from distilrec.serve.assignment import Assigner
from distilrec.serve.experiment_log import Experiment
from distilrec.serve.models import Models, Served
from distilrec.serve.rules import Placements, version_of
from distilrec.serve.schemas import RankRequest, RecommendRequest, RecommendResponse


class Arm(NamedTuple):
    """How a user of an experiment is answered. placements: rules in place of those in force, and
    their version; name: `experiment/control` or `experiment/variant`; group: of the user in it.
    """

    recommender: Recommender
    placements: Placements | None
    rules_version: str
    name: str
    group: int

    def named(self, answer: RecommendResponse) -> RecommendResponse:
        """Return an answer that says which arm gave it."""
        return msgspec.structs.replace(answer, variant=self.name)


class Running:
    """An experiment with its variant in memory. served: the variant's model, None where it differs
    by its rules only.
    """

    def __init__(
        self, experiment: Experiment, key: bytes, models: Models, served: Served | None
    ) -> None:
        self.experiment, self.served = experiment, served
        self._models = models
        self._assigner = Assigner(key, experiment.name, experiment.share)
        rules = experiment.rules
        self._rules_version = "" if rules is None else version_of(rules)

    def arm(self, request: RecommendRequest | RankRequest) -> Arm | None:
        """Return the arm of a request; None for a stranger without an id. Raises InvalidIdError."""
        if request.user_id is not None:
            place = self._assigner.of("user", as_id(request.user_id, "user_id"))
        elif request.visitor_id is not None:
            place = self._assigner.of("visitor", as_id(request.visitor_id, "visitor_id"))
        else:
            return None
        active, name = self._models.active.recommender, self.experiment.name
        if not place.variant:
            return Arm(active, None, "", f"{name}/control", place.group)
        return Arm(
            active if self.served is None else self.served.recommender,
            self.experiment.rules,
            self._rules_version,
            f"{name}/variant",
            place.group,
        )
