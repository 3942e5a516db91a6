"""The example that a newcomer looks at."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from amelia_flask import clock, demo, report, retention, summaries, timeline
from amelia_flask.errors import FileRefused
from amelia_flask.ledger import Ledger
from amelia_flask.models import Status
from tests.databases import Database, Databases, database_of
from tests.histories import check
from tests.ledgers import create, move
from tests.test_cli import run

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def filled(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A database with the example."""
    folder = tmp_path_factory.mktemp("demo")
    with databases.lend(folder) as database, closing(database.ledger()) as ledger:
        demo.fill(ledger, NOW)
        yield ledger


def test_it_has_workflows_in_every_status(filled: Ledger) -> None:
    found: dict[str, int] = dict(database_of(filled).rows("SELECT status, COUNT(*) FROM workflows GROUP BY 1"))
    assert set(found) == set(Status)
    assert sum(found.values()) == len(demo.STORIES) >= 12
    check(database_of(filled))


def test_it_is_of_the_last_weeks_and_retention_leaves_it(filled: Ledger) -> None:
    for column, table in (("created_at", "workflows"), ("timestamp", "events"), ("timestamp", "token_usage")):
        [(first, last)] = database_of(filled).rows(f"SELECT MIN({column}), MAX({column}) FROM {table}")
        assert NOW - timedelta(days=30) < clock.from_text(first)
        assert clock.from_text(last) <= NOW
    assert not any(retention.survey(filled, NOW))


def test_it_happened_in_the_order_in_which_it_stands(filled: Ledger) -> None:
    found = filled.read(timeline.page_of_all, timeline.Page(limit=1000)).events
    assert [event.timestamp for event in found] == sorted(event.timestamp for event in found)
    assert {event.level for event in found} == {"debug", "info", "warning", "error"}


def test_one_workflow_waits_for_a_human_and_can_be_approved(database: Database) -> None:
    with closing(database.ledger()) as ledger:
        made = demo.fill(ledger, NOW)
        [waiting] = ledger.read(summaries.page, summaries.Filter(status="blocked"), 10).workflows
        assert waiting.id == made.waiting
        assert move(ledger, made.waiting, "approve").workflow.status == "in_progress"


def test_the_report_has_models_agents_savings_and_what_has_no_price(filled: Ledger) -> None:
    found = filled.read(report.report, report.period("30d", None, None, NOW), NOW)
    assert len(found.by_model) >= 5
    assert {one.agent for one in found.by_agent} == {"architect", "developer", "reviewer"}
    assert found.summary.total_cost_usd > 1
    assert found.summary.cache_savings_usd > 0
    assert 0 < found.summary.unpriced_tokens < found.summary.total_tokens
    assert sum(1 for day in found.trend if day.cost_usd) >= 8


def test_it_is_the_same_each_time_but_for_its_ids(filled: Ledger, database: Database) -> None:
    with closing(database.ledger()) as ledger:
        demo.fill(ledger, NOW)
        for query in (
            "SELECT id, issue_id, status, created_at, completed_at, cost_nano FROM workflows ORDER BY 1",
            "SELECT workflow_id, sequence, position, timestamp, agent, message, data_json FROM events ORDER BY 3",
        ):
            assert database_of(ledger).rows(query) == database_of(filled).rows(query)


def test_a_database_that_is_not_empty_is_refused_and_left_alone(database: Database) -> None:
    with closing(database.ledger()) as ledger:
        create(ledger)
        before = database_of(ledger).dump()
        with pytest.raises(FileRefused):
            demo.fill(ledger, NOW)
        assert database_of(ledger).dump() == before


def test_the_command_says_what_there_is_and_refuses_a_second_time(empty_database: Database) -> None:
    first, again = (run("demo", **empty_database.settings) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 1)
    assert f"{len(demo.STORIES)} workflows" in first.stdout
    assert "waits for a human" in first.stdout
    assert again.stderr == "Error: The database holds a record already; the example is for an empty one.\n"
