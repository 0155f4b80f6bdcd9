"""What goes over the wire. The OpenAPI description is generated from these types; unknown fields
are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from distilrec.bundle.manifest import Calibration
from distilrec.confidence import PLANNED
from distilrec.engine.events import MAX_EVENT_ID, MAX_EVENT_TYPE
from distilrec.engine.filters import Filter
from distilrec.engine.history import PastEvent
from distilrec.engine.popular import WEEK
from distilrec.engine.probabilities import Objective
from distilrec.engine.rules import Placement, Rules
from distilrec.engine.similar import POPULARITY
from distilrec.engine.stored import EventInput
from distilrec.stores.records import KEPT_HOURS

UserId = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": 256})] | int | float
"""What may stand for an id; `distilrec.ids.as_id` says which of these are ids."""
ItemId = UserId
MAX_SESSION_ID = 100
MAX_EXPERIMENT = 64  # characters of a name
MAX_SHOWN = 1_000  # items of the pages before
MAX_RECOMMENDATION_ID = 64  # characters
MAX_POSITION = 10_000
MAX_VALUE = 1e9
EventType = Annotated[str, Meta(min_length=1, max_length=MAX_EVENT_TYPE)]
Share = Annotated[float, Meta(ge=0, le=1)]
Moment = Annotated[float, Meta(ge=0)] | None
Metric = Literal["clicks", "conversions", "value"]
Context = dict[str, str | float | bool | None] | None
FeatureValue = str | float | bool | list[str] | None
Features = dict[str, FeatureValue]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all requests."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of all answers; fields that say nothing are left out."""


class HistoryEvent(PastEvent, frozen=True):
    """One event of a history.

    `timestamp`: when it happened, seconds since 1970, at most five minutes in the future; now where
    it is left out.
    """

    item_id: ItemId
    event_type: EventType = "interaction"
    timestamp: Moment = None


class RecommendRequest(Request, frozen=True):
    """The `k` best items for a user. `explain` adds what past events did for each score, `titles`
    the titles.

    `exclude_seen` leaves out what the user has already had; where it is not given, this is so
    unless users of the training log took items again. `diversity` from 0 to 1 trades score against
    likeness between the items. `now`: when it is asked, seconds since 1970, at most five minutes in
    the future and not before the user's last event; the time of the clock where it is left out.
    `history`: what happened in a session, oldest first, as ids of items or as events; nothing of it
    is stored. In place of a `user_id`, or after all that is known of that user.
    `placement`: where the list is shown, such as `home`, whose rules it follows, if there are some;
    `rules`: follow these instead. `shown`: what is on the pages before, in order: these items are
    left out, and ranks and slots go on behind them.
    `context`: values of the context features that the model knows; what is left out is unknown.
    `probabilities` adds how likely each item is to be the user's next one. `objective`: rank by
    probability times what the item is worth; not together with rules.
    `visitor_id`: of a visitor without a `user_id`, by which experiments tell visitors apart;
    nothing of it is stored.
    `record`: false for a look, which is shown to no user: the answer has no `recommendation_id`,
    is not counted, and its items are not noted as shown.
    """

    user_id: UserId | None = None
    k: Annotated[int, Meta(ge=1)] = 10
    exclude_seen: bool | None = None
    filter: Filter | None = None
    diversity: Share = 0.0
    explain: bool = False
    titles: bool = False
    history: list[ItemId | HistoryEvent] | None = None
    now: Moment = None
    placement: Placement | None = None
    rules: Rules | None = None
    shown: Annotated[list[ItemId], Meta(max_length=MAX_SHOWN)] | None = None
    context: Context = None
    probabilities: bool = False
    objective: Objective | None = None
    visitor_id: UserId | None = None
    record: bool = True


class BatchRequest(Request, frozen=True):
    """Several recommendations in one request."""

    requests: Annotated[list[RecommendRequest], Meta(min_length=1)]


