"""What the client takes and gives, as types for a checker: at run time these are plain dictionaries.

Times are RFC 3339 in UTC with microseconds, costs are US dollars.
"""

from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict

JsonObject = dict[str, Any]
Status = Literal["pending", "in_progress", "blocked", "completed", "failed", "cancelled"]
Level = Literal["debug", "info", "warning", "error"]
CostSource = Literal["reported", "computed", "unpriced"]


class WorkflowOptions(TypedDict, total=False):
    """What a new workflow may have beyond its issue and its worktree; `id` is a UUID."""

    worktree_name: str | None
    host: str
    profile: str | None
    state: JsonObject | None
    id: str | None


class WorkflowPatch(TypedDict, total=False):
    """What can be changed by hand: `state` by JSON merge patch (RFC 7396)."""

    state: JsonObject | None
    worktree_name: str


class MoveOptions(TypedDict, total=False):
    """Who decided on a move, and the id of the event that it writes."""

    actor: str | None
    event_id: str | None


class WorkflowFilter(TypedDict, total=False):
    """Which workflows to list; `limit` up to 100, `cursor` from the page before."""

    status: Status
    worktree: str
    issue_id: str
    host: str
    limit: int
    cursor: str


class Workflow(TypedDict):
    """A workflow as lists show it."""

    id: str
    issue_id: str
    worktree_path: str
    worktree_name: str
    host: str
    profile: str | None
    status: Status
    created_at: str
    started_at: str | None
    completed_at: str | None
    failure_reason: str | None
    current_stage: str | None
    last_sequence: int
    total_cost_usd: float
    total_tokens: int
    total_duration_ms: int | None
    unpriced_tokens: int


class CreatedWorkflow(Workflow):
    """A workflow, and a sentence that says whether it is new."""

    message: str


class WorkflowPage(TypedDict):
    """Workflows, newest first. `total` counts all that match; `cursor` continues the list."""

    workflows: list[Workflow]
    total: int
    cursor: str | None
    has_more: bool


class AgentModelUsage(TypedDict):
    """What one agent used of one model."""

    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_usd: float
    unpriced_tokens: int


class WorkflowUsage(TypedDict):
    """A workflow's totals, and the same by agent and model."""

    total_input_tokens: int
    total_output_tokens: int
    total_cache_read_tokens: int
    total_cache_creation_tokens: int
    total_cost_usd: float
    unpriced_tokens: int
    breakdown: list[AgentModelUsage]


class NewEvent(TypedDict):
    """An event as an agent sends it. Without `timestamp` the time of arrival is taken."""

    agent: str
    event_type: str
    message: str
    level: NotRequired[Level]
    data: NotRequired[JsonObject | None]
    correlation_id: NotRequired[str | None]
    timestamp: NotRequired[str | datetime | None]
    id: NotRequired[str | None]


class Event(TypedDict):
    """An event as it is read: `sequence` counts within its workflow, `position` over all."""

    id: str
    workflow_id: str
    sequence: int
    position: int
    timestamp: str
    agent: str
    event_type: str
    level: Level
    message: str
    data: JsonObject | None
    correlation_id: str | None


class EventFilter(TypedDict, total=False):
    """Which events: `level` means at least that one."""

    event_type: str
    agent: str
    level: Level


class EventQuery(EventFilter, total=False):
    """Which events, and how many: `limit` up to 1000, numbers below `before`; `order` only sorts."""

    before: int
    limit: int
    order: Literal["asc", "desc"]


class EventPage(TypedDict):
    """A page of events; `next_after` and `next_before` continue it in either direction."""

    events: list[Event]
    next_after: int
    next_before: int | None
    has_more: bool


class AppendedEvent(TypedDict):
    """Where an event stands."""

    id: str
    sequence: int
    position: int


class AppendedEvents(TypedDict):
    """The events in the order sent; `duplicates` counts those that had been stored before."""

    events: list[AppendedEvent]
    duplicates: int


