"""Log lines: one for each thing, whoever wrote it and whatever stands in it."""

import io
import json
import logging
import logging.config
import re
from collections.abc import Callable, Iterator
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from amelia_flask import logs
from amelia_flask.errors import InternalError
from amelia_flask.ledger import Ledger
from amelia_flask.lock import FileLock
from tests import ledgers
from tests.answers import exchange
from tests.serving import serving

ledger = ledgers.ledger

TEXT, JSON = logs.TextLines(), logs.JsonLines()
HEAD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[\d+\] (DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+: .*")
# Any text at all, half of a surrogate pair included, and mostly what could do harm.
texts = st.text(st.one_of(st.characters(), st.sampled_from('\n\r\x00\x1b\x7f\x85\u2028\u202e\ud800\\"%{}')))
NASTY = [
    "a\nb",
    "a\r\n2026-01-01T00:00:00.000Z [1] INFO x: forged",
    "\x1b[31mred",
    "\x00\x07\x7f",
    "\x85\u2028\u2029",
    "\ud800",
]


def record(message: str = "m", *args: object, name: str = "some.logger", fault: BaseException | None = None) -> Any:
    exc_info = None if fault is None else (type(fault), fault, fault.__traceback__)
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, exc_info)


def raised(text: str) -> Exception:
    """A fault with a traceback."""
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def check_text(line: str) -> None:
    """One line, and what belongs to it set in; nothing but line feeds could move a cursor."""
    first, *rest = line.split("\n")
    assert len(line.splitlines()) == 1 + len(rest)
    assert HEAD.fullmatch(first), first
    assert all(one.startswith("    ") for one in rest)
    assert line.encode().decode() == line
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", line)


def check_json(line: str) -> Any:
    """One line of printable ASCII that holds an object."""
    assert line.isascii()
    assert line.isprintable()
    members = json.loads(line)
    assert list(members)[:5] == ["time", "level", "logger", "message", "pid"]
    return members


@pytest.mark.parametrize("text", NASTY)
def test_nobody_can_forge_or_garble_a_line(text: str) -> None:
    for made in (
        record(text),
        record("%s", text),
        record("m", name=f"x{text}".replace(" ", "")),
        record("m", fault=raised(text)),
    ):
        check_text(TEXT.format(made))
        check_json(JSON.format(made))


@given(texts, texts)
def test_every_text_stays_in_its_line(text: str, other: str) -> None:
    made = record("said %s", text, fault=raised(f"<{other}>"))
    check_text(TEXT.format(made))
    members = check_json(JSON.format(made))
    assert members["message"] == f"said {text}"
    assert members["exception"].endswith(f"ValueError: <{other}>")


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert logs.escaped(text) == text


def test_a_traceback_is_set_in_or_a_member() -> None:
    fault = raised("it broke")
    text = TEXT.format(record("m", fault=fault)).split("\n")
    assert text[1] == "    Traceback (most recent call last):"
    assert text[-1] == "    ValueError: it broke"
    told = check_json(JSON.format(record("m", fault=fault)))["exception"]
    assert told.startswith("Traceback (most recent call last):\n")
    assert told.endswith("\nValueError: it broke")
    assert "exception" not in check_json(JSON.format(record()))


def test_a_line_that_was_written_wrongly_is_still_a_line() -> None:
    made = record("%d of %d", "a\nb")
    check_text(TEXT.format(made))
    assert check_json(JSON.format(made))["message"] == "'%d of %d' ('a\\nb',)"


