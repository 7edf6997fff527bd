"""The shapes of requests and answers, for the OpenAPI description. The routes build the same as plain JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from bloodbank.acceptance import Status
from bloodbank.correlation_tracker import Lineage
from bloodbank.deduplication import Dedup
from bloodbank.envelope import AgentContext, EventEnvelope, EventType, Source
from bloodbank.events.registry import utc_now
from bloodbank.ids import new_event_id
from bloodbank.stores.base import Direction

Body = TypeVar("Body")

ENVELOPE = EventEnvelope[dict[str, Any]]


class WithPayload(BaseModel, Generic[Body]):
    """A payload with what else is known of the event; everything but the payload may be missing.

    event_id: give your own to make a retry safe. correlation_ids: ids of the events that caused this one, at
    most 64 different ones; they need not be on the bus yet. source: default: the client's address.
    """

    model_config = ConfigDict(extra="forbid")

    payload: Body
    event_id: UUID = Field(default_factory=new_event_id)
    correlation_ids: list[UUID] = Field(default=[], max_length=64)
    source: Source = Field(default_factory=Source.local)
    agent_context: AgentContext | None = None
    timestamp: AwareDatetime = Field(default_factory=utc_now)


class EventIn(WithPayload[dict[str, Any]]):
    """An event: an envelope 2.0.0, of which only `event_type` and `payload` are required."""

    event_type: EventType
    version: Literal["2.0.0"] = "2.0.0"


class EnvelopeV1(BaseModel):
    """An envelope of version 1. It is upgraded; an `id` that is no UUID becomes the UUIDv5 that belongs to it."""

    event_type: EventType
    data: dict[str, Any]
    id: str | None = None
    ts: AwareDatetime | None = None
    version: str | None = None
    source: str | None = None
    correlation_id: str | None = None


class BatchIn(BaseModel):
    """Several events. A bare list of them does as well."""

    events: list[EventIn | EnvelopeV1]


class Published(BaseModel):
    """An accepted event: on the bus, or on disk.

    dedup: `skipped` when the id was chosen by the caller and nobody could tell whether it is on the bus already;
    left out otherwise.
    """

    event_id: UUID
    status: Status
    lineage: Lineage
    dedup: Literal[Dedup.SKIPPED] | None = None


class ProblemError(BaseModel):
    """One thing to change. path: dotted, into the envelope."""

    path: str
    message: str


class Problem(BaseModel):
    """What went wrong (RFC 9457). `code` is stable; `detail` says what to do.

    event_id: the event that it is about; a retry must use this id.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = None
    errors: list[ProblemError] | None = None
    event_id: UUID | None = None


class Refused(BaseModel):
    """An event of a batch that was not accepted."""

    problem: Problem


class BatchOut(BaseModel):
    """One result an event, in the order sent."""

    results: list[Published | Refused]


class EventPage(BaseModel):
    """Events, newest first. next: the `cursor` of the next page, or null at the end.

    searched: of a search, how many events were looked at for this page; left out otherwise.
    """

    items: list[ENVELOPE]
    next: str | None
    searched: int = 0


class EventsPerSecond(BaseModel):
    """How many events came a second: in the last whole second, and on average in the last 60."""

    last_second: float
    last_minute: float


class TypeRate(BaseModel):
    """How often a type was seen. total: since `since`. last_seen: when the last one was accepted."""

    event_type: str
    last_minute: int
    total: int
    last_seen: AwareDatetime


class GroupLag(BaseModel):
    """How far a group of consumers is.

    waiting: what no consumer has yet; `more`: at least so many. delivered: what consumers have and have not settled;
    null where the broker does not tell.
    """

    group: str
    patterns: list[str]
    waiting: int
    more: bool
    delivered: int | None


class OutboxLag(BaseModel):
    """What waits for the broker, what it refused for good, and the age of what waits longest."""

    waiting: int
    set_aside: int
    oldest_seconds: float | None


class Trouble(BaseModel):
    """Why the log cannot be read now."""

    code: str
    detail: str


class Stats(BaseModel):
    """What the bus does now.

    since: from when on events are counted; null before the log could be read. per_second: events in each of the last 60
    whole seconds, the oldest first. types: the 200 most frequent, of the last minute first. Each `…_detail` says why
    something is not known; then the list is empty and the number null.
    """

    now: AwareDatetime
    since: AwareDatetime | None
    events_per_second: EventsPerSecond
    per_second: list[int] = Field(min_length=60, max_length=60)
    types: list[TypeRate] = Field(max_length=200)
    trouble: Trouble | None
    groups: list[GroupLag]
    groups_detail: str | None
    outbox: OutboxLag | None
    outbox_detail: str | None
    dead_letters: int | None
    dead_letters_detail: str | None


class DemoPlayed(BaseModel):
    """How many events were published, and one that is worth looking at."""

    events: int
    focus: UUID


