"""The benchmarks measure what they say. What they find is a figure, not a test."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amelia_flask import report
from amelia_flask.sqlite import SqliteEngine
from bench import requests
from bench.figures import Row, alternate, at_least, at_most, compared, p99, table
from bench.filling import Filled, fill, fill_usage
from bench.load import LoadError, Result, drive
from bench.scale import QUICK
from bench.transcripts import write
from tests.databases import Sqlite
from tests.load import check_record
from tests.serving import Server

ROOT = Path(__file__).parent.parent
README = (ROOT / "bench" / "README.md").read_text()

Printed = tuple[str, dict[str, Any]]  # what was printed, what was written


def bench(json_file: Path, *arguments: str, **environment: str) -> tuple[int, str, Any]:
    """The exit status of `python -m bench --quick`, what it printed, and what it wrote."""
    command = [sys.executable, "-m", "bench", "--quick", "--json", str(json_file), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr, json.loads(json_file.read_text())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """All benchmarks, each as short as it can be."""
    status, printed, written = bench(tmp_path_factory.mktemp("bench") / "results.json")
    assert status == 0, printed
    return printed, written


def cells(text: str) -> dict[str, tuple[str, str]]:
    """Unit and threshold of each row of the one table in a text."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: (line[1].rpartition(" ")[2], line[3]) for line in lines if len(line) == 6 and line[0] != "what"}


def test_every_row_is_printed_and_written(everything: Printed) -> None:
    printed, written = everything
    shown = cells(printed)
    assert written["failures"] == []
    rows = {row["what"]: row["threshold"] or "" for row in written["rows"]}
    assert rows.items() <= {what: threshold for what, (_, threshold) in shown.items()}.items()
    assert all(row["values"] or row["note"] for row in written["rows"])


def test_a_ratio_has_the_rates_behind_it(everything: Printed) -> None:
    ratios = [row for row in everything[1]["rows"] if row["unit"] == "x" and "GROUP BY" not in row["what"]]
    for row in ratios:
        assert row["rates"] or not row["values"], row["what"]
        for figures in row["rates"].values():
            assert figures["rate"] > 0
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]


def test_the_results_in_the_readme_have_the_rows_and_thresholds_that_are_measured(everything: Printed) -> None:
    kept = {what: threshold for what, (_, threshold) in cells(README).items() if not re.fullmatch("-+", what)}
    assert kept == {row["what"]: row["threshold"] or "" for row in everything[1]["rows"]}


def compiler(folder: Path, code: str | None) -> str:
    """A PATH whose only program is a C compiler with this code, or none at all."""
    if code is not None:
        (folder / "cc").write_text(f"#!/bin/sh\n{code}\n")
        (folder / "cc").chmod(0o755)
    return str(folder)


def test_what_fails_is_told_and_gives_exit_status_1(tmp_path: Path) -> None:
    status, printed, written = bench(tmp_path / "results.json", "slow_disk", PATH=compiler(tmp_path, "exit 1"))
    assert status == 1
    assert "slow_disk failed" in printed
    assert len(written["failures"]) == 1


