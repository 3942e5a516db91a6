"""The tables, as Peewee models: columns, constraints and indexes, no behaviour.

The models are bound to the proxy `database`, so that a shell can say `Workflow.select()`. The domain names the
database it means at each query and does not depend on what the proxy points at.

Times are text in UTC on SQLite (see `clock.to_text`); money is whole nano-dollars.
"""

from enum import StrEnum
from typing import Any

from peewee import (
    SQL,
    BigIntegerField,
    Check,
    CompositeKey,
    DatabaseProxy,
    DoubleField,
    Field,
    ForeignKeyField,
    IntegerField,
    Model,
    SchemaManager,
    SqliteDatabase,
    TextField,
)

database = DatabaseProxy()

# A sum beyond this is refused rather than left to overflow 64 bits (SQLite would turn it into a float).
LARGEST_TOTAL = 2**62


class Status(StrEnum):
    """Where a workflow stands."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (Status.PENDING, Status.IN_PROGRESS, Status.BLOCKED)
LEVELS = ("debug", "info", "warning", "error")
COST_SOURCES = ("reported", "computed", "unpriced")
SCOPES = ("read", "write")


def _one_of(column: str, values: tuple[str, ...]) -> Any:
    return Check(f"{column} IN ({', '.join(repr(str(value)) for value in values)})")


def _default(value: int | str) -> Any:
    return SQL(f"DEFAULT {value!r}")


def _count() -> BigIntegerField:
    return BigIntegerField(default=0, constraints=[_default(0)])


def _total(column: str) -> BigIntegerField:
    return BigIntegerField(default=0, constraints=[_default(0), Check(f"{column} BETWEEN 0 AND {LARGEST_TOTAL}")])


class TimestampField(Field):
    """A moment in UTC with microseconds: text on SQLite, timestamptz on PostgreSQL."""

    field_type = "UTC_TIMESTAMP"


class _Schema(SchemaManager):
    """Creates a table as its engine has it: on SQLite in the order of its key, where it `is_clustered`; on PostgreSQL
    with room for the next versions of rows, where these are changed all the time (`is_rewritten`).
    """

    def _create_table(self, *args: Any, **kwargs: Any) -> Any:
        context = super()._create_table(*args, **kwargs)
        if isinstance(self.database, SqliteDatabase):
            return context.literal(" WITHOUT ROWID") if self._has("is_clustered") else context
        return context.literal(" WITH (fillfactor = 50)") if self._has("is_rewritten") else context

    def _has(self, option: str) -> bool:
        return bool(getattr(self.model._meta, option, False))


class Table(Model):
    """What every table shares."""

    class Meta:
        database = database
        legacy_table_names = False
        schema_manager_class = _Schema


class Workflow(Table):
    """One run of agents in one worktree."""

    id = TextField(primary_key=True)
    issue_id = TextField()
    worktree_path = TextField()
    worktree_name = TextField()
    status = TextField(default=Status.PENDING, constraints=[_default("pending"), _one_of("status", tuple(Status))])
    started_at = TimestampField(null=True)
    completed_at = TimestampField(null=True)
    failure_reason = TextField(null=True)
    state_json = TextField(null=True)
    created_at = TimestampField()
    updated_at = TimestampField()
    host = TextField(default="", constraints=[_default("")])
    profile = TextField(null=True)
    last_sequence = _count()
    version = IntegerField(default=1, constraints=[_default(1)])
    # Of what it was created with, so that a repeated creation is known as such after the workflow has changed.
    digest = TextField()
    # Kept with every usage record, so that a list needs no sums.
    usage_count = _count()
    total_tokens = _total("total_tokens")
    unpriced_tokens = _total("unpriced_tokens")
    cost_nano = _total("cost_nano")

    class Meta:
        table_name = "workflows"
        is_rewritten = True


_newest_first = (Workflow.created_at.desc(), Workflow.id.desc())
# A list is read in the order of an index and counted in the same; the filters that it is narrowed by stand behind.
for _name, *_columns in (
    ("idx_workflows_created_at", *_newest_first),
    ("idx_workflows_status", Workflow.status, *_newest_first),
    ("idx_workflows_host", Workflow.host, *_newest_first),
    ("idx_workflows_host_status", Workflow.host, Workflow.status, *_newest_first),
    ("idx_workflows_worktree", Workflow.worktree_path, *_newest_first, Workflow.status, Workflow.host),
    ("idx_workflows_issue_id", Workflow.issue_id, *_newest_first, Workflow.status, Workflow.host),
    ("idx_workflows_started_at", Workflow.started_at.desc()),
):
    Workflow.add_index(Workflow.index(*_columns, name=_name))
# What retention looks for; partial, so that a workflow costs nothing more before its end.
Workflow.add_index(
    Workflow.index(
        Workflow.completed_at, where=Workflow.completed_at.is_null(False), name="idx_workflows_completed_at"
    )
)
Workflow.add_index(
    Workflow.index(
        Workflow.host,
        Workflow.worktree_path,
        unique=True,
        where=Workflow.status.in_([str(status) for status in ACTIVE]),
        name="idx_workflows_active_worktree",
    )
)


class Event(Table):
    """One thing that an agent, a person or the service did; `sequence` counts within its workflow."""

    workflow = ForeignKeyField(Workflow, on_delete="CASCADE", index=False)
    sequence = BigIntegerField()
    id = TextField(unique=True)
    position = BigIntegerField(unique=True)
    timestamp = TimestampField()
    agent = TextField()
    event_type = TextField()
    level = TextField(default="info", constraints=[_default("info"), _one_of("level", LEVELS)])
    message = TextField()
    data_json = TextField(null=True)
    correlation_id = TextField(null=True)

    class Meta:
        table_name = "events"
        primary_key = CompositeKey("workflow", "sequence")
        is_clustered = True


Event.add_index(Event.index(Event.workflow, Event.timestamp, name="idx_events_workflow"))
# Where both are asked for SQLite takes the later one: there are more types than agents, so fewer events of each.
Event.add_index(Event.index(Event.agent, Event.position, name="idx_events_agent"))
Event.add_index(Event.index(Event.event_type, Event.position, name="idx_events_type"))
# What went wrong is rare and looked for among millions; partial, so that all other events cost nothing.
Event.add_index(Event.index(Event.position, where=Event.level.in_(("warning", "error")), name="idx_events_level"))


class TokenUsage(Table):
    """What one request to a model used. The four counts are disjoint; `number` counts within the workflow."""

    id = TextField(primary_key=True)
    workflow = ForeignKeyField(Workflow, on_delete="CASCADE", index=False)
    number = BigIntegerField()
    agent = TextField()
    model = TextField()
    input_tokens = BigIntegerField()
    output_tokens = BigIntegerField()
    cache_read_tokens = _count()
    cache_creation_tokens = _count()
    cost_usd = DoubleField(null=True)
    cost_nano = BigIntegerField(null=True)
    savings_nano = BigIntegerField(null=True)
    cost_source = TextField(constraints=[_one_of("cost_source", COST_SOURCES)])
    timestamp = TimestampField()
    day = TextField()
    request_id = TextField(null=True)
    source = TextField(null=True)

    class Meta:
        table_name = "token_usage"


TokenUsage.add_index(
    TokenUsage.index(TokenUsage.workflow, TokenUsage.number, unique=True, name="idx_tokens_workflow")
)
TokenUsage.add_index(TokenUsage.index(TokenUsage.agent, name="idx_tokens_agent"))


class HealthCheck(Table):
    """A row that a health check writes, reads back and deletes."""

    id = TextField(primary_key=True)
    checked_at = TimestampField()

    class Meta:
        table_name = "health_check"


class EventPosition(Table):
    """One row: the newest position over all events. Its row lock makes position order commit order."""

    id = IntegerField(primary_key=True)
    value = BigIntegerField()

    class Meta:
        table_name = "event_position"
        is_rewritten = True


class OpenStage(Table):
    """A stage that has started and not completed; `sequence` is that of its newest `stage_started`."""

    workflow = ForeignKeyField(Workflow, on_delete="CASCADE", index=False)
    stage = TextField()
    sequence = BigIntegerField()

    class Meta:
        table_name = "open_stages"
        primary_key = CompositeKey("workflow", "stage")
        is_clustered = True


OpenStage.add_index(OpenStage.index(OpenStage.workflow, OpenStage.sequence, name="idx_open_stages_sequence"))


class UsageByWorkflow(Table):
    """The sum of a workflow's usage by agent and model, and the first day on which they used it."""

    workflow = ForeignKeyField(Workflow, on_delete="CASCADE", index=False)
    agent = TextField()
    model = TextField()
    first_day = TextField()
    input_tokens = _total("input_tokens")
    output_tokens = _total("output_tokens")
    cache_read_tokens = _total("cache_read_tokens")
    cache_creation_tokens = _total("cache_creation_tokens")
    unpriced_tokens = _total("unpriced_tokens")
    cost_nano = _total("cost_nano")

    class Meta:
        table_name = "usage_by_workflow"
        is_rewritten = True
        primary_key = CompositeKey("workflow", "agent", "model")
        is_clustered = True


