"""The engines keep and give the same: what is answered to the same requests is the same to the byte."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from amelia_flask import clock
from amelia_flask.transfer import writing
from tests.api import Api
from tests.databases import Databases, Files

JSON, NDJSON = "application/json", "application/x-ndjson"
BEGIN = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
ONE, TWO = (f"00000000-0000-7000-8000-00000000000{n}" for n in (1, 2))
TIMES = [
    *("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00.120Z"),
    *("2026-01-31T12:00:00+05:45", "2026-02-01T00:30:00+01:00", "2026-01-31t12:00:00.000001-11:59"),
    *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2024-02-29T23:59:59.999999+00:00"),
]
ODD = (
    b'{ "b" : 1.50 ,\t"a":1e5, "z": [1, 2.0, -0.0, 1E+2, 1e-7, 123456789012345678, 0.1, 9007199254740993],\r\n'
    b'"\\u00fc": "\\u00e9\\ud83d\\ude00\\u2028\\\\ \\"/\\/", "": null, "A": {"deep": [[], {}, [true, false]]}, '
    b'"\xc3\xa9": "\xf0\x9f\x98\x80 \xef\xbb\xbf", "n": 12.0e0, "c": "\\u0001\\t", "e\\u0301": "%s ? {x}"}'
)


class Request(NamedTuple):
    """What is sent; without a body it is a GET."""

    address: str
    body: bytes | None = None
    method: str = "POST"
    content_type: str = JSON


def workflow(number: str, rest: bytes = b"") -> Request:
    body = b'{"issue_id": "I-1", "worktree_path": "/w \xc3\xa9\xf0\x9f\x98\x80/%s", "id": "%s"%s}'
    return Request("/api/workflows", body % (number.encode(), number.encode(), rest))


def event(number: int, rest: bytes) -> bytes:
    return b'{"agent": "dev", "event_type": "note", "id": "e-%d", %s}' % (number, rest)


def writes() -> Iterator[Request]:
    """In every form, with what is odd about texts, numbers, times and objects; and what is refused."""
    yield workflow(ONE, b', "state": ' + ODD)
    yield workflow(ONE, b', "state": ' + ODD)
    yield workflow(TWO, b', "host": "h\xc3\xb6st", "profile": "p", "worktree_name": "\\u4e2d\\u6587"')
    yield workflow(TWO)
    events, usage = f"/api/workflows/{ONE}/events", f"/api/workflows/{ONE}/token-usage"
    yield Request(events, event(0, b'"message": "' + b"\\u00e9\xc3\xa9" * 50 + b'", "data": ' + ODD))
    yield Request(events, event(0, b'"message": "other"'))
    messages = (b'""', b'"\\u0000"', b'"\\ud800"', b'" a  "', b"\"\\\\x41 ''; --\"", b'"%s %(a)s $1 ?"')
    for n, message in enumerate(messages, 1):
        yield Request(events, event(n, b'"message": ' + message))
    times = [event(10 + n, b'"message": "t", "timestamp": "%s"' % time.encode()) for n, time in enumerate(TIMES)]
    yield Request(events, b"\r\n".join([*times, b""]), content_type=NDJSON)
    both = times[0], event(30, b'"message": "b", "level": "error"')
    yield Request(events, b'{"events": [%s, %s]}' % both)
    stage = b'"message": "", "event_type": "stage_started", "data": {"stage": "\xc3\xa9\\n\\u0022"}'
    yield Request(events, b'{"agent": "a", ' + stage + b"}")
    for n, (cost, time) in enumerate(zip((b"0.1", b"1e-9", b"1E2", b"0", b"null"), TIMES, strict=False)):
        said = b'"model": "m\xc3\xa9", "input_tokens": %d, "output_tokens": 1' % (10**n)
        body = b'{"agent": "dev", "id": "u-%d", "cost_usd": %s, "timestamp": "%s", %s}'
        yield Request(usage, body % (n, cost, time.encode(), said))
    priced = b'{"agent":"b","model":"claude-haiku-4-5","input_tokens":123,"output_tokens":7,"cache_read_tokens":9}'
    yield Request(usage, priced)
    yield Request(usage, b'{"agent":"b","model":"m","input_tokens":9223372036854775807,"output_tokens":1}')
    yield Request(f"/api/workflows/{ONE}", b'{"state": {"b": 2, "\\u00fc": [1.0, 1]}}', "PATCH")
    for name, said in (
        *(("start", b'{"event_id": "s"}'), ("start", b'{"event_id": "s"}'), ("block", b'{"message": "\xc3\xa9?"}')),
        *(("reject", b'{"feedback": "\xf0\x9f\x98\x80"}'), ("complete", b"{}"), ("start", b"{}"), ("fail", b"{}")),
    ):
        yield Request(f"/api/workflows/{ONE}/{name}", said)
    yield Request(f"/api/workflows/{TWO}/cancel", b'{"actor": "me"}')
    yield workflow("00000000-0000-7000-8000-000000000003")
    yield Request(f"/api/workflows/{TWO}", None, "DELETE")


def reads() -> Iterator[Request]:
    """Every page, whole and in parts."""
    for address in (
        *("/api/workflows", "/api/workflows?limit=1", "/api/workflows?status=completed", "/api/workflows/active"),
        *(f"/api/workflows/{ONE}", f"/api/workflows/{TWO}", f"/api/workflows?worktree=/w+%C3%A9%F0%9F%98%80/{ONE}"),
        *(f"/api/workflows/{ONE}/events", f"/api/workflows/{ONE}/events?order=desc&limit=3&before=9"),
        *("/api/events?after=2&limit=5", "/api/events?level=error", "/api/events?agent=dev&event_type=note"),
        *(f"/api/workflows/{ONE}/token-usage", f"/api/workflows/{ONE}/token-usage?limit=2", "/api/usage?preset=all"),
        *("/api/usage?start=2026-01-30&end=2026-02-02", "/api/usage?start=0001-01-01&end=0001-01-02"),
        *("/api/workflows?cursor=what", "/api/events?after=x", "/api/usage?preset=1d", "/api/openapi.json"),
    ):
        yield Request(address, None, "GET")


class Frozen:
    """A clock that is moved by hand, and ids that come in the same order each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moment = BEGIN
        self._number = 0
        monkeypatch.setattr(clock, "now", lambda: self.moment)
        monkeypatch.setattr(clock, "new_id", self._new_id)

    def begin(self, number: int) -> None:
        """The time of the request with this number; a second passes between two."""
        self.moment = BEGIN + timedelta(seconds=number, microseconds=number * 1000)
        self._number = number * 1000

    def _new_id(self) -> str:
        self._number += 1
        return f"00000000-0000-7000-9000-{self._number:012}"


