"""What a monitoring system reads, against what really happened."""

import re
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from amelia_flask import backup, clock, create_app, errors, metrics
from amelia_flask.errors import AmeliaError
from amelia_flask.lock import FileLock
from amelia_flask.settings import from_environment
from amelia_flask.stream import open_readers
from amelia_flask.web.operations import Resource
from tests import programs
from tests.answers import check_refused
from tests.calls import append, create, ledger_of, new, url
from tests.databases import Database
from tests.serving import Server, serving, until

Figures = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

LINE = re.compile(
    r"# HELP (?P<help>[a-z_]+) [^\n]+|# TYPE (?P<type>[a-z_]+) (?:counter|gauge|histogram)|"
    r'(?P<sample>[a-z_]+)(?:\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\})? -?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?'
)


def scraped(client: FlaskClient) -> str:
    """The text, as a scraper gets it."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return response.text


def figures(text: str) -> Figures:
    """Every sample by its name and labels, read by other eyes than those that wrote it."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "no sample is there twice"
    return found


def of(found: Figures, name: str, **labels: str) -> float:
    """One figure, 0 where there is none."""
    return found.get((name, frozenset(labels.items())), 0)


def record(client: FlaskClient, workflow: str, model: str, agent: str, tokens: int, **members: Any) -> None:
    said = {"model": model, "agent": agent, "input_tokens": tokens, "output_tokens": 1} | members
    assert client.post(url(workflow, "token-usage"), json=said).status_code == 201


@pytest.fixture
def lively(client: FlaskClient) -> FlaskClient:
    """A service on which something happened, by names that are hard to write down."""
    workflow = create(client, "blocked")
    record(client, workflow, "claude-sonnet-4-5", 'a"gent\\n', 1000)
    record(client, workflow, 'größer {als="1"}', "é,=\\", 10)
    client.get("/no/such/path")
    client.get("/api/workflows?limit=x")
    return client


def test_the_text_is_well_formed(lively: FlaskClient) -> None:
    text = scraped(lively)
    assert text.endswith("\n")
    current, described = "", set()
    for line in text.removesuffix("\n").split("\n"):
        match = LINE.fullmatch(line)
        assert match, line
        if match["help"]:
            current = match["help"]
            assert current not in described, "all that belongs to a metric stands together"
            described.add(current)
        else:
            assert re.sub("_(bucket|sum|count)$", "", match["type"] or match["sample"]) == current
    assert described == {metric.name for metric, _ in metrics.collect(ledger_of(lively))}


def test_buckets_add_up(lively: FlaskClient) -> None:
    histograms = [one for one in text_string_to_metric_families(scraped(lively)) if one.type == "histogram"]
    assert len(histograms) == 3
    for histogram in histograms:
        by_labels: dict[frozenset[tuple[str, str]], list[float]] = {}
        for sample in histogram.samples:
            labels = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
            by_labels.setdefault(labels, []).append(sample.value)
        for *buckets, total, count in by_labels.values():
            assert buckets == sorted(buckets)
            assert buckets[-1] == count > 0
            assert total > 0


@pytest.mark.parametrize(
    ("method", "path", "route", "labelled", "status"),
    [
        ("GET", "/api/health/live", "/api/health/live", "GET", "200"),
        ("HEAD", "/api/health/live", "/api/health/live", "HEAD", "200"),
        ("GET", "/api/workflows?status=pending", "/api/workflows", "GET", "200"),
        ("GET", "/api/workflows?limit=x", "/api/workflows", "GET", "422"),
        ("POST", "/api/workflows", "/api/workflows", "POST", "415"),
        (
            "GET",
            "/api/workflows/01900000-0000-7000-8000-000000000000",
            "/api/workflows/<uuid:workflow_id>",
            "GET",
            "404",
        ),
        ("GET", "/api/workflows/x", "other", "other", "404"),
        ("GET", "/no/such/path", "other", "other", "404"),
        ("DELETE", "/api/health", "other", "other", "405"),
        ("BREW", "/api/health", "other", "other", "405"),
        ("GET", "/metrics", "/metrics", "GET", "200"),
    ],
)
def test_a_request_is_counted_by_its_rule(
    client: FlaskClient, method: str, path: str, route: str, labelled: str, status: str
) -> None:
    before = figures(scraped(client))
    response = client.open(path, method=method, data=b"x" if method == "POST" else None)
    assert response.status == f"{status} {HTTPStatus(int(status)).phrase}".upper()
    after = figures(scraped(client))
    # Asking for the figures is a request too, which is counted when its answer leaves.
    more = 2 if path == "/metrics" else 1
    labels = {"route": route, "method": labelled}
    for name, all_labels in (
        ("amelia_http_requests_total", labels | {"status": status}),
        ("amelia_http_request_duration_seconds_count", labels),
        ("amelia_http_request_duration_seconds_bucket", labels | {"le": "+Inf"}),
    ):
        assert of(after, name, **all_labels) - of(before, name, **all_labels) == more
    seconds = "amelia_http_request_duration_seconds_sum"
    assert of(after, seconds, **labels) > of(before, seconds, **labels)