class RankRequest(Request, frozen=True):
    """These items for a user, best first, seen or not. `skip_unknown` leaves unknown items out;
    `history`, `now`, `context`, `probabilities`, `objective`, `visitor_id` and `record` as for
    recommendations.
    """

    item_ids: Annotated[list[ItemId], Meta(min_length=1)]
    user_id: UserId | None = None
    explain: bool = False
    titles: bool = False
    skip_unknown: bool = False
    history: list[ItemId | HistoryEvent] | None = None
    now: Moment = None
    context: Context = None
    probabilities: bool = False
    objective: Objective | None = None
    visitor_id: UserId | None = None
    record: bool = True


class SimilarRequest(Request, frozen=True):
    """The `k` items that are most like an item, or like several together, such as a cart.

    `user_id`: also leave out what this user does not want to see, and what they have already had
    where `exclude_seen` says so. `popularity`: from 0, likeness alone, to 1: how much it counts
    that an item is popular. `skip_unknown` leaves unknown items out.
    `exclude_seen`, `filter`, `diversity`, `titles`, `record`: as for recommendations. `placement`:
    where the list is shown; outcomes are counted by it.
    """

    item_ids: Annotated[list[ItemId], Meta(min_length=1)]
    k: Annotated[int, Meta(ge=1)] = 10
    user_id: UserId | None = None
    filter: Filter | None = None
    diversity: Share = 0.0
    popularity: Share = POPULARITY
    titles: bool = False
    skip_unknown: bool = False
    placement: Placement | None = None
    record: bool = True
    exclude_seen: bool | None = None


class PopularRequest(Request, frozen=True):
    """The `k` items with most stored events in the current hour and the `window - 1` hours before.

    `half_life`: hours after which an event counts half; all count alike without it. `event_types`:
    that count, without them those that are to be predicted, or all where that was not said.
    `user_id`: leave out what this user does not want to see, and what they have already had where
    `exclude_seen` says so. `exclude_seen`, `filter`, `titles`, `record`: as for recommendations.
    `placement`: where the list is shown; outcomes are counted by it.
    """

    k: Annotated[int, Meta(ge=1)] = 10
    window: Annotated[int, Meta(ge=1, le=KEPT_HOURS)] = WEEK
    half_life: Annotated[float, Meta(gt=0, le=KEPT_HOURS)] | None = None
    event_types: Annotated[list[EventType], Meta(min_length=1)] | None = None
    user_id: UserId | None = None
    filter: Filter | None = None
    titles: bool = False
    placement: Placement | None = None
    record: bool = True
    exclude_seen: bool | None = None


class LatestRequest(Request, frozen=True):
    """The `k` items with the largest numbers of an attribute.

    `by`: its name, such as `published_at`. `user_id`: leave out what this user does not want to
    see, and what they have already had where `exclude_seen` says so. `exclude_seen`, `filter`,
    `titles`, `record`: as for recommendations. `placement`: where the list is shown; outcomes are
    counted by it.
    """

    by: Annotated[str, Meta(min_length=1, max_length=128)]
    k: Annotated[int, Meta(ge=1)] = 10
    user_id: UserId | None = None
    filter: Filter | None = None
    titles: bool = False
    placement: Placement | None = None
    record: bool = True
    exclude_seen: bool | None = None


class EventBody(EventInput, frozen=True):
    """One interaction.

    `timestamp`: when it happened, seconds since 1970, at most five minutes in the future; now where
    it is left out.
    `event_id`: unique for its user; sent again, it does not count twice.
    `recommendation_id`: of the answer that the item was in; then `position` in that list, from 1,
    and `value`, what the event was worth, count with it.
    """

    user_id: UserId
    item_id: ItemId
    event_type: EventType = "interaction"
    timestamp: Moment = None
    event_id: Annotated[str, Meta(min_length=1, max_length=MAX_EVENT_ID)] | None = None
    recommendation_id: (
        Annotated[str, Meta(min_length=1, max_length=MAX_RECOMMENDATION_ID)] | None
    ) = None
    position: Annotated[int, Meta(ge=1, le=MAX_POSITION)] | None = None
    value: Annotated[float, Meta(ge=0, le=MAX_VALUE)] = 0.0