def answers(api: Api, frozen: Frozen) -> list[tuple[Request, int, dict[str, str], bytes]]:
    """What is answered to everything, in its order."""
    found, client = [], api.app.test_client()
    for number, request in enumerate([*writes(), *reads()]):
        frozen.begin(number)
        said: dict[str, Any] = {} if request.body is None else {"data": request.body}
        response = client.open(request.address, method=request.method, content_type=request.content_type, **said)
        headers = {name: value for name, value in response.headers if name != "X-Request-ID"}
        found.append((request, response.status_code, headers, response.data))
    return found


def test_the_same_requests_are_answered_alike_to_the_byte(
    cluster: Databases, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, found, exports, dumps = Frozen(monkeypatch), [], [], []
    for databases in (Files(tmp_path_factory.mktemp("template")), cluster):
        with ExitStack() as stack:
            database = stack.enter_context(databases.lend(tmp_path_factory.mktemp("engine")))
            api = Api(database)
            stack.callback(api.close)
            found.append(answers(api, frozen))
            exports.append(list(writing.export(api.ledger, writing.Selection(), lambda _: None)))
            dumps.append(database.dump())
    for one, other in zip(*found, strict=True):
        assert one == other
    assert {status for _, status, _, _ in found[0]} == {200, 201, 204, 400, 404, 409, 422}
    assert exports[0] == exports[1]
    for dump in dumps:
        del dump["schema_version"]
    assert dumps[0] == dumps[1]
