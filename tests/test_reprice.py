"""Records that had no price take it once it is known, and every sum follows."""

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import strategies as st

from amelia_flask import repricing, usage
from amelia_flask.errors import ValidationError
from amelia_flask.ledger import Ledger
from amelia_flask.pricing import Price
from tests import ledgers
from tests.databases import Database, Databases, database_of
from tests.histories import check, hold
from tests.ledgers import create, move, new_usage, record
from tests.test_cli import run

ledger = ledgers.ledger

DAY = "2026-01-05T12:00:00Z"
PRICED = "claude-haiku-4-5"  # 1, 5, 0.1 and 1.25 dollars a million


def unpriced(ledger: Ledger, workflow: str, *many: dict[str, Any]) -> list[str]:
    """Record usage of models whose price is known as if it had not been; give the ids."""
    records = usage.priced([new_usage(**{"model": PRICED, "timestamp": DAY} | members) for members in many])
    unknown = [one._replace(cost_nano=None, savings_nano=None, cost_source="unpriced") for one in records]
    return [one.id for one in ledger.write(usage.record, workflow, unknown).token_usage]


def reprice(ledger: Ledger, dry_run: bool = False) -> repricing.Repriced:
    return repricing.reprice(ledger, lambda _: None, dry_run)


def content(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, but for the times of changes and when the schema was made; sums of nothing are left out."""
    found = database_of(ledger).dump()
    del found["schema_version"]
    found["workflows"] = [(*row[:10], *row[11:]) for row in found["workflows"]]
    return found


def test_a_record_takes_the_price_of_its_day_and_the_sums_follow(ledger: Ledger) -> None:
    workflow = create(ledger)
    ids = unpriced(ledger, workflow, {"input_tokens": 1000, "output_tokens": 100, "cache_read_tokens": 10_000})
    done = reprice(ledger)
    database = database_of(ledger)
    cost, saved = 1_000_000 + 500_000 + 1_000_000, 9_000_000
    found = database.rows("SELECT id, cost_usd, cost_nano, savings_nano, cost_source FROM token_usage")
    assert found == [(ids[0], cost / 10**9, cost, saved, "computed")]
    assert done.priced == {PRICED: repricing.Records(1, cost)}
    sums = "SELECT cost_nano, unpriced_tokens FROM"
    for table in ("workflows", "usage_by_workflow", "usage_by_day"):
        assert database.rows(f"{sums} {table}") == [(cost, 0)]
    assert database.rows("SELECT savings_nano, input_tokens FROM usage_by_day") == [(saved, 1000)]


def test_reported_and_computed_costs_and_unknown_models_stay(ledger: Ledger) -> None:
    workflow = create(ledger)
    record(ledger, workflow, {"cost_usd": 0.5, "model": PRICED}, {"model": PRICED}, {"model": "no-such-model"})
    before = content(ledger)
    done = reprice(ledger)
    assert (done.priced, done.unpriced) == ({}, {"no-such-model": repricing.Records(1, 0)})
    assert content(ledger) == before


def test_a_dry_run_says_the_same_and_changes_nothing(ledger: Ledger) -> None:
    unpriced(ledger, create(ledger), {}, {"model": "no-such-model"}, {"agent": "other"})
    before = database_of(ledger).dump()
    told = reprice(ledger, dry_run=True)
    assert database_of(ledger).dump() == before
    assert told == reprice(ledger)
    assert told.priced[PRICED].count == 2


members = st.fixed_dictionaries(
    {
        "agent": st.sampled_from("ab"),
        "model": st.sampled_from([PRICED, "claude-sonnet-4-5", "no-such-model"]),
        "input_tokens": st.sampled_from([0, 3, 10**12]),
        "cache_read_tokens": st.sampled_from([0, 5, 10**12]),
        "timestamp": st.sampled_from([DAY, "2026-02-05T12:00:00Z", "0001-01-01T00:00:00Z"]),
    }
)


def test_all_is_as_if_the_price_had_been_known(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sums_of(many: list[tuple[int, dict[str, Any]]], is_known: bool) -> list[list[tuple[Any, ...]]]:
        folder = tmp_path_factory.mktemp("reprice")
        with databases.lend(folder) as database, closing(database.ledger()) as ledger:
            record_all(ledger, many, is_known)
            reprice(ledger)
            check(database)
            return sums(ledger)

    def agree(many: list[tuple[int, dict[str, Any]]]) -> None:
        assert sums_of(many, True) == sums_of(many, False)

    monkeypatch.setattr(repricing, "PAGE", 3)
    hold(databases, st.lists(st.tuples(st.integers(0, 1), members), max_size=12), 40, agree)


def record_all(ledger: Ledger, many: list[tuple[int, dict[str, Any]]], is_known: bool) -> None:
    workflows = [create(ledger, issue_id=f"I-{n}") for n in range(2)]
    for number, (which, one) in enumerate(many):
        said = one | {"id": f"u-{number}"}
        record(ledger, workflows[which], said) if is_known else unpriced(ledger, workflows[which], said)
    move(ledger, workflows[0], "cancel")


def sums(ledger: Ledger) -> list[list[tuple[Any, ...]]]:
    """What must agree: the records and every sum over them, by names that both databases share."""
    database = database_of(ledger)
    names = "(SELECT issue_id FROM workflows w WHERE w.id = workflow_id)"
    totals = "input_tokens, cache_read_tokens, unpriced_tokens, cost_nano"
    return [
        database.rows("SELECT id, cost_nano, savings_nano, cost_source, cost_usd FROM token_usage ORDER BY 1"),
        database.rows(
            "SELECT issue_id, cost_nano, total_tokens, unpriced_tokens, usage_count FROM workflows ORDER BY 1"
        ),
        database.rows(f"SELECT {names}, agent, model, {totals} FROM usage_by_workflow ORDER BY 1, 2, 3"),
        database.rows(f"SELECT day, agent, model, savings_nano, {totals} FROM usage_by_day ORDER BY 1, 2, 3"),
        database.rows("SELECT * FROM models_by_day ORDER BY 1, 2"),
    ]


def test_a_record_that_has_grown_meanwhile_waits_for_the_next_time(ledger: Ledger) -> None:
    workflow = create(ledger)
    unpriced(ledger, workflow, {"id": "u", "model": "no-such-model"})
    stale = [repricing._Unpriced("u", "no-such-model", DAY, 9, 9, 0, 0)]
    found = [(one, Price(1, 0)) for one in stale]
    assert ledger.write(repricing._set_prices, found) == []
    assert database_of(ledger).rows("SELECT cost_source FROM token_usage") == [("unpriced",)]


def test_a_sum_that_would_leave_64_bits_is_refused_and_nothing_changed(ledger: Ledger) -> None:
    workflow = create(ledger)
    unpriced(ledger, workflow, *({"output_tokens": 5 * 10**14} for _ in range(2)))
    before = database_of(ledger).dump()
    with pytest.raises(ValidationError):
        reprice(ledger)
    assert database_of(ledger).dump() == before


def test_a_cost_beyond_64_bits_is_no_price(ledger: Ledger) -> None:
    counts = dict.fromkeys(("input_tokens", "output_tokens"), 10**15)
    unpriced(ledger, create(ledger), {"model": "claude-opus-4-1", **counts})
    assert reprice(ledger).unpriced == {"claude-opus-4-1": repricing.Records(1, 0)}


def test_the_command_says_what_changed(database: Database) -> None:
    with closing(database.ledger()) as ledger:
        unpriced(ledger, create(ledger, datetime(2026, 1, 5, tzinfo=UTC)), {}, {"model": "no-such-model"})
    told = [run("reprice", *options, **database.settings) for options in (["--dry-run"], [], [])]
    assert [one.returncode for one in told] == [0, 0, 0]
    still = "no-such-model: 1 records have no price still\n"
    assert told[0].stdout == f"{PRICED}: 1 records would cost 0.000015000 dollars\n{still}"
    assert told[1].stdout == f"{PRICED}: 1 records cost 0.000015000 dollars\n{still}"
    assert told[2].stdout == f"{still}No price has changed.\n"