UsageByWorkflow.add_index(
    UsageByWorkflow.index(
        UsageByWorkflow.workflow, UsageByWorkflow.model, UsageByWorkflow.first_day, name="idx_usage_first_day"
    )
)


class UsageByDay(Table):
    """The sum of all usage by day (UTC), agent and model; it outlives pruned workflows."""

    day = TextField()
    agent = TextField()
    model = TextField()
    input_tokens = _total("input_tokens")
    output_tokens = _total("output_tokens")
    cache_read_tokens = _total("cache_read_tokens")
    cache_creation_tokens = _total("cache_creation_tokens")
    unpriced_tokens = _total("unpriced_tokens")
    cost_nano = _total("cost_nano")
    savings_nano = BigIntegerField(
        default=0, constraints=[_default(0), Check(f"savings_nano BETWEEN -{LARGEST_TOTAL} AND {LARGEST_TOTAL}")]
    )

    class Meta:
        table_name = "usage_by_day"
        is_rewritten = True
        primary_key = CompositeKey("day", "model", "agent")
        is_clustered = True


class WorkflowsByDay(Table):
    """How many workflows were created on a day, and how those have ended so far."""

    day = TextField(primary_key=True)
    workflows = _count()
    finished = _count()
    successful = _count()
    duration_ms = _count()

    class Meta:
        table_name = "workflows_by_day"
        is_rewritten = True
        is_clustered = True