class LineageNode(BaseModel):
    """An event in a graph. depth: hops from the focus, negative towards ancestors.

    known: false for a parent that was named but never seen; what is not known of it is null.
    """

    id: UUID
    depth: int
    event_type: str | None
    timestamp: AwareDatetime | None
    source: str | None
    status: Literal["ok", "failed"] | None
    known: bool
    parents_total: int
    children_total: int


class Edge(BaseModel):
    """One event caused another."""

    parent: UUID
    child: UUID


class Truncated(BaseModel):
    """Whether the graph was cut short. frontier: events to ask about next for what was left out."""

    depth: bool
    limit: bool
    frontier: list[UUID]


class LineageOut(BaseModel):
    """The graph around an event, parents before children."""

    focus: UUID
    direction: Direction
    nodes: list[LineageNode]
    edges: list[Edge]
    roots: list[UUID]
    missing: list[UUID]
    cycle: bool
    truncated: Truncated


class PathOut(BaseModel):
    """The shortest way by causes from one event to another.

    found: null where nobody knows, because what was looked through was cut short. direction: `descendants` when
    `from` led to `to`, `ancestors` when `to` led to `from`; null without a path, and from an event to itself.
    path: the events from `from` to `to`; empty without a path. missing: parents that were named but never seen among
    what was looked through, so that a path through them would not be found.
    """

    start: UUID = Field(alias="from")
    to: UUID
    found: bool | None
    direction: Literal["descendants", "ancestors"] | None
    path: list[LineageNode]
    edges: list[Edge]
    missing: list[UUID]
    truncated: Truncated


class CommonOut(BaseModel):
    """The lowest common causes of some events: those that led to all of them, but to no other such event.

    causes: parents first; `depth` is hops from the first of `ids`. complete: nothing was cut short; otherwise lower
    ones may have been missed. missing: parents that were named but never seen, behind which nothing was found.
    """

    ids: list[UUID]
    causes: list[LineageNode]
    complete: bool
    missing: list[UUID]
    truncated: Truncated


class ByStatus(BaseModel):
    """Events counted by status. unknown: named, but never seen."""

    ok: int
    failed: int
    unknown: int


class ImpactOut(BaseModel):
    """What an event led to, counted without itself. first, last: times of these events; null where there are none."""

    event_id: UUID
    descendants: int
    by_type: dict[str, int]
    by_source: dict[str, int]
    by_status: ByStatus
    first: AwareDatetime | None
    last: AwareDatetime | None
    truncated: Truncated


class CorrelationMetadata(BaseModel):
    """What the index knows of an event itself."""

    known: bool
    event_type: str | None
    timestamp: AwareDatetime | None
    source: str | None
    children_total: int
    truncated: bool


class CorrelationOut(BaseModel):
    """Everything around an event; the event itself is in none of the lists."""

    event_id: UUID
    parents: list[UUID]
    children: list[UUID]
    ancestors: list[UUID]
    descendants: list[UUID]
    metadata: CorrelationMetadata


class ChainOut(BaseModel):
    """An event with its ancestors or descendants, parents before children. truncated: there are more."""

    event_id: UUID
    direction: Literal["ancestors", "descendants"]
    chain: list[UUID]
    count: int
    truncated: bool


class SchemaItem(BaseModel):
    """An event type that has a payload model."""

    event_type: str
    title: str
    description: str


class SchemaList(BaseModel):
    """All event types that have a payload model."""

    items: list[SchemaItem]
    next: str | None


class Health(BaseModel):
    """The process serves requests."""

    ok: Literal[True]
    service: str
    version: str
    environment: str


class Live(BaseModel):
    """The process serves requests."""

    ok: Literal[True]


class Dependency(BaseModel):
    """One thing that the server needs. what: what the settings chose, without credentials."""

    ok: bool
    detail: str
    what: str


class StoreDependency(Dependency):
    """The correlation store.

    deferred_total: events since the start of this process that the index did not take at once. journalled: those that
    wait on disk until it does. unjournalled_total, unjournalled_since: those for which there was no room, and when the
    first of them was accepted; `bb reindex` finds them in the log.
    """

    deferred_total: int
    journalled: int
    unjournalled_total: int
    unjournalled_since: datetime | None


class OutboxState(BaseModel):
    """Where events wait while the broker takes none.

    on: whether there is one. ok: whether it has room. set_aside: events that the broker refused for good; see
    `bb outbox`. oldest_seconds: how long the first of those that wait has waited.
    """

    on: bool
    ok: bool
    detail: str
    waiting: int
    waiting_bytes: int
    used_bytes: int
    limit_bytes: int
    set_aside: int
    oldest_seconds: float | None


