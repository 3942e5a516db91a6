"""The requests of the loads, as bytes: what agents send and what people look at."""

import itertools
import json
from collections.abc import Iterator, Sequence
from uuid import uuid4

TOOLS = ("Read", "Edit", "Bash", "Grep", "Write")
MODELS = ("claude-sonnet-4-5", "claude-opus-4-1", "gpt-5")
WORKFLOWS = 64  # among which a load is spread


def get(path: str) -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, content: bytes = b"{}", media_type: str = "application/json") -> bytes:
    """A POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def event(number: int, **members: object) -> dict[str, object]:
    """A tool call of about 300 bytes. Without an id, as agents send it, unless `members` have one."""
    tool = TOOLS[number % len(TOOLS)]
    target = f"src/service/module_{number % 97}.py"
    return {
        "agent": "developer",
        "event_type": "tool_call",
        "message": f"{tool}: reading {target} to find where the request is validated",
        "data": {
            "tool_name": tool,
            "input": {"file_path": f"/home/dev/project/{target}", "offset": number, "limit": 200},
            "duration_ms": 17 + number % 300,
        },
    } | members


def usage(number: int, **members: object) -> dict[str, object]:
    """What one request to a model used."""
    return {
        "agent": ("developer", "reviewer")[number % 2],
        "model": MODELS[number % len(MODELS)],
        "input_tokens": 40 + number % 1000,
        "output_tokens": 200 + number % 700,
        "cache_read_tokens": 20_000 + number,
        "cache_creation_tokens": 1000 + number % 500,
    } | members


def singles(workflows: Sequence[str]) -> Iterator[bytes]:
    """One event each, without end."""
    return _again(post(_events(workflow), _json(event(n))) for n, workflow in enumerate(_spread(workflows)))


def echoes() -> Iterator[bytes]:
    """The bodies of `singles` to be sent back."""
    return _again(post("/echo", _json(event(n))) for n in range(WORKFLOWS))


def singles_with_ids(workflows: Sequence[str]) -> Iterator[bytes]:
    """One event each, with an id that the agent made."""
    for n, workflow in enumerate(itertools.cycle(workflows)):
        yield post(_events(workflow), _json(event(n, id=str(uuid4()))))


def batches(workflows: Sequence[str], size: int) -> Iterator[bytes]:
    """`size` events each."""
    content = _json({"events": [event(n) for n in range(size)]})
    return _again(post(_events(workflow), content) for workflow in workflows)


def lines(workflows: Sequence[str], size: int) -> Iterator[bytes]:
    """`size` events each, as NDJSON."""
    content = b"\n".join(_json(event(n)) for n in range(size))
    return _again(post(_events(workflow), content, "application/x-ndjson") for workflow in workflows)


def usages(workflows: Sequence[str]) -> Iterator[bytes]:
    """One usage record each."""
    return _again(post(_usage(workflow), _json(usage(n))) for n, workflow in enumerate(_spread(workflows)))


def usage_batches(workflows: Sequence[str], size: int) -> Iterator[bytes]:
    """`size` usage records each."""
    content = _json({"token_usage": [usage(n) for n in range(size)]})
    return _again(post(_usage(workflow), content) for workflow in workflows)


def gets(*paths: str) -> Iterator[bytes]:
    """These one after the other, without end."""
    return _again(map(get, paths))


def agent() -> Iterator[bytes]:
    """The life of one workflow after the other, from its creation to its end."""
    for n in itertools.count():
        workflow = str(uuid4())
        path = f"/api/workflows/{workflow}"
        created = {"id": workflow, "issue_id": f"BENCH-{n}", "worktree_path": f"/bench/{workflow}"}
        yield post("/api/workflows", _json(created))
        yield post(f"{path}/start")
        for round_ in range(5):
            yield from (post(_events(workflow), _json(event(k))) for k in range(8))
            yield post(_events(workflow), _json({"events": [event(k) for k in range(50)]}))
            yield post(_usage(workflow), _json(usage(n + round_)))
            yield get(f"{path}/events?after={round_ * 50}&limit=100")
        yield post(f"{path}/block", _json({"message": "Is the plan right?"}))
        yield get(path)
        yield post(f"{path}/approve", _json({"actor": "bench"}))
        yield post(f"{path}/complete")


def reader() -> Iterator[bytes]:
    """What a person who looks on asks for."""
    return gets(
        "/api/workflows?limit=50", "/api/workflows/active", "/api/usage", "/api/events?limit=100", "/api/health"
    )


def _again(requests: Iterator[bytes]) -> Iterator[bytes]:
    return itertools.cycle(list(requests))


def _spread(workflows: Sequence[str]) -> list[str]:
    """At least as many as the connections of a load, so that each of them sends to more than one workflow."""
    return list(itertools.islice(itertools.cycle(workflows), max(4 * WORKFLOWS, len(workflows))))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _events(workflow: str) -> str:
    return f"/api/workflows/{workflow}/events"


def _usage(workflow: str) -> str:
    return f"/api/workflows/{workflow}/token-usage"