class FinishedWorkflows(Table):
    """How many workflows that are still there have ended with a status: three rows, so that a list needs no count."""

    status = TextField(primary_key=True)
    workflows = _count()

    class Meta:
        table_name = "finished_workflows"
        is_rewritten = True
        is_clustered = True


class ModelsByDay(Table):
    """How many workflows first used a model on a day, and how those have ended so far."""

    day = TextField()
    model = TextField()
    workflows = _count()
    finished = _count()
    successful = _count()

    class Meta:
        table_name = "models_by_day"
        is_rewritten = True
        primary_key = CompositeKey("day", "model")
        is_clustered = True


class AccessToken(Table):
    """A token that is in force: its digest, never itself."""

    name = TextField(primary_key=True)
    digest = TextField()
    scope = TextField(constraints=[_one_of("scope", SCOPES)])
    created_at = TimestampField()
    last_used_at = TimestampField(null=True)

    class Meta:
        table_name = "access_tokens"
        is_clustered = True


class PrunedWorkflow(Table):
    """A workflow that retention has taken, or has begun to take: what tells of it again is not counted again."""

    id = TextField(primary_key=True)

    class Meta:
        table_name = "pruned_workflows"
        is_clustered = True


TABLES = (
    Workflow,
    Event,
    TokenUsage,
    HealthCheck,
    EventPosition,
    OpenStage,
    UsageByWorkflow,
    UsageByDay,
    WorkflowsByDay,
    FinishedWorkflows,
    ModelsByDay,
    AccessToken,
    PrunedWorkflow,
)