class Readiness(BaseModel):
    """Whether events can be accepted now.

    degraded: they can, but the broker is away and they are kept in the outbox, or the correlation store is away and
    causes are kept in the journal, or one of these is not as it should be. stopping: the server was told to end.
    """

    ready: bool
    degraded: bool
    stopping: bool
    transport: Dependency
    store: StoreDependency
    outbox: OutboxState


class OutboxNumbers(BaseModel):
    """How much is in the outbox; sizes are those of the bodies in bytes, `used_bytes` and the limit those of the file.

    oldest_accepted_at: of the events that wait.
    """

    waiting: int
    waiting_bytes: int
    set_aside: int
    set_aside_bytes: int
    used_bytes: int
    limit_bytes: int
    oldest_accepted_at: AwareDatetime | None


class OutboxItem(BaseModel):
    """An event in the outbox.

    attempts: how often the broker did not take it. set_aside: it refused it for good, for the `reason`.
    """

    event_id: UUID
    event_type: str
    accepted_at: AwareDatetime
    size_bytes: int
    attempts: int
    set_aside: bool
    reason: str | None


class OutboxPage(BaseModel):
    """Events in the outbox, the first accepted first. on: whether there is one. next: `cursor` of the next page."""

    on: bool
    totals: OutboxNumbers
    items: list[OutboxItem]
    next: str | None


class OutboxRetried(BaseModel):
    """How many events that were set aside wait again."""

    retried: int


class OutboxDropped(BaseModel):
    """An event that was deleted from the outbox."""

    event_id: UUID
    dropped: Literal[True]


class DeadLetterItem(BaseModel):
    """An event that a consumer gave up.

    number: names it. group: of consumers; null for a subscription without one. error: class of the exception, or
    `poison`, `no_handler`, `crashed`. reason: one line. traceback: the end of it. consumer: name of the handler.
    first_at: when the first attempt began, where somebody said. dead_at: when it was set aside.
    """

    number: int
    group: str | None
    event_id: UUID
    event_type: str
    error: str
    reason: str
    traceback: str
    consumer: str
    attempts: int
    first_at: AwareDatetime | None
    dead_at: AwareDatetime


class DeadLetterFull(DeadLetterItem):
    """A dead letter with its body as text, at most 16,000 characters of it. body_bytes: of the whole."""

    body: str
    body_cut: bool
    body_bytes: int


class DeadLetterPage(BaseModel):
    """Dead letters, oldest first. next: the `cursor` of the next page, or null at the end."""

    items: list[DeadLetterItem]
    next: str | None


class DeadLetterGroup(BaseModel):
    """Dead letters of one consumer and one error.

    key: names the group. first_at, last_at: when the first and the last was set aside. sample: the last one.
    """

    key: str
    consumer: str
    group: str | None
    error: str
    count: int
    first_at: AwareDatetime
    last_at: AwareDatetime
    sample: DeadLetterItem


class DeadLetterGroups(BaseModel):
    """Groups of dead letters. next: `cursor` of the rest, where there are very many; counts of one key add up."""

    items: list[DeadLetterGroup]
    next: str | None


class Retried(BaseModel):
    """How many dead letters were given to their consumers again."""

    retried: int


class LetterDiscarded(BaseModel):
    """A dead letter that is off the list."""

    number: int
    discarded: Literal[True]


class JobError(BaseModel):
    """Why a job ended early. code, detail: as in a problem."""

    code: str
    detail: str


class JobOut(BaseModel):
    """How far a job is, or its outcome.

    total: how many there are to settle; null while they are counted. done: settled. skipped: gone meanwhile, or
    impossible to settle. failed: the rest, once it ended early; some of them may have been settled.
    """

    job: UUID
    kind: Literal["retry", "discard", "replay", "count"]
    total: int | None
    done: int
    skipped: int
    failed: int
    finished: bool
    error: JobError | None


class ReplayIn(BaseModel):
    """Which events are delivered again, and to whom.

    type: routing pattern. since, until: when the bus accepted them; `until` exclusive. event_id: this event instead;
    descendants: and all that it led to. to: a group, whatever its patterns; to_all: every group whose patterns fit.
    dry_run: count them only.
    """

    model_config = ConfigDict(extra="forbid")

    type: str = Field(default="#", min_length=1, max_length=255)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    event_id: UUID | None = None
    descendants: bool = False
    to: str | None = Field(default=None, min_length=1, max_length=255)
    to_all: bool = False
    dry_run: bool = False


class FirefliesV2(BaseModel):
    """A webhook of Fireflies, version 2. timestamp: Unix milliseconds. Unknown events are recorded as they come."""

    event: str
    timestamp: int
    meeting_id: str
    client_reference_id: str | None = None


class FirefliesV1(BaseModel):
    """A webhook of Fireflies, version 1."""

    meetingId: str  # noqa: N815, the name is theirs
    eventType: str  # noqa: N815, as above
    clientReferenceId: str | None = None  # noqa: N815, as above