def test_no_client_can_make_a_series(client: FlaskClient) -> None:
    def series() -> set[Any]:
        for path in ("/a", "/b", "/api/workflows/1", "/api/workflows/x/events"):
            client.get(path)
        client.open("/api/workflows", method=f"M{len(made)}")
        return set(figures(scraped(client)))

    made: list[set[Any]] = []
    for _ in range(3):
        made.append(series())
    assert made[1] == made[2]


def test_a_fault_is_told_of_before_the_first_one(app: Flask) -> None:
    client = app.test_client()
    before = figures(scraped(client))
    told = {(dict(labels)["route"], dict(labels)["method"]) for _, labels in before if ("status", "500") in labels}
    assert told == {(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or ()} | {
        ("other", "other")
    }
    labels = {"route": "/api/health", "method": "GET", "status": "500"}
    del app.extensions["vitals"]
    assert client.get("/api/health").status_code == 500
    assert of(figures(scraped(client)), "amelia_http_requests_total", **labels) == 1 + of(
        before, "amelia_http_requests_total", **labels
    )


def test_every_status_that_an_answer_may_have_is_counted_apart(app: Flask) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AmeliaError)]
    resources = [one for one in app.blueprints.values() if isinstance(one, Resource)]
    answers = {status for one in resources for operation in one.operations for status in operation.answers}
    assert answers | {kind.status for kind in kinds} <= set(metrics.Requests.STATUSES)


def test_a_status_that_no_answer_has_is_counted_as_other() -> None:
    requests = metrics.Requests()
    requests.know([("/a", "GET")])
    requests.count("/a", "GET", "418", 1000.0)
    counts, ((_, _, row), *_) = requests.read()
    assert [one for one in counts if one[1]] == [(("/a", "GET", "other"), 1)]
    assert row[-2:] == [1, 1000.0]


def test_more_routes_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="201 routes"):
        metrics.Requests().know((f"/{n}", "GET") for n in range(200))


def test_groups_and_commits_are_counted(client: FlaskClient) -> None:
    workflow = create(client)
    before = figures(scraped(client))
    for _ in range(3):
        append(client, workflow)
    after = figures(scraped(client))
    for name in ("group_size_count", "group_size_sum", "commit_duration_seconds_count"):
        assert of(after, f"amelia_writer_{name}") - of(before, f"amelia_writer_{name}") == 3
    assert of(after, "amelia_events_total") - of(before, "amelia_events_total") == 3


@pytest.mark.engines("sqlite")
def test_writes_that_wait_are_counted_while_they_wait(client: FlaskClient, path: Path) -> None:
    workflow = create(client)
    lock, name, before = FileLock(path), "amelia_writer_queue_length", figures(scraped(client))
    calls = [threading.Thread(target=append, args=(client.application.test_client(), workflow)) for _ in range(5)]
    with lock.held():
        calls[0].start()
        # The first of them is in the hands of the writer, which waits for the lock.
        until(lambda: of(figures(scraped(client)), name) == 1 and ledger_of(client).writer.waiting == 0)
        for call in calls[1:]:
            call.start()
        until(lambda: of(figures(scraped(client)), name) == 4)
    for call in calls:
        call.join()
    lock.close()
    after = figures(scraped(client))
    assert of(after, name) == 0
    assert of(after, "amelia_writer_group_size_sum") - of(before, "amelia_writer_group_size_sum") == 5
    assert of(after, "amelia_writer_group_size_count") - of(before, "amelia_writer_group_size_count") == 1


