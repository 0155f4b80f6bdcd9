"""The rules of each placement: loaded from a file or a request, checked, kept in the store, and
followed by every process.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging

import msgspec

from distilrec.engine.filters import values_of
from distilrec.engine.recommender import Recommender
from distilrec.engine.rules import Placement, Rules, read_rules
from distilrec.errors import RequestError, UnknownItemError
from distilrec.serve.config import ServiceConfig, bundle_root
from distilrec.serve.http import Endpoint
from distilrec.serve.logs import log
from distilrec.serve.models import Models
from distilrec.serve.parameters import MAX_VALUES, check_filter, check_limit, inside
from distilrec.serve.schemas import LoadRulesRequest, RulesResponse
from distilrec.serve.storage import Storage

RULES = "rules"  # name of the setting in the store
_MAX_PLACEMENTS = 1_000
_MAX_BYTES = 1_048_576

Placements = dict[Placement, Rules]


class PlacementRules:
    """The rules that are in force in this process."""

    def __init__(self, config: ServiceConfig, models: Models, storage: Storage) -> None:
        self._root = bundle_root(config)
        self._models, self._storage = models, storage
        self._changing = asyncio.Lock()
        self._text: str | None = None
        self.placements: Placements = {}
        self.version = ""

    async def get(self) -> RulesResponse:
        return RulesResponse(self.version, self.placements)

    async def load(self, request: LoadRulesRequest) -> RulesResponse:
        """Check rules against the active model, store them, and answer with them from now on.

        Raises ConfigError, InvalidIdError and FileMissingError for rules that cannot be used,
        RequestError, StoreErrors; then nothing changed.
        """
        placements, problems = self.checked(request, self._models.active.recommender)
        await self.put(placements)
        return RulesResponse(self.version, placements, problems)

    def checked(
        self, request: LoadRulesRequest, recommender: Recommender
    ) -> tuple[Placements, list[str]]:
        """Return the rules of a request, and which pinned items a model does not know. Raises as
        `load` does.
        """
        placements = self._given(request)
        problems = _problems(placements, recommender)
        check_limit("bytes of all rules", len(_encoded(placements).encode()), _MAX_BYTES)
        return placements, problems

    async def put(self, placements: Placements) -> None:
        """Store rules that have been checked, and answer with them. Raises StoreErrors."""
        text = _encoded(placements)
        async with self._changing:
            await self._storage.set_setting(RULES, text)
            self._use(text, placements)

    async def follow(self) -> None:
        """Follow what this or another process has stored. Raises StoreErrors."""
        async with self._changing:
            text = await self._storage.setting(RULES)
            if text == self._text or text is None:
                return
            try:
                self._use(text, decoded(text))
            except (msgspec.MsgspecError, RequestError) as problem:  # of another version
                self._text = text
                log("stored rules cannot be read", logging.ERROR, reason=type(problem).__name__)

    def _given(self, request: LoadRulesRequest) -> Placements:
        if (request.file is None) == (request.placements is None):
            raise RequestError(
                "it is not clear which rules are meant",
                fix="give `file`, a path inside the bundle root, or `placements`",
            )
        if request.placements is not None:
            return request.placements
        assert request.file is not None
        return read_rules(inside(self._root, request.file, "file of rules", "file"))

    def _use(self, text: str, placements: Placements) -> None:
        self._text, self.placements = text, placements
        self.version = version_of(placements)
        log("rules loaded", version=self.version, placements=len(placements))


def version_of(placements: Placements) -> str:
    """Return what changes with the rules."""
    return hashlib.sha256(_encoded(placements).encode()).hexdigest()[:12]


def decoded(text: str) -> Placements:
    """Return the rules in the setting of a store. Raises MsgspecError."""
    return msgspec.json.decode(text, type=Placements)


def _encoded(placements: Placements) -> str:
    return msgspec.json.encode(placements, order="deterministic").decode()


def _problems(placements: Placements, recommender: Recommender) -> list[str]:
    """Return which pinned items a model does not know. Raises the error of rules that do not fit
    it.
    """
    check_limit("placements", len(placements), _MAX_PLACEMENTS)
    unknown = []
    for name, rules in placements.items():
        check_rules(rules)
        for problem in recommender.check_rules(rules):
            message = f"placement {name!r}, {problem.message}"
            if not isinstance(problem, UnknownItemError):
                raise type(problem)(message, fix=problem.fix, **problem.context)
            unknown.append(message)
    return unknown


def check_rules(rules: Rules) -> None:
    """Raise RequestError for rules that would take longer than other requests can wait."""
    for chosen in rules.filters:
        check_filter(chosen)
    named = sum(map(values_of, rules.filters))
    check_limit("ids and categories in the filters of rules", named, MAX_VALUES)


def endpoints(rules: PlacementRules) -> list[Endpoint]:
    """Return the endpoints of rules."""
    return [
        Endpoint(
            "GET", "/v1/rules", "rules", "The rules in force, by placement.", "admin", None,
            RulesResponse, lambda call: rules.get(),
        ),
        Endpoint(
            "POST", "/v1/rules/load", "load_rules",
            "Checks rules and puts them in force, in place of those before.", "admin",
            LoadRulesRequest, RulesResponse, lambda call: rules.load(call.body),
        ),
    ]  # fmt: skip