class EventsRequest(Request, frozen=True):
    """Events, oldest first: all are stored, or none."""

    events: Annotated[list[EventBody], Meta(min_length=1)]


class ItemRequest(Request, frozen=True):
    """A new item, or a change: what is not named stays, an attribute with the value null is
    removed.
    """

    title: Annotated[str, Meta(max_length=1024)] | None = None
    features: Features = {}
    attributes: Features = {}
    available: bool | None = None


class UserRequest(Request, frozen=True):
    """The features of a user, in place of earlier ones."""

    features: Features


class MergeRequest(Request, frozen=True):
    """What a user who logs in takes over: another id, `source`, or what happened in a session,
    `history`, oldest first; sent again with the same `session_id`, also with more behind it, each
    event counts once.
    """

    source: UserId | None = None
    session_id: Annotated[str, Meta(min_length=1, max_length=MAX_SESSION_ID)] | None = None
    history: Annotated[list[ItemId | HistoryEvent], Meta(min_length=1)] | None = None


class LoadRequest(Request, frozen=True):
    """Which bundle to serve next: a folder inside the service's bundle root.

    It is shadowed by up to `shadow_requests` requests, for at most `shadow_seconds`, and served
    only when the share of common items is at least `min_agreement`.
    """

    bundle: Annotated[str, Meta(min_length=1, max_length=4096)]
    shadow_requests: Annotated[int, Meta(ge=0, le=100_000)] = 200
    shadow_seconds: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    min_agreement: Share = 0.0


class LoadRulesRequest(Request, frozen=True):
    """The rules of all placements: a TOML `file` inside the service's bundle root, or `placements`
    themselves; none remove all rules.
    """

    file: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    placements: dict[Placement, Rules] | None = None


class StartRequest(Request, frozen=True):
    """An experiment to start: a `share` of users, split by a keyed hash of their ids, is answered
    with another `bundle`, a folder inside the service's bundle root, other `rules`, or both.

    `metric`: what a recommendation is to bring: an answer with a click, an answer with a
    conversion, or the value of conversions. `planned`: answers in both arms at which the interval
    is narrowest; it holds at any number.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MAX_EXPERIMENT)]
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    bundle: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    rules: LoadRulesRequest | None = None
    metric: Metric = "clicks"
    planned: Annotated[int, Meta(ge=1, le=10**12)] = PLANNED


class ExperimentRequest(Request, frozen=True):
    """The experiment that is to be stopped or promoted."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_EXPERIMENT)]


class Reason(Answer, frozen=True):
    """What one past event did for a score: the score minus the score had it not happened."""

    item_id: str
    contribution: float
    title: str | None = None


class RankedItem(Answer, frozen=True):
    """score: a logit, higher is better. probability: of being the user's next item. value: the
    expected worth by the objective, the sum of `parts`. popular: how much of the score of a user
    without events is from what is popular of late; with `explain`, absent for nothing.
    """

    item_id: str
    score: float
    rank: int
    title: str | None = None
    because: list[Reason] | None = None
    probability: float | None = None
    value: float | None = None
    parts: dict[str, float] | None = None
    popular: float | None = None


class MovedItem(Answer, frozen=True):
    """What a rule did with an item. before: its rank without rules, null where that is far down;
    rank: its rank, null where it is left out; reason: why it is not at the slot that it is pinned
    to: `unknown`, `not available`, `filtered`, `shown` (on a page before), `unwanted` or `seen`.
    """

    rule: str
    item_id: str
    before: int | None
    rank: int | None
    reason: str = ""


class FollowedRules(Answer, frozen=True):
    """The rules that a list follows. version: of the rules of all placements, empty for those of a
    request; problems: why rules of the placement are left out.
    """

    moved: list[MovedItem]
    version: str = ""
    problems: list[str] = []


class RecommendResponse(Answer, frozen=True):
    """known_user: whether there is a history or features; otherwise this is the prior for
    all users. user_id: null where none was asked for. rules: absent where the list follows none.
    variant: which part of an experiment answered, such as `summer/control`; absent without one.
    recommendation_id: for events that say what became of this answer.
    """

    user_id: str | None
    known_user: bool
    model_version: str
    items: list[RankedItem]
    unknown_items: list[str] = []
    rules: FollowedRules | None = None
    variant: str = ""
    recommendation_id: str | None = None


