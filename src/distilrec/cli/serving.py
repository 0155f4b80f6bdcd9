"""Commands that serve: they need no torch."""

from __future__ import annotations

import json as json_text
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from distilrec.cli.app import Bundle, app, bundle_folder
from distilrec.errors import ConfigError
from distilrec.ids import as_id
from distilrec.stores.opening import addresses

if TYPE_CHECKING:
    from distilrec.bundle.manifest import Manifest
    from distilrec.engine.answers import Contribution, Recommendation, ValuedItem
    from distilrec.engine.context import Context
    from distilrec.engine.probabilities import Objective
    from distilrec.engine.recommender import Recommender


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Service:
    """What a service works on and where it listens: the options of `serve` and `doctor`."""

    bundle: Bundle = None
    store: Annotated[
        str,
        Parameter(
            name="--store",
            env_var="DISTILREC_STORE",
            help=f"Address of the store that keeps events: {addresses()}.",
        ),
    ] = "sqlite:///distilrec.db"
    store_prefix: Annotated[
        str,
        Parameter(
            name="--store-prefix", help="Prefix of every key in Redis; the schema in PostgreSQL."
        ),
    ] = "distilrec:"
    store_password_file: Annotated[
        Path | None,
        Parameter(
            name="--store-password-file",
            help="File that holds the password of the Redis or PostgreSQL server.",
        ),
    ] = None
    host: Annotated[str, Parameter(name="--host", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Parameter(name="--port", help="Port to listen on.")] = 8000
    keys: Annotated[
        Path | None,
        Parameter(name="--keys", help="TOML file of API keys; `distilrec key` makes entries."),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return these options as fields of a ServiceConfig, with absolute paths."""
        return {
            **asdict(self),
            "bundle": str(bundle_folder(self.bundle).absolute()),
            "store_password_file": _absolute(self.store_password_file),
            "keys": _absolute(self.keys),
        }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits and habits of a service: options of `serve` that are fields of the ServiceConfig."""

    max_users: Annotated[int, Parameter(help="Users whose state stays in memory.")] = 200_000
    max_events: Annotated[
        int, Parameter(help="Latest events of a user that are remembered as seen.")
    ] = 10_000
    strangers_weight: Annotated[
        float,
        Parameter(
            help="Times log(1 + count) of its events of late, added to an item's score for users "
            "without events."
        ),
    ] = 0.0
    strangers_half_life: Annotated[
        float, Parameter(help="Hours after which an event counts half for that.")
    ] = 24.0
    max_k: Annotated[int, Parameter(help="Most items in one answer.")] = 1_000
    max_batch: Annotated[
        int, Parameter(help="Most events, or recommendations, in one request.")
    ] = 1_000
    max_body: Annotated[int, Parameter(help="Most bytes of one request.")] = 1_048_576
    max_head: Annotated[int, Parameter(help="Most bytes of the path and headers of a request.")] = (
        32_768
    )
    max_connections: Annotated[int, Parameter(help="Most open connections of a worker.")] = 1_000
    head_seconds: Annotated[float, Parameter(help="Time for sending the headers of a request.")] = (
        10.0
    )
    transfer_seconds: Annotated[
        float, Parameter(help="Time for sending a body, and for reading an answer.")
    ] = 60.0
    max_pending: Annotated[int, Parameter(help="Most events that wait to be stored.")] = 50_000
    log_requests: Annotated[
        bool, Parameter(help="Log every request, not only refusals of the service.")
    ] = False
    drain_seconds: Annotated[
        float, Parameter(help="Seconds of answering not ready before closing, on SIGTERM.")
    ] = 0.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Answered:
    """What is said about items beside their scores, and how they are ranked: options of
    `recommend`.
    """

    explain: Annotated[
        bool, Parameter(help="Say which past events raised or lowered each score most.")
    ] = False
    probabilities: Annotated[
        bool, Parameter(help="Also say how likely each item is to be the user's next one.")
    ] = False
    objective: Annotated[
        str | None,
        Parameter(
            help="Rank by probability times what an item is worth: weights of the probability "
            "itself and of numeric attributes, such as price=1,probability=0.5."
        ),
    ] = None
    diversity: Annotated[
        float,
        Parameter(help="From 0 to 1: how much score is traded for unlikeness between the items."),
    ] = 0.0


@app.command
def recommend(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    user_id: Annotated[
        str, Parameter(name=["--user_id", "--user-id"], help="Who. An unknown user gets the prior.")
    ],
    item_ids: Annotated[
        str | None,
        Parameter(
            name=["--item_ids", "--item-ids"],
            help="Rank these items (separated by commas) instead of all.",
        ),
    ] = None,
    k: Annotated[int, Parameter(help="How many items.")] = 10,
    bundle: Bundle = None,
    include_seen: Annotated[
        bool | None,
        Parameter(
            help="Also items that the user has already had; by default where users of the training "
            "log took items again."
        ),
    ] = None,
    now: Annotated[
        float | None,
        Parameter(
            help="When it is asked, in seconds since 1970, for a student that is told the time or "
            "knows visits; the time of the clock by default."
        ),
    ] = None,
    context: Annotated[
        tuple[str, ...],
        Parameter(
            help="A context feature and its value, such as device=phone, for a student that is "
            "told the context; may be given several times.",
        ),
    ] = (),
    answered: Answered = Answered(),
    json: Annotated[bool, Parameter(help="Print JSON.")] = False,
) -> None:
    """Recommend items to a user, best first, from a bundle. Needs no torch."""
    from distilrec.engine.answers import Recommendation
    from distilrec.engine.recommender import load

    user_id = as_id(user_id, "--user_id")
    recommender = load(bundle_folder(bundle))
    candidates = None
    if item_ids is not None:
        candidates = [as_id(item, "--item_ids") for item in item_ids.split(",") if item.strip()]
        if not candidates:
            raise ConfigError(
                "--item_ids names no item",
                fix="for example --item_ids 456,789",
                parameter="item_ids",
            )
        if answered.diversity:
            raise ConfigError(
                "--diversity chooses items, and --item_ids names them",
                fix="leave one of them out",
                parameter="diversity",
            )
    told = _context_of(context, recommender.manifest)
    left_out = None if include_seen is None else not include_seen
    diversity = answered.diversity
    if answered.objective is None:
        answers = recommender.recommend(
            user_id, candidates, k, left_out, diversity=diversity, now=now, context=told
        )
        more: dict[str, dict[str, Any]] = {}
        if answered.probabilities:
            names = [answer.item_id for answer in answers]
            found = recommender.probabilities(
                user_id, names, left_out if candidates is None else None, now=now, context=told
            )
            more = {name: {"probability": value} for name, value in zip(names, found, strict=True)}
    else:
        worth = _objective(answered.objective)
        valued = recommender.recommend_by_value(
            user_id, worth, candidates, k, left_out, diversity=diversity, now=now, context=told
        )
        answers = [Recommendation(item.item_id, item.score) for item in valued]
        more = {item.item_id: _about(item) for item in valued}
    because = {
        answer.item_id: recommender.explain(user_id, answer.item_id, 3, now=now, context=told)
        if answered.explain
        else None
        for answer in answers
    }
    if json:
        _print_json(recommender, user_id, answers, because, more)
    else:
        _print_lines(recommender, user_id, answers, because, more)


def _about(item: ValuedItem) -> dict[str, Any]:
    """Return what is printed of an item beside its score."""
    return {"probability": item.probability, "value": item.value, "parts": item.parts}


def _objective(text: str) -> Objective:
    """Return the objective that the option says, such as price=1,probability=0.5."""
    from distilrec.engine.probabilities import Objective

    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name.strip() or name.strip() in weights or not math.isfinite(value):
            raise ConfigError(
                f"--objective has the part {part!r}",
                fix="give each weight once, for example --objective price=1,probability=0.5",
                parameter="objective",
            )
        weights[name.strip()] = value
    return Objective(weights.pop("probability", 0.0), weights)


def _context_of(given: Sequence[str], manifest: Manifest) -> Context:
    """Return a context from texts such as device=phone; those of numeric features as numbers.
    Raises ConfigError for a text without "=".
    """
    from msgspec import UNSET

    from distilrec.features.encoding import NumericEncoding

    encoder = manifest.context_encoder
    encodings = () if encoder is UNSET else encoder.encodings
    numeric = {one.name for one in encodings if isinstance(one, NumericEncoding)}
    context: dict[str, str | float] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(
                f"--context {text} has no value",
                fix="for example --context device=phone",
                parameter="context",
            )
        try:
            context[name] = float(value) if name in numeric else value
        except ValueError:
            context[name] = value  # the recommender says what is wrong with it
    return context


def _print_json(
    recommender: Recommender,
    user_id: str,
    answers: Sequence[Recommendation],
    because: Mapping[str, Sequence[Contribution] | None],
    more: Mapping[str, Mapping[str, Any]],
) -> None:
    import msgspec

    items = []
    for rank, (item, score) in enumerate(answers, start=1):
        entry = {"rank": rank, "item_id": item, "score": score, "title": recommender.title(item)}
        entry |= more.get(item, {})
        reasons = because[item]
        if reasons is not None:
            entry["because"] = [reason._asdict() for reason in reasons]
        items.append(entry)
    known_user = recommender.knows_user(user_id)
    answer = msgspec.json.encode({"user_id": user_id, "known_user": known_user, "items": items})
    # JSON has escapes of its own, and is ASCII where the terminal may not be UTF-8.
    utf_8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(answer.decode() if utf_8 else json_text.dumps(msgspec.json.decode(answer)))


def _print_lines(
    recommender: Recommender,
    user_id: str,
    answers: Sequence[Recommendation],
    because: Mapping[str, Sequence[Contribution] | None],
    more: Mapping[str, Mapping[str, Any]],
) -> None:
    if not recommender.knows_user(user_id):
        print(f"user {user_id} is unknown: this is the prior for everybody", file=sys.stderr)
    width = max((len(answer.item_id) for answer in answers), default=0)
    for item, score in answers:
        title = recommender.title(item)
        numbers = f"{score:8.4f}"
        if item in more:
            numbers += f"  {more[item]['probability']:9.4%}"
            numbers += f"  {more[item]['value']:10.4g}" if "value" in more[item] else ""
        print(f"{item:>{width}}  {numbers}  {'' if title == item else title}".rstrip())
        for reason in because[item] or ():
            cause = recommender.title(reason.item_id)
            print(f"{'':{width}}  {reason.contribution:+8.4f}    {cause}")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Admitted:
    """Who may ask a service: options of `serve`."""

    without_keys: Annotated[bool, Parameter(help="Listen to other machines without API keys.")] = (
        False
    )
    allowed_hosts: Annotated[
        tuple[str, ...],
        Parameter(help="Other names that the service is reached by without API keys."),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...],
        Parameter(help="Web pages that may ask the service, such as https://shop.example."),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Counted:
    """What becomes of answers: options of `serve`."""

    outcomes: Annotated[
        bool, Parameter(help="Give answers a recommendation_id, which events may name.")
    ] = True
    outcome_days: Annotated[
        float, Parameter(help="Days after an answer in which its outcomes count.")
    ] = 7.0
    click_types: Annotated[
        tuple[str, ...], Parameter(help="Event types that are clicks on items of answers.")
    ] = ("click", "interaction")
    conversion_types: Annotated[
        tuple[str, ...], Parameter(help="Event types that are conversions.")
    ] = ("buy", "purchase", "conversion")


@app.command
def serve(
    *,
    service: Service = Service(),
    admitted: Admitted = Admitted(),
    workers: Annotated[
        int, Parameter(help="Processes; more than one share users through Redis or PostgreSQL.")
    ] = 1,
    bundle_root: Annotated[
        Path | None,
        Parameter(
            help="Folder that bundles may be loaded from; the one that holds the bundle by default."
        ),
    ] = None,
    search: Annotated[
        Literal["exact", "quantised", "graph"] | None,
        Parameter(help="How the best items are found, if not as exported."),
    ] = None,
    limits: Limits = Limits(),
    counted: Counted = Counted(),
    ray: Annotated[
        str | None,
        Parameter(
            help="Run the workers as replicas on a Ray cluster: its address, auto, or local. "
            "Needs Redis or PostgreSQL."
        ),
    ] = None,
) -> None:
    """Serve a bundle over HTTP: recommendations that follow every event, a playground at /, and a
    console at /console.
    """
    from distilrec.serve.config import ServiceConfig

    config = ServiceConfig(
        **service.settings(),
        workers=workers,
        without_keys=admitted.without_keys,
        allowed_hosts=_listed(admitted.allowed_hosts),
        allowed_origins=_listed(admitted.allowed_origins),
        bundle_root=_absolute(bundle_root),
        search=search,
        outcomes=counted.outcomes,
        outcome_days=counted.outcome_days,
        click_types=_listed(counted.click_types),
        conversion_types=_listed(counted.conversion_types),
        **asdict(limits),
    )
    _warn_of_secret(service.store)
    if ray is not None:
        from distilrec.scale.ray_serve import serve_on_ray

        serve_on_ray(config, ray)
        return
    from distilrec.serve.server import serve as run_service

    run_service(config)


@app.command
def doctor(*, service: Service = Service()) -> None:
    """Try out everything that `distilrec serve` needs; exit code 1 where it would not work."""
    from distilrec.serve.config import ServiceConfig
    from distilrec.serve.doctor import diagnose

    failed = False
    for finding in diagnose(ServiceConfig(**service.settings(), without_keys=True)):
        failed |= finding.verdict == "failed"
        print(f"{finding.verdict:>8}  {finding.what}: {finding.text}")
    if failed:
        sys.exit(1)


rules_app = App(name="rules", help="Rules of lists, by placement.")
app.command(rules_app)


@rules_app.command
def check(
    file: Annotated[Path, Parameter(help="TOML file with [placements.NAME].")],
    *,
    bundle: Bundle = None,
) -> None:
    """Check a file of rules against a bundle; exit code 1 where rules do not fit it."""
    from distilrec.engine.recommender import load
    from distilrec.engine.rules import read_rules

    placements = read_rules(file)
    recommender = load(bundle_folder(bundle))
    failed = False
    for name, rules in placements.items():
        problems = recommender.check_rules(rules)
        failed |= bool(problems)
        for problem in problems:
            print(f"{name}: {problem}")
        if not problems:
            print(f"{name}: ok, {rules.count} rules")
    if failed:
        sys.exit(1)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _listed(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names in options that hold some each, separated by commas."""
    return tuple(name.strip() for names in given for name in names.split(",") if name.strip())


@app.command
def key(
    *,
    name: Annotated[str, Parameter(help="Whose key it is; messages name it.")],
    scopes: Annotated[
        str,
        Parameter(
            help="What it may do, separated by commas: recommend, events, items, users, admin, "
            "metrics."
        ),
    ] = "recommend,events",
    rate: Annotated[
        float | None, Parameter(help="Requests per second; no limit without it.")
    ] = None,
    public: Annotated[
        bool,
        Parameter(
            help="The key stands in web pages: it may recommend and send events, and the rate is "
            "that of each address."
        ),
    ] = False,
) -> None:
    """Make an API key: the secret goes to standard error, its entry for the file of keys to
    standard output.
    """
    from distilrec.serve.keys import SCOPES, new_key

    given = [scope.strip() for scope in scopes.split(",")]
    chosen = [scope for scope in SCOPES if scope in given]
    if len(chosen) != len(given):
        raise ConfigError(
            f"the scopes {scopes!r} are not valid",
            fix=f"use some of: {', '.join(SCOPES)}",
            parameter="scopes",
        )
    if rate is not None and rate <= 0:
        raise ConfigError(
            f"the rate is {rate}", fix="use more than 0, or leave it out", parameter="rate"
        )
    secret, entry = new_key(name, chosen, rate, public=public)
    print(f"the key, shown only now: {secret}", file=sys.stderr)
    print(entry)


def _warn_of_secret(store: str) -> None:
    from distilrec.serve.logs import log, start_logging
    from distilrec.stores.opening import holds_secret

    if holds_secret(store) and any(store in argument for argument in sys.argv):
        start_logging()
        text = (
            "the command line holds the password of the store, and every user of this machine can "
            "read it: "
            "give the address as DISTILREC_STORE, or the password by --store-password-file"
        )
        log("store", logging.WARNING, warning=text)
