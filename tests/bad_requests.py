"""Bad requests of every kind: what callers get wrong, and what those try who mean harm."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.answers import EVENT, USAGE
from tests.test_gate import FOREIGN
from tests.test_strictjson import MALFORMED, TOO_LARGE

JSON = "application/json"
NDJSON = "application/x-ndjson"
WORKFLOW = {"issue_id": "A-1", "worktree_path": "/bad/input"}
TIMES: list[Any] = [
    "2026-01-01",
    "2026-01-01T00:00:00",
    "now",
    "",
    "2026-13-01T00:00:00Z",
    "2026-02-30T00:00:00Z",
    0,
    True,
]
TIMES += ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "٢٠٢٦-01-01T00:00:00Z", "2026-01-01T25:00:00Z"]
COUNTS: list[Any] = [-1, 10**15 + 1, 2**63 - 1, 2**63, 10**400, 1.5, "1", True, None, [], {}]
OBJECTS: list[Any] = [1, "{}", [], True, {"k": "x" * 262_144}]
WORDS: list[Any] = ["", None, 1, [], {}, True]


class Bad(NamedTuple):
    """A request that must be refused. `{id}` in the path is a workflow that is there."""

    name: str
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = (("Content-Type", JSON),)
    method: str = "POST"


def members(path: str, good: dict[str, Any], bad: dict[str, list[Any]]) -> Iterator[Bad]:
    """A good body with one member spoiled, or left out where it is needed."""
    for name, values in bad.items():
        for value in values:
            body = json.dumps(good | {name: value}).encode()
            yield Bad(f"{path} {name}={str(value)[:30]}", path, body)
    for name in good:
        yield Bad(f"{path} without {name}", path, json.dumps({k: v for k, v in good.items() if k != name}).encode())


def creations() -> Iterator[Bad]:
    """Workflows that cannot be."""
    yield from members(
        "/api/workflows",
        WORKFLOW,
        {
            "issue_id": [*WORDS, "a b", "a\n", "é", "a" * 101, "٣", "a;b", "<script>", "a\\b", "a'b"],
            "worktree_path": [
                *WORDS,
                "relative",
                "~/x",
                "/a/../b",
                "/..",
                "..",
                "/a\0",
                "/a\nb",
                "/" + "a" * 4096,
                "C:\\x",
            ],
            "worktree_name": ["", 1, "a" * 256, "a\nb", [], "\x7f"],
            "host": [None, 1, "a" * 256, "a\tb", {}],
            "profile": ["", 1, "a" * 65, "a\x01"],
            "state": OBJECTS,
            "id": ["", "x", 1, "0" * 31, "g" * 32, [], "01900000-0000-7000-8000-00000000000"],
        },
    )


def records() -> Iterator[Bad]:
    """Events and usage that cannot be."""
    yield from members(
        "/api/workflows/{id}/events",
        EVENT,
        {
            "agent": [*WORDS, "a" * 101],
            "event_type": [
                *WORDS,
                "A",
                "1a",
                "a b",
                "a\n",
                "é",
                "a" * 65,
                "a-b",
                "workflow_created",
                "approval_granted",
            ],
            "message": [None, 1, [], "x" * 65_537],
            "level": ["", "INFO", "fatal", 1, None],
            "data": OBJECTS,
            "correlation_id": ["", 1, "a" * 201],
            "timestamp": TIMES,
            "id": ["", "a b", "é", "a\n", "a" * 129, 1],
            "unknown": [1],
            "events": [[], [EVENT], None, {}],
        },
    )
    yield from members(
        "/api/workflows/{id}/token-usage",
        USAGE,
        {
            "agent": [*WORDS, "a" * 101],
            "model": WORDS,
            "input_tokens": COUNTS,
            "output_tokens": COUNTS,
            "cache_read_tokens": COUNTS[:8],
            "cache_creation_tokens": COUNTS[:8],
            "cost_usd": [-1, -0.000001, "1", 1e300, True, []],
            "timestamp": TIMES,
            "id": ["", "a b", "a" * 129, 1],
            "unknown": [1],
        },
    )


def batches() -> Iterator[Bad]:
    """Batches that hold one bad record, are too long, or are none."""
    for part, member, good in (("events", "events", EVENT), ("token-usage", "token_usage", USAGE)):
        path, bad, lines = f"/api/workflows/{{id}}/{part}", good | {"agent": ""}, (("Content-Type", NDJSON),)
        whole: list[Any] = [
            [],
            {},
            None,
            "x",
            [1],
            [[]],
            [good, bad],
            [good] * 999 + [bad],
            [good] * 1001,
            [good, None],
        ]
        for number, value in enumerate(whole):
            yield Bad(f"{part} batch {number}", path, json.dumps({member: value}).encode())
        yield Bad(f"{part} batch and more", path, json.dumps({member: [good], "more": 1}).encode())
        by_line: list[list[Any]] = [
            [],
            [good, bad],
            [good, [good]],
            [good] * 10_001,
            [{member: [good]}],
            [good, None],
        ]
        for number, values in enumerate(by_line):
            body = b"\n".join(json.dumps(value).encode() for value in values)
            yield Bad(f"{part} lines {number}", path, body, lines)
        yield Bad(f"{part} lines with a comma", path, json.dumps([good, good])[1:-1].encode(), lines)


def moves() -> Iterator[Bad]:
    """Moves and patches with bodies that are none; the workflow is pending."""
    for name in ("start", "block", "approve", "reject", "complete", "fail", "cancel"):
        for body in (b'{"unknown":1}', b'{"actor":1}', b'{"event_id":""}', b"[]", b"null", b"{"):
            yield Bad(f"{name} {body!r}", f"/api/workflows/{{id}}/{name}", body)
        yield Bad(f"{name} as text", f"/api/workflows/{{id}}/{name}", None, (("Content-Type", "text/plain"),))
    for body in (b'{"feedback":""}', b'{"feedback":"%s"}' % (b"x" * 1001), b"{}"):
        yield Bad(f"reject {body[:30]!r}", "/api/workflows/{id}/reject", body)
    for body in (b'{"state":1}', b'{"state":[]}', b'{"worktree_name":""}', b'{"status":"completed"}', b'{"id":"x"}'):
        yield Bad(f"patch {body!r}", "/api/workflows/{id}", body, method="PATCH")
    yield Bad(
        "patch another version",
        "/api/workflows/{id}",
        b'{"state":{}}',
        (("Content-Type", JSON), ("If-Match", '"99"')),
        "PATCH",
    )
    yield Bad("delete what is active", "/api/workflows/{id}", None, (), "DELETE")


def malformed() -> Iterator[Bad]:
    """Values that no JSON holds, wherever a body is taken."""
    for name, value in (MALFORMED | TOO_LARGE).items():
        yield Bad(
            f"state of {name}",
            "/api/workflows",
            json.dumps(WORKFLOW)[:-1].encode() + b',"state":{"k":' + value + b"}}",
        )
        yield Bad(
            f"event of {name}",
            "/api/workflows/{id}/events",
            json.dumps(EVENT)[:-1].encode() + b',"data":' + value + b"}",
        )
        yield Bad(
            f"usage of {name}",
            "/api/workflows/{id}/token-usage",
            json.dumps(USAGE)[:-1].encode() + b',"cost_usd":' + value + b"}",
        )
        yield Bad(f"patch of {name}", "/api/workflows/{id}", b'{"state":{"k":' + value + b"}}", method="PATCH")


NUMBERS = [
    "",
    "x",
    "-1",
    "1.5",
    "1e400",
    "0x1",
    " 1",
    "+1",
    "1_0",
    "٣",
    "%00",
    "%ff",
    "9" * 5000,
    "true",
    "null",
    "1;2",
]
LISTS = "status=active status= status=PENDING cursor=x cursor= cursor=%00 cursor=%ff issue_id=a%20b worktree=relative"
LISTS += " worktree=/.. worktree= worktree=/%00 unknown=1 limit=1&limit=2 limit[]=1 limit=0 limit=101"
PAGES = "order=up order= level=fatal event_type=A agent= agent=%00 agent=%ff agent=%ed%a0%80 %ff=1 = a"
PAGES += " wait=nan wait=inf wait=-1 wait=31 wait=1e9"
PERIODS = "preset=1d preset= preset=7D start=x&end=y start=2026-01-01 end=2026-01-01 days=7 preset=%00"
PERIODS += " start=2026-01-02&end=2026-01-01 start=2026-02-30&end=2026-03-01 start=2026-1-1&end=2026-1-2"
PERIODS += " preset=7d&start=2026-01-01&end=2026-01-02 start=0000-01-01&end=0001-01-01"
QUERIES = {
    "/api/workflows": [*LISTS.split(), *(f"limit={number}" for number in NUMBERS)],
    "/api/workflows/active": ["worktree=x", "limit=1", "worktree=/a&worktree=/b"],
    "/api/events": [*PAGES.split(), *(f"{name}={n}" for name in ("after", "before", "limit") for n in NUMBERS)],
    "/api/workflows/{id}/events": ["after=x", "limit=1001", "limit=0", "unknown=1", f"agent={'a' * 101}"],
    "/api/workflows/{id}/token-usage": ["after=x", "after=%00", "limit=0", "limit=1001", "before=1"],
    "/api/usage": PERIODS.split(),
}
NOWHERE = [
    "/api/workflows/x",
    "/api/workflows/%00",
    "/%ff",
    "/api//workflows",
    "/api/workflows/",
    "/..%2f..%2fetc/passwd",
]
NOWHERE += ["/api/docs/..%2f__init__.py", "/api/workflows/{id}/", "/api/workflows/{id}x", "/a" * 2000, "/%", "/%zz"]


def addresses() -> Iterator[Bad]:
    """Paths that lead nowhere and queries that cannot be."""
    for path in NOWHERE:
        yield Bad(f"nowhere {path[:40]}", path, None, (), "GET")
    for path, texts in QUERIES.items():
        for text in texts:
            yield Bad(f"{path}?{text[:40]}", f"{path}?{text}", None, (), "GET")


def heads() -> Iterator[Bad]:
    """A good body under a head that is refused."""
    good = json.dumps(WORKFLOW).encode()
    own = ("Content-Type", JSON)
    for host in FOREIGN:
        if host.strip() and host.isascii() and len(host) < 1000 and "\t" not in host:
            yield Bad(f"host {host[:40]}", "/api/workflows", good, (own, ("Host", host)))
            yield Bad(f"origin {host[:40]}", "/api/workflows", good, (own, ("Origin", f"http://{host}")))
    for name, value in (
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "br"),
        ("Expect", "x"),
        ("X-Long", "a" * 9000),
        ("Transfer-Encoding", "gzip"),
        ("Transfer-Encoding", "chunked, chunked"),
    ):
        yield Bad(f"{name}: {value[:20]}", "/api/workflows", good, (own, (name, value)))
    for media_type in (
        "text/plain",
        "text/json",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        NDJSON,
    ):
        yield Bad(media_type, "/api/workflows", good, (("Content-Type", media_type),))
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        yield Bad(f"{method} of all", "/api/workflows", None, (), method)
    yield Bad("more than the limit", "/api/workflows", b" " * (8 * 1024 * 1024) + good)


HEAD = b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GOOD = json.dumps(WORKFLOW).encode()
RAW = {
    "no HTTP": b"hello\r\n\r\n",
    "a line feed alone": b"\n\n",
    "HTTP/0.9": b"GET /api/workflows\r\n\r\n",
    "HTTP/3.0": b"GET /api/workflows HTTP/3.0\r\nHost: localhost\r\n\r\n",
    "a small method": b"get /api/workflows HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method of other characters": b"G(T /api/workflows HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a space in the path": b"GET /api /workflows HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in the path": b"GET /api\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in a header": HEAD + b"X: \x00\r\n\r\n",
    "two hosts": b"GET /api/workflows HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET /api/workflows HTTP/1.1\r\n\r\n",
    "a header without a colon": HEAD + b"nonsense\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 2\r\n\r\n{}",
    "a folded header": HEAD + b"X: a\r\n b\r\n\r\n",
    "a header without a name": HEAD + b": x\r\n\r\n",
    "hundreds of headers": HEAD + b"X: y\r\n" * 300 + b"\r\n",
    "a length that is negative": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length that is no number": HEAD + b"Content-Length: x\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a length beyond all": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a body that is cut off": HEAD + b"Content-Length: 9999\r\n\r\n" + GOOD,
    "a chunk that is cut off": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n" + GOOD,
    "a chunk of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + GOOD,
    "chunks without an end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(GOOD), GOOD),
    "chunks under HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a query that is no UTF-8": b"GET /api/events?agent=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
TABLE = [bad for family in (creations, records, batches, moves, malformed, addresses, heads) for bad in family()]