class SimilarItem(Answer, frozen=True):
    """score: likeness, higher is more alike; not a logit."""

    item_id: str
    score: float
    rank: int
    title: str | None = None


class SimilarResponse(Answer, frozen=True):
    model_version: str
    items: list[SimilarItem]
    unknown_items: list[str] = []
    recommendation_id: str | None = None


class PopularItem(Answer, frozen=True):
    """score: the number of events, older ones counted for less with a half_life."""

    item_id: str
    score: float
    rank: int
    title: str | None = None


class PopularResponse(Answer, frozen=True):
    model_version: str
    items: list[PopularItem]
    recommendation_id: str | None = None


class LatestItem(Answer, frozen=True):
    """value: its number."""

    item_id: str
    value: float
    rank: int
    title: str | None = None


class LatestResponse(Answer, frozen=True):
    model_version: str
    items: list[LatestItem]
    recommendation_id: str | None = None


class BatchResponse(Answer, frozen=True):
    results: list[RecommendResponse]


class EventsResponse(Answer, frozen=True):
    """accepted: stored now; duplicates: known by their event ids; unknown_items: accepted, but no
    model knows the item; unknown_types: accepted, but the event type has no role in the model, so
    that the event only informs; left out where it is 0. attributed: accepted, and counted for the
    answer that the event names; unattributed: accepted, but the `recommendation_id` is unknown or
    too old, or the event type is neither a click nor a conversion; left out where they are 0.
    """

    accepted: int
    duplicates: int
    unknown_items: int
    unknown_types: int = 0
    attributed: int = 0
    unattributed: int = 0


class ItemResponse(Answer, frozen=True):
    item_id: str
    title: str
    attributes: dict[str, float | list[str]]
    available: bool
    in_training: bool


class ItemsResponse(Answer, frozen=True):
    items: list[ItemResponse]


class UserEvent(Answer, frozen=True):
    item_id: str
    event_type: str
    timestamp: float
    event_id: str


class NamedItem(Answer, frozen=True):
    item_id: str
    title: str


class UserResponse(Answer, frozen=True):
    """events: the latest stored ones, latest first, of `event_count`; recent: items, with the
    bundle's history.

    teacher: what the teacher would recommend after the history in the bundle, best first.
    """

    user_id: str
    event_count: int
    events: list[UserEvent]
    recent: list[NamedItem]
    teacher: list[NamedItem]
    features: Features | None = None


class UsersResponse(Answer, frozen=True):
    users: list[str]


class MergeResponse(Answer, frozen=True):
    """events: how many are this user's now and were not before."""

    user_id: str
    events: int


class ErasedResponse(Answer, frozen=True):
    """bundle: whether the histories of the loaded bundles are free of the user now: `clean`, or why
    not; store: whether the store's files are: `clean`, or what the service does in the background
    until they are.
    """

    user_id: str
    events_removed: int
    bundle: str
    store: str


class ModelResponse(Answer, frozen=True):
    """The model that answers, and the one before it. event_roles: what the event types mean,
    `target`, `inform` or `negative`, where that was said. calibration: the temperature that makes
    probabilities, left out where there is none.
    """

    model_version: str
    bundle: str
    kind: str
    items: int
    parameters: int
    dataset: str
    event_types: list[str]
    attributes: list[str]
    user_features: list[str]
    item_features: list[str]
    metrics: dict[str, float]
    has_teacher: bool
    previous_version: str | None = None
    event_roles: dict[str, str] | None = None
    calibration: Calibration | None = None


class Shadow(Answer, frozen=True):
    """How a candidate compares with the active model on the same requests; times are medians in
    microseconds.
    """

    requests: int
    agreement: float | None = None
    active_us: float | None = None
    candidate_us: float | None = None


