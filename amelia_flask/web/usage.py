"""Token usage of workflows, and the report over days."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from amelia_flask import report, usage
from amelia_flask.errors import IdReused, InvalidCursor, InvalidPeriod, NotFound
from amelia_flask.web.body import Records, given
from amelia_flask.web.operations import Answer, Resource, ledger

resource = Resource("usage", __name__)

OF_ONE = "/api/workflows/<uuid:workflow_id>/token-usage"


class UsageBatch(Struct, forbid_unknown_fields=True):
    """Records that are stored together or not at all."""

    token_usage: Annotated[list[usage.NewUsage], Meta(min_length=1, max_length=usage.MAX_BATCH)]


class PageQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which records: those after `next_after` of the page before."""

    after: str | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ReportQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    """The period: a preset (7d, 30d, 90d, all), or its first and last day."""

    preset: str | UnsetType = UNSET
    start: str | UnsetType = UNSET
    end: str | UnsetType = UNSET


@resource.operation(
    "POST",
    OF_ONE,
    {201: usage.RecordedUsage, 200: usage.RecordedUsage},
    body=Records(usage.NewUsage, UsageBatch, "token_usage", usage.MAX_LINES),
    errors=(NotFound, IdReused),
)
def record(workflow_id: str, body: list[usage.NewUsage]) -> Answer:
    """Record one request to a model, a batch, or NDJSON lines, all or none; 200 where all were there already."""
    recorded = ledger().write_to((workflow_id,), usage.record, workflow_id, usage.priced(body))
    return Answer(recorded, 200 if recorded.duplicates == len(body) else 201)


@resource.operation("GET", OF_ONE, {200: usage.UsagePage}, query=PageQuery, errors=(NotFound, InvalidCursor))
def page(workflow_id: str, query: PageQuery) -> usage.UsagePage:
    """Read a page of a workflow's records in the order recorded."""
    return ledger().read(usage.page, workflow_id, given(query.after), query.limit)


@resource.operation("GET", "/api/usage", {200: report.UsageReport}, query=ReportQuery, errors=(InvalidPeriod,))
def usage_report(query: ReportQuery) -> report.UsageReport:
    """Report cost and tokens over days, by model and by agent."""
    period = report.period(given(query.preset), given(query.start), given(query.end))
    return ledger().read(report.report, period)