def test_time_is_utc() -> None:
    made = record()
    made.created = 1_700_000_000.25
    assert TEXT.format(made).startswith("2023-11-14T22:13:20.250Z [")
    assert check_json(JSON.format(made))["time"] == "2023-11-14T22:13:20.250Z"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[Any]]]:
    """What is logged meanwhile, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSON)
    logger = logging.getLogger("amelia_flask")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [check_json(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_the_lines_of_a_request_have_its_id_and_its_figures(app: Flask, lines: Callable[[], list[Any]]) -> None:
    del app.extensions["vitals"]
    for request_id in ("first", "second"):
        app.test_client().get("/api/health?secret=1", headers={"X-Request-ID": request_id})
    app.test_client().get("/a%0ab", headers={"X-Request-ID": "third"})
    found = [(one["request_id"], one["logger"], one["level"]) for one in lines()]
    assert found == [
        *(("first", "amelia_flask.web.errors", "error"), ("first", "amelia_flask.access", "warning")),
        *(("second", "amelia_flask.web.errors", "error"), ("second", "amelia_flask.access", "warning")),
        ("third", "amelia_flask.access", "info"),
    ]
    access = [one for one in lines() if one["logger"] == "amelia_flask.access"]
    assert [(one["method"], one["path"], one["status"]) for one in access] == [
        *(("GET", "/api/health", 500), ("GET", "/api/health", 500)),
        ("GET", "/a\\nb", 404),
    ]
    assert all(0 <= one["milliseconds"] < 60_000 for one in access)
    assert "KeyError" in lines()[0]["exception"]


def broken(_tx: object) -> None:
    raise ValueError("a mistake of a change")


def written_and_broken(tx: Any) -> None:
    """A change that must be undone apart from its neighbours."""
    tx.execute_sql("UPDATE event_position SET value = value")
    raise ValueError("a mistake of a change")


@pytest.mark.parametrize("change", [broken, written_and_broken])
def test_the_lines_of_a_write_have_the_id_of_its_request(
    ledger: Ledger, lines: Callable[[], list[Any]], change: Callable[[Any], None]
) -> None:
    for request_id in ("first", None, "second"):
        logs.request_id.set(request_id)
        with pytest.raises(InternalError):
            ledger.write(change)
    logs.request_id.set(None)
    failed = [one.get("request_id") for one in lines() if one["message"] == "a change failed"]
    assert failed == ["first", None, "second"]


def test_the_lines_of_writes_that_are_carried_out_together_have_each_its_own_id(
    ledger: Ledger, lines: Callable[[], list[Any]]
) -> None:
    lock = FileLock(ledger.settings.database_path)
    with lock.held():
        for request_id in ("first", "second", None):
            logs.request_id.set(request_id)
            ledger.submit_to((), written_and_broken)
    with pytest.raises(InternalError):
        ledger.write(broken)
    lock.close()
    assert [one.get("request_id") for one in lines() if one["message"] == "a change failed"] == [
        *("first", "second", None, None)
    ]


def test_a_text_line_ends_with_the_id_once() -> None:
    logs.request_id.set("the-id")
    try:
        assert TEXT.format(record("a request failed")).endswith("some.logger: a request failed the-id")
        about = record("GET /x 404 0.1 ms the-id")
        about.members = {"method": "GET"}
        assert TEXT.format(about).endswith("0.1 ms the-id")
        assert TEXT.format(about).count("the-id") == 1
    finally:
        logs.request_id.set(None)


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_line_of_a_real_server_is_in_its_form(tmp_path: Path, form: str) -> None:
    check = check_json if form == "json" else check_text
    with serving(tmp_path / "amelia.db", workers=1, log_level="debug", log_format=form) as server:
        server.request("GET", "/nothing", headers={"X-Request-ID": "mine"})
        refused = exchange(server.port, b"GET /\x01 HTTP/9.9\r\nHost: localhost\r\n\r\n")
        assert refused.status == 400
        with pytest.raises(RemoteDisconnected):
            exchange(server.port, b"GET /half")
        assert server.stop() == 0
    logged = [line for line in server.log.read_text().splitlines() if line.startswith(("{", "2"))]
    for line in logged:
        check(line)
    assert any("amelia_flask.access" in line and "mine" in line for line in logged)
    assert any(str(refused.headers["X-Request-ID"]) in line for line in logged)
    (premature,) = [line for line in logged if "gunicorn.error" in line and "premature" in line]
    assert str(refused.headers["X-Request-ID"]) not in premature, "the id of the request before on this thread"
    announced = {"Database", "Health", "API"}
    assert {line.split()[0] for line in server.log.read_text().splitlines() if line not in logged} <= announced


def test_a_level_holds_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logging.config.dictConfig(logs.config("warning", "json"))
        logging.getLogger("anything").info("no")
        logging.getLogger("anything").warning("yes")
    finally:
        root.handlers, root.level = before[0], before[1]
    (line,) = capsys.readouterr().err.splitlines()
    assert check_json(line)["message"] == "yes"