class LoadResponse(Answer, frozen=True):
    """switched: whether the candidate answers now; `reason` says why not."""

    switched: bool
    model_version: str
    previous_version: str
    shadow: Shadow
    reason: str = ""


class RulesResponse(Answer, frozen=True):
    """The rules in force. version: changes with them, empty where none have been loaded; problems:
    pinned items that the model does not know, when rules are loaded.
    """

    version: str
    placements: dict[str, Rules]
    problems: list[str] = []


class ArmResult(Answer, frozen=True):
    """What the answers of an arm have brought. clicked, converted: answers with at least one click,
    conversion; value: of all conversions; per_answer: the metric of the experiment.
    """

    answers: int
    clicked: int
    converted: int
    value: float
    per_answer: float | None = None


class ExperimentResult(Answer, frozen=True):
    """What an experiment has brought so far. difference: of the metric per answer, variant minus
    control; low, high: its 95% interval, which holds however often it is looked at, null where too
    little is known; different: whether it excludes 0; p_value: that nothing differs, valid at any
    look.
    """

    control: ArmResult
    variant: ArmResult
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float = 1.0
    different: bool = False


class ExperimentResponse(Answer, frozen=True):
    """An experiment. state: `running`, `promoting` (to be finished), `promoted` or `stopped`;
    started, changed: seconds since 1970; rules: of the variant; problem: why this process answers
    everybody with the control although it runs; result: in the list of all experiments,
    unless answers have no ids.
    """

    name: str
    state: str
    share: float
    metric: str
    started: float
    changed: float
    control_version: str
    variant_version: str
    planned: int
    rules: dict[str, Rules] | None = None
    problem: str = ""
    result: ExperimentResult | None = None


class ExperimentsResponse(Answer, frozen=True):
    experiments: list[ExperimentResponse]


class Estimate(Answer, frozen=True):
    """A rate or a mean, with its 95% interval."""

    mean: float
    low: float
    high: float


class OutcomeGroup(Answer, frozen=True):
    """What became of the answers of a group. impressions, clicks: items of answers that were shown,
    clicked, each once; conversions: of items, and their `value`.

    answers: that were given; shown, clicked, converted: those of which an item was; left out, like
    their rates, by position. click_rate: clicked / answers; conversion_rate: converted / answers;
    impression_click_rate: items that were clicked of those that were shown; left out where there
    are none. variant: arm of an experiment; group: of users in it. position: 0 where events do not
    say it.
    """

    impressions: int
    clicks: int
    conversions: int
    value: float
    answers: int | None = None
    shown: int | None = None
    clicked: int | None = None
    converted: int | None = None
    impression_click_rate: Estimate | None = None
    click_rate: Estimate | None = None
    conversion_rate: Estimate | None = None
    value_per_answer: Estimate | None = None
    day: str | None = None
    endpoint: str | None = None
    placement: str | None = None
    model_version: str | None = None
    rules: str | None = None
    variant: str | None = None
    group: int | None = None
    position: int | None = None


class OutcomesResponse(Answer, frozen=True):
    """What became of the answers of these days, in UTC, both included."""

    first_day: str
    last_day: str
    groups: list[OutcomeGroup]


class KeptEvent(Answer, frozen=True):
    """A stored event. timestamp: when it happened; received: when the service took it; both in
    seconds since 1970.
    """

    user_id: str
    item_id: str
    event_type: str
    timestamp: float
    received: float
    event_id: str


class KeptEvents(Answer, frozen=True):
    """Stored events of some users, those of each in order of arrival. after: for the next request,
    left out with the last events.
    """

    events: list[KeptEvent]
    after: str | None = None


class StatusResponse(Answer, frozen=True):
    status: str
    reason: str = ""


class ErrorDetail(Answer, frozen=True):
    """code: stable, see docs/errors.md; fix: what to do."""

    code: str
    message: str
    request_id: str
    fix: str = ""


class ErrorResponse(Answer, frozen=True):
    """The body of every answer with a status from 400 on, outside /v2."""

    error: ErrorDetail


class TextError(Answer, frozen=True):
    """The same below /v2, as KServe has it: message and what to do in one text."""

    error: str