@pytest.mark.engines("sqlite")
def test_a_database_that_is_away_is_told_of_and_does_not_silence_the_rest(
    client: FlaskClient, path: Path, tmp_path: Path
) -> None:
    before = figures(scraped(client))
    assert of(before, "amelia_database_up") == 1
    path.rename(tmp_path / "elsewhere.db")
    check_refused(client.post("/api/workflows", json=new()), 503, "DATABASE_UNAVAILABLE")
    found = figures(scraped(client))
    assert of(found, "amelia_database_up") == 0
    assert of(found, "amelia_writer_failures_total") == of(before, "amelia_writer_failures_total") + 1
    gone = {name for name, _ in before} - {name for name, _ in found}
    assert gone == {"amelia_workflows", "amelia_events_total"}
    (tmp_path / "elsewhere.db").rename(path)
    assert of(figures(scraped(client)), "amelia_database_up") == 1


def test_workflows_are_counted_by_status(client: FlaskClient) -> None:
    statuses = ["pending", "pending", "in_progress", "blocked", "completed", "failed", "failed", "failed"]
    for status in statuses:
        create(client, status)
    found = figures(scraped(client))
    for status in (*statuses, "cancelled"):
        assert of(found, "amelia_workflows", status=status) == statuses.count(status)


def test_todays_usage_is_that_of_the_report(client: FlaskClient) -> None:
    workflow = create(client)
    record(client, workflow, "claude-sonnet-4-5", "dev", 1000, cache_read_tokens=7, cache_creation_tokens=5)
    record(client, workflow, "claude-sonnet-4-5", "dev", 200)
    record(client, workflow, "unheard-of", "dev", 30)
    record(client, workflow, "claude-sonnet-4-5", "dev", 3, timestamp="2025-11-01T00:00:00Z")
    found, pair = figures(scraped(client)), {"model": "claude-sonnet-4-5", "agent": "dev"}
    kinds = [of(found, "amelia_usage_today_tokens", **pair, kind=kind) for kind in metrics.KINDS]
    assert kinds == [1200, 2, 7, 5]
    unpriced = {"model": "unheard-of", "agent": "dev"}
    assert of(found, "amelia_usage_today_unpriced_tokens", **unpriced) == 31
    assert of(found, "amelia_usage_today_cost_dollars", **unpriced) == 0
    today = clock.to_text(clock.now())[:10]
    report = client.get(f"/api/usage?start={today}&end={today}").get_json()
    assert of(found, "amelia_usage_today_cost_dollars", **pair) == report["summary"]["total_cost_usd"] > 0


def test_the_labels_of_usage_are_bounded_and_its_sums_are_not(client: FlaskClient) -> None:
    workflow = create(client)
    records = [
        {"model": "m", "agent": f"agent-{n}", "input_tokens": 100 + n, "output_tokens": 0, "cost_usd": n}
        for n in range(60)
    ]
    records.append({"model": "other", "agent": "other", "input_tokens": 10**6, "output_tokens": 0, "cost_usd": 5})
    assert client.post(url(workflow, "token-usage"), json={"token_usage": records}).status_code == 201
    found = {labels: value for (name, labels), value in figures(scraped(client)).items() if name.endswith("dollars")}
    assert len(found) == metrics.MOST_PAIRS
    assert sum(found.values()) == sum(range(60)) + 5
    largest = frozenset({"model": "m", "agent": "agent-59"}.items())
    assert found[largest] == 59
    # Those that used least, and one that has this very name.
    assert found[frozenset({"model": "other", "agent": "other"}.items())] == sum(range(11)) + 5


def test_readers_that_wait_are_counted(client: FlaskClient) -> None:
    with open_readers.one(5, None), open_readers.one(5, None):
        assert of(figures(scraped(client)), "amelia_waiting_readers") == 2
    assert of(figures(scraped(client)), "amelia_waiting_readers") == 0


@pytest.mark.engines("sqlite")
def test_sizes_are_those_of_the_files(client: FlaskClient, path: Path) -> None:
    create(client)
    found = figures(scraped(client))
    for file, suffix in (("main", ""), ("wal", "-wal"), ("shm", "-shm")):
        size = path.with_name(path.name + suffix).stat().st_size
        assert of(found, "amelia_database_size_bytes", file=file) == size > 0
    assert of(found, "amelia_database_free_bytes") > 0