class WorkflowDetail(Workflow):
    """A workflow with all that belongs to it, its newest 50 events oldest first.

    `etag` is its version, for `patch_workflow(if_match=...)`.
    """

    state: JsonObject | None
    token_usage: WorkflowUsage | None
    recent_events: list[Event]
    plan: None
    etag: str


class Moved(TypedDict):
    """What a move did: the workflow as it is now and the event that was written."""

    status: Literal["started", "blocked", "approved", "rejected", "completed", "failed", "cancelled"]
    workflow_id: str
    workflow: Workflow
    event: Event


class NewUsage(TypedDict):
    """What one request to a model used. The four counts are disjoint: `input_tokens` is without the cache."""

    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: NotRequired[int]
    cache_creation_tokens: NotRequired[int]
    cost_usd: NotRequired[float | None]
    request_id: NotRequired[str | None]
    timestamp: NotRequired[str | datetime | None]
    id: NotRequired[str | None]


class UsageRecord(TypedDict):
    """A usage record as it is read; `cost_usd` is null where no price is known."""

    id: str
    workflow_id: str
    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_usd: float | None
    cost_source: CostSource
    request_id: str | None
    timestamp: str


class UsagePage(TypedDict):
    """A page of usage records in the order recorded; `next_after` continues it."""

    token_usage: list[UsageRecord]
    summary: WorkflowUsage | None
    next_after: str | None
    has_more: bool


class Recorded(TypedDict):
    """What a usage record costs."""

    id: str
    cost_usd: float | None
    cost_source: CostSource


class RecordedUsage(TypedDict):
    """The records in the order sent; `duplicates` counts those that had been stored before."""

    token_usage: list[Recorded]
    duplicates: int


class UsageSummary(TypedDict):
    """A period in figures; the rates are from 0 to 1, `success_rate` null where no workflow has finished."""

    total_cost_usd: float
    total_workflows: int
    total_tokens: int
    total_duration_ms: int
    cache_hit_rate: float | None
    cache_savings_usd: float
    previous_period_cost_usd: float | None
    successful_workflows: int
    success_rate: float | None
    unpriced_tokens: int


class DayUsage(TypedDict):
    """A day in UTC."""

    date: str
    cost_usd: float
    workflows: int
    by_model: dict[str, float]


class ModelDayUsage(TypedDict):
    """A day of one model."""

    date: str
    cost_usd: float
    tokens: int


class ModelUsage(TypedDict):
    """A model over the period; a workflow counts on the day on which it first used it."""

    model: str
    workflows: int
    tokens: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_usd: float
    trend: list[ModelDayUsage]
    successful_workflows: int
    success_rate: float | None
    unpriced_tokens: int


class AgentUsage(TypedDict):
    """An agent over the period."""

    agent: str
    tokens: int
    cost_usd: float


class UsageReport(TypedDict):
    """Cost and tokens over days; `trend` has every day of the period."""

    summary: UsageSummary
    trend: list[DayUsage]
    by_model: list[ModelUsage]
    by_agent: list[AgentUsage]


class WriterHealth(TypedDict):
    """The writer of the process that answers."""

    waiting: int
    commits: int
    failure: str | None


class DatabaseHealth(TypedDict):
    """Healthy: written, read back and deleted. Degraded: can be read alone. Unhealthy: neither."""

    status: Literal["healthy", "degraded", "unhealthy"]
    mode: Literal["wal", "postgresql"]
    error: str | None
    engine: str
    engine_is_mended: bool
    writer: WriterHealth


class Health(TypedDict):
    """The service as a whole; uptime, memory (MiB) and load are those of the process that answers."""

    status: Literal["healthy", "degraded"]
    version: str
    uptime_seconds: float
    active_workflows: int | None
    websocket_connections: int
    memory_mb: float
    cpu_percent: float
    database: DatabaseHealth