def test_without_a_compiler_the_slow_disk_is_left_out_with_a_word(tmp_path: Path) -> None:
    status, printed, written = bench(tmp_path / "results.json", "slow_disk", PATH=compiler(tmp_path, None))
    assert status == 0
    assert printed.count("there is no C compiler") == len(written["rows"]) == 3
    assert {row["verdict"] for row in written["rows"]} == {"skipped"}


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "no-such-thing", "--json", str(tmp_path / "results.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no-such-thing is none of" in done.stderr


def test_a_refusal_ends_a_load(server: Server) -> None:
    with pytest.raises(LoadError, match="404: 1"):
        drive(server.port, [requests.gets("/nowhere")], 0, most=1)


def test_a_load_sends_as_many_requests_as_it_may_and_checks_all_answers(server: Server) -> None:
    result = drive(server.port, [requests.gets("/api/health/live")] * 3, 60, most=20)
    assert result.answers == len(result.latencies) == result.statuses[200] == 20
    assert 0 < result.p50 <= result.p99 <= 1000 * result.seconds


def test_answers_after_the_time_are_waited_for_and_not_counted(server: Server) -> None:
    result = drive(server.port, [requests.gets("/api/health/live")] * 3, 0)
    assert result.answers == 3
    assert len(result.latencies) == result.statuses[200] == 6


def test_rates_and_percentiles_are_those_of_the_answers() -> None:
    result = Result(seconds=2, answers=100, latencies=[float(n) for n in range(100, 0, -1)], each=10)
    assert (result.rate, result.p50, result.p99) == (500, 51, 100)


def test_a_ratio_is_that_of_each_round() -> None:
    rounds = {
        "one": [Result(1, answers=n, latencies=[float(n)]) for n in (10, 20, 90)],
        "other": [Result(1, answers=n, latencies=[2.0]) for n in (10, 10, 30)],
    }
    row = compared("what", rounds, "one", "other")
    assert row.values == [1, 2, 3]
    assert row.rates["one"]["rate"] == 20
    assert compared("what", rounds, "one", "other", p99).values == [5, 10, 45]
    assert "2 x" in table([row])
    assert "one 20/s 20/20 ms; other 10/s 2/2 ms" in table([row])


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("w", "x", [1, 2, 9], at_least(2)), "ok"),
        (Row("w", "x", [1, 1.9, 9], at_least(2)), "NOT REACHED"),
        (Row("w", "ms", [1, 2, 9], at_most(2)), "ok"),
        (Row("w", "ms", [1, 2.1, 9], at_most(2)), "NOT REACHED"),
        (Row("w", "ms", [1]), ""),
        (Row("w", "ms", [], at_most(2), note="why"), "skipped"),
    ],
)
def test_the_median_decides(row: Row, verdict: str) -> None:
    assert row.verdict == row.as_json()["verdict"] == row.cells()[4] == verdict


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def measuring(name: str) -> Callable[[float], Result]:
        def measure(_seconds: float) -> Result:
            turns.append(name)
            return Result()

        return measure

    results = alternate({name: measuring(name) for name in "ab"}, replace(QUICK, rounds=3))
    assert "".join(turns) == "abbaab"
    assert {name: len(found) for name, found in results.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("filling", "count"), [(fill, 400), (fill, 20_000), (fill_usage, 2000)])
def test_a_filled_database_is_as_if_the_service_had_written_it(
    tmp_path: Path, filling: Callable[[Path, int], Filled], count: int
) -> None:
    path = tmp_path / "amelia.db"
    filled = filling(path, count)
    check_record(Sqlite(path))
    counted = "events" if filling is fill else "token_usage"
    assert Sqlite(path).rows(f"SELECT COUNT(*) FROM {counted}") == [(count,)]
    ids = [id_ for (id_,) in Sqlite(path).rows("SELECT id FROM events ORDER BY position")]
    assert ids == sorted(ids)
    told = "SELECT workflow_id FROM events WHERE event_type = 'workflow_completed'"
    assert Sqlite(path).rows(f"SELECT COUNT(*) FROM workflows WHERE (status = 'completed') <> (id IN ({told}))") == [
        (0,)
    ]
    active = Sqlite(path).rows("SELECT id FROM workflows WHERE status = 'in_progress' ORDER BY id")
    assert [id_ for (id_,) in active] == sorted(filled.active)


def test_the_sums_of_a_filled_database_are_those_of_its_records(tmp_path: Path) -> None:
    path = tmp_path / "amelia.db"
    fill_usage(path, 2000)
    readers = SqliteEngine(path).open_readers(1)
    with readers.connection_context():
        summary = report.report(readers, report.period("all", None, None)).summary
    readers.close_all()
    tokens = "SUM(input_tokens + output_tokens + cache_read_tokens + cache_creation_tokens)"
    recorded = Sqlite(path).rows(f"SELECT {tokens}, SUM(cost_nano) / 1e9, SUM(savings_nano) / 1e9 FROM token_usage")[
        0
    ]
    assert recorded == (summary.total_tokens, summary.total_cost_usd, summary.cache_savings_usd)
    workflows = Sqlite(path).rows("SELECT COUNT(*), SUM(status = 'completed') FROM workflows")[0]
    assert workflows == (summary.total_workflows, summary.successful_workflows)
    assert Sqlite(path).rows("SELECT SUM(total_tokens), SUM(usage_count) FROM workflows") == [(recorded[0], 2000)]


def test_the_transcripts_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        size = write(tmp_path / name, 100_000, seed)
        files = {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        assert size == sum(map(len, files.values())) >= 100_000
        return files

    assert written("one", 1) == written("again", 1) != written("other", 2)