@pytest.mark.engines("postgresql")
def test_a_server_tells_its_size_whatever_lies_at_the_path(client: FlaskClient, database: Database) -> None:
    path = Path(database.settings["AMELIA_DATABASE_PATH"])
    path.write_text("another")
    path.with_name("amelia.db.backup").write_text(clock.to_text(clock.now()))
    found = figures(scraped(client))
    sizes = {labels: value for (name, labels), value in found.items() if name == "amelia_database_size_bytes"}
    assert sizes.keys() == {frozenset({("file", "main")})}
    ((size,),) = database.rows("SELECT pg_database_size(current_database())")
    assert sum(sizes.values()) == pytest.approx(size, rel=0.01)
    assert not {"amelia_database_free_bytes", "amelia_last_backup_timestamp_seconds"} & {name for name, _ in found}
    (build,) = (dict(labels) for name, labels in found if name == "amelia_build_info")
    assert re.fullmatch(r"PostgreSQL [0-9]+\.[0-9]+", build["engine"])


@pytest.mark.engines("sqlite")
def test_the_last_backup_is_told_of_from_the_first_one_on(client: FlaskClient, path: Path, tmp_path: Path) -> None:
    name = ("amelia_last_backup_timestamp_seconds", frozenset[tuple[str, str]]())
    assert name not in figures(scraped(client))
    moment = clock.now()
    backup.back_up(path, tmp_path / "copy.db", lambda _: None, moment)
    assert figures(scraped(client))[name] == pytest.approx(moment.timestamp(), abs=1e-5)


def test_no_file_of_the_database_is_opened_beside_the_engine(tmp_path: Path) -> None:
    code = """
    from amelia_flask import create_app, schema
    from amelia_flask.settings import from_environment
    from amelia_flask.sqlite import SqliteEngine
    schema.set_up(SqliteEngine(path))
    app = create_app(from_environment({"AMELIA_DATABASE_PATH": str(path)}))
    opened, files = [], {f"{path}{suffix}" for suffix in ("", "-wal", "-shm")}
    def note(name, given):
        if name == "open" and str(given[0]) in files:
            opened.append(given[0])
    sys.addaudithook(note)
    assert app.test_client().get("/metrics").status_code == 200
    print(opened)
    app.extensions["ledger"].close()
    open(path).close()
    print(len(opened))
    """
    assert programs.run(code, tmp_path / "amelia.db").splitlines() == ["[]", "1"]


def test_the_gate_holds_here_too(client: FlaskClient, database: Database) -> None:
    check_refused(client.get("/metrics", headers={"Host": "evil.example"}), 421, "MISDIRECTED_REQUEST")
    app = create_app(from_environment({**database.settings, "AMELIA_API_TOKEN": "t" * 20}))
    with closing(app.extensions["ledger"]):
        check_refused(app.test_client().get("/metrics"), 401, "UNAUTHORIZED")
        assert app.test_client().get("/metrics", headers={"Authorization": f"Bearer {'t' * 20}"}).status_code == 200


LIVE = {"route": "/api/health/live", "method": "GET", "status": "200"}


def read(server: Server) -> Figures:
    return figures(server.request("GET", "/metrics").raw.decode())


def processes(server: Server) -> list[psutil.Process]:
    assert server.process is not None
    children: list[psutil.Process] = psutil.Process(server.process.pid).children()
    return children


def test_all_processes_are_counted_whichever_answers_and_the_dead_ones_too(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        until(lambda: of(read(server), "amelia_process_starts_total") == 2)
        for _ in range(20):
            assert server.request("GET", "/api/health/live").status == 200
        for _ in range(10):
            assert of(read(server), "amelia_http_requests_total", **LIVE) == 20
        first = processes(server)
        for process in first:
            process.kill()
        psutil.wait_procs(first, 10)
        until(lambda: len(set(processes(server)) - set(first)) == 2)
        server.wait_until_ready()
        until(lambda: of(read(server), "amelia_process_starts_total") == 4)
        assert of(read(server), "amelia_http_requests_total", **LIVE) == 20


def test_gunicorn_with_wsgi_counts_the_same(tmp_path: Path) -> None:
    server = Server(tmp_path / "amelia.db", workers=2)
    server.command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    try:
        server.start()
        until(lambda: of(read(server), "amelia_process_starts_total") == 2)
        for _ in range(20):
            assert server.request("GET", "/api/health/live").status == 200
        assert [of(read(server), "amelia_http_requests_total", **LIVE) for _ in range(10)] == [20] * 10
    finally:
        assert server.stop() == 0, server.log.read_text()
