"""What a bundle says of itself: `manifest.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from distilrec.bundle.privacy import PrivacyRecord
from distilrec.features.encoding import FeatureEncoder
from distilrec.targets import Role

FORMAT_VERSION = 4
# Of a bundle that a reader of the version before would answer wrongly from
WITH_NEIGHBOURS, WITH_TIME, WITH_ROLES, WITH_CONTEXT, WITH_REPEATS, WITH_VISITS = 5, 6, 7, 8, 9, 10
NEWEST = WITH_VISITS
WEIGHTS, CATALOGUE, HISTORY = "weights.safetensors", "catalogue.safetensors", "history.safetensors"
GRAPH = "items.usearch"
NEIGHBOURS = "neighbours"  # the array that a student with neighbours has
REPEATS = "repeat_weights"  # the array of one whose past events move the scores of their own items
VISITS = "earlier_ages"  # the array of one that tells events of this visit from earlier ones
TIME = "time_gaps"  # the array that a student has who is told the time
CONTEXT = "context_table"  # the array that a student has who is told a context
SearchKind = Literal["exact", "quantised", "graph"]


def format_of(weights: Iterable[str], *, roles: bool = False) -> int:
    """Return the format of a bundle with arrays of these names: the oldest that it needs. roles:
    whether its event types have roles.
    """
    names = set(weights)
    if VISITS in names:
        return WITH_VISITS
    if REPEATS in names:
        return WITH_REPEATS
    if CONTEXT in names:
        return WITH_CONTEXT
    if roles:
        return WITH_ROLES
    if TIME in names:
        return WITH_TIME
    return WITH_NEIGHBOURS if NEIGHBOURS in names else FORMAT_VERSION


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """name: of the file, where it is not the usual one; never a path, since it may be deleted."""

    sha256: str
    bytes: int
    name: Annotated[str, msgspec.Meta(pattern=r"^(history-[0-9a-f]{16}\.safetensors)?$")] = ""


class SearchInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the best items are found, and how much of the exact answer that finds.

    recall: share of the exact ten best that was found, mean over `queries` users with their
    histories, measured at export. connectivity, expansion_add, expansion_search: of the graph, as
    usearch calls them. bias_unit: biases are divided by it in the graph, and the channel of the
    query is multiplied; half of a query's length suits the graph best.
    """

    kind: SearchKind = "exact"
    recall: float = 1.0
    queries: int = 0
    connectivity: int = 0
    expansion_add: int = 0
    expansion_search: int = 0
    bias_unit: float = 1.0


class Golden(msgspec.Struct, frozen=True):
    """A question and the answer that the training model gave: the engine must give the same.

    times, now: when the events happened and when the question is asked, in seconds since 1970, for
    a student whose answers depend on it (`Manifest.timed`). context: columns and weights of the
    encoded context, for one that is told it.
    """

    items: tuple[int, ...]
    events: tuple[int, ...]
    user_features: tuple[tuple[int, float], ...]
    top_items: tuple[int, ...]
    top_scores: tuple[float, ...]
    times: tuple[float, ...] | UnsetType = UNSET
    now: float | UnsetType = UNSET
    context: tuple[tuple[int, float], ...] | UnsetType = UNSET


class Calibration(msgspec.Struct, frozen=True):
    """How scores become probabilities: softmax(score / temperature).

    temperature: the likeliest one on the validation part (Guo et al. 2017, sec. 4.2), by `targets`
    held-out items of `users` users. error_before, error_after: expected calibration error of the
    first item there (the same, eq. 3), at temperature 1 and at this one.
    """

    temperature: float
    users: int
    targets: int
    error_before: float
    error_after: float


def version_of(manifest: bytes) -> str:
    """Return the model version of a manifest, in JSON: a hash over all that it says, fields that
    this version of distilrec does not know among them. The history is user data, not part of the
    model.
    """
    content = msgspec.json.decode(manifest)
    content["model_version"] = ""
    content["files"].pop(HISTORY, None)
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


class Manifest(msgspec.Struct, frozen=True):
    """`model_version` is a hash over all other fields, which hold the hashes of the files.

    kind: of the student, a row of the engine's table. privacy: what was spent, where the weights
    were trained with differential privacy. timezone: of hours and days, where the student is told
    the time. visit_gap: seconds without an event that end a visit, for a student that knows visits.
    roles: what an event of each type means, where that was said (`[targets]`).
    context_encoder: of the context of a question, where it is told one.
    calibration: where there was a validation part, and the student is not private.
    """

    kind: str
    dim: int
    items: int
    parameters: int
    event_types: tuple[str, ...]
    user_encoder: FeatureEncoder
    item_encoder: FeatureEncoder
    repeats: bool
    dataset: str
    dataset_fingerprint: str
    teacher: str
    metrics: dict[str, float]
    golden: tuple[Golden, ...]
    files: dict[str, FileEntry]
    distilrec: str
    search: SearchInfo = SearchInfo()
    privacy: PrivacyRecord | None = None
    format_version: int = FORMAT_VERSION
    model_version: str = ""
    timezone: str | UnsetType = UNSET
    visit_gap: float | UnsetType = UNSET
    roles: tuple[Role, ...] | UnsetType = UNSET
    context_encoder: FeatureEncoder | UnsetType = UNSET
    calibration: Calibration | UnsetType = UNSET

    @property
    def timed(self) -> bool:
        """Whether answers depend on when the user's events happened, and on when is asked."""
        return self.timezone is not UNSET or self.visit_gap is not UNSET

    @property
    def negative_types(self) -> tuple[int, ...]:
        """The numbers of the event types that are negative."""
        roles = () if self.roles is UNSET else self.roles
        return tuple(number for number, role in enumerate(roles) if role == "negative")

    def hashed(self) -> str:
        """Return the model version of this content."""
        return version_of(msgspec.json.encode(self))


def hidden_in(golden: Golden, manifest: Manifest) -> tuple[int, ...]:
    """Return the items that the answer to a golden question leaves out: those of the history, but
    none of a student with repeats, which only shows there.
    """
    return () if manifest.format_version >= WITH_REPEATS else golden.items
