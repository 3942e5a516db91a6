"""Play recorded runs of coding agents into a service as an orchestrator would, then read everything back.

    python examples/play_cassettes.py [--url URL] [--token TOKEN] [--run NAME] [FOLDER]

Each cassette of the folder (by default the three that the tests use) becomes a workflow with events, token usage
and an approval of its plan. Every id follows from the cassette and the name of the run: the same name again stores
nothing new, and goes on where a run was interrupted. Exit status 1, with a sentence, if what is read back differs
from the cassettes.
"""

import argparse
import json
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from amelia_flask.client import Client, ClientError
from amelia_flask.client.types import Event, NewEvent, NewUsage, UsageRecord, WorkflowDetail

CASSETTES = Path(__file__).resolve().parents[1] / "tests/data/amelia-cassettes"
ARCHITECT, DEVELOPER, REVIEWER = "architect", "developer", "reviewer"
ORCHESTRATOR = "orchestrator"
COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")


class Difference(Exception):
    """What was read back is not what the cassette holds."""


@dataclass(frozen=True)
class Invocation:
    """One run of an agent: its messages and what they used, as the cassette has them."""

    number: int
    agent: str
    messages: list[dict[str, Any]]
    usage: dict[str, Any]

    @property
    def model(self) -> str:
        """Named by the usage or else by the messages."""
        return str(self.usage["model"] or self.messages[-1]["model"])


@dataclass(frozen=True)
class Cassette:
    """A recorded run, and the ids that it takes in one run of this script."""

    name: str
    scenario: str
    driver: str
    invocations: list[Invocation]
    run: str

    @property
    def workflow_id(self) -> str:
        return str(uuid5(NAMESPACE_URL, f"amelia-cassette:{self.run}/{self.name}"))

    @property
    def worktree_path(self) -> str:
        return f"/cassettes/{self.run}/{self.name}"

    def id_of(self, *parts: object) -> str:
        """The id of an event or a usage record."""
        return ":".join([self.workflow_id, *map(str, parts)])


class Stored(NamedTuple):
    """How many events and usage records were sent, and how many of them had been stored before."""

    sent: int
    duplicates: int


def load(path: Path, run: str) -> Cassette:
    """Read a cassette. It does not name the agents: one plans, then two take turns to develop and to review."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    agents = [ARCHITECT] + [DEVELOPER, REVIEWER] * (len(recorded["invocations"]) // 2)
    invocations = [
        Invocation(number, agent, one["messages"], one["usage"])
        for number, (agent, one) in enumerate(zip(agents, recorded["invocations"], strict=True), 1)
    ]
    return Cassette(path.stem, recorded["scenario_id"], recorded["driver"], invocations, run)


def play(client: Client, cassette: Cassette) -> Stored:
    """Tell the service of the run, in the order in which it happened."""
    workflow_id = cassette.workflow_id
    client.create_workflow(cassette.scenario, cassette.worktree_path, profile=cassette.driver, id=workflow_id)
    client.start(workflow_id, actor=ORCHESTRATOR, event_id=cassette.id_of("start"))
    stored = []
    for invocation in cassette.invocations:
        stored.append(play_invocation(client, cassette, invocation))
        if invocation.agent == ARCHITECT:
            plan = {"plan": invocation.messages[-1]["content"]}
            client.block(workflow_id, "The plan awaits approval", plan, event_id=cassette.id_of("block"))
            client.approve(workflow_id, "As agreed", actor="product owner", event_id=cassette.id_of("approve"))
    total = {"invocations": len(cassette.invocations)}
    client.complete(workflow_id, data=total, event_id=cassette.id_of("complete"))
    return Stored(*map(sum, zip(*stored, strict=True)))


def play_invocation(client: Client, cassette: Cassette, invocation: Invocation) -> Stored:
    """Its stage begins, its messages come in one batch, its usage is recorded, its stage ends."""
    started, *messages, completed = invocation_events(cassette, invocation)
    answers = [client.append(cassette.workflow_id, events) for events in (started, messages)]
    recorded = client.record(cassette.workflow_id, usage_of(cassette, invocation))
    answers.append(client.append(cassette.workflow_id, completed))
    duplicates = sum(answer["duplicates"] for answer in answers) + recorded["duplicates"]
    return Stored(len(messages) + 3, duplicates)


def invocation_events(cassette: Cassette, invocation: Invocation) -> list[NewEvent]:
    """The events of one invocation, from `stage_started` to `stage_completed`."""
    messages = [message_event(cassette, invocation, place) for place in range(len(invocation.messages))]
    return [
        stage_event(cassette, invocation, "stage_started"),
        *messages,
        stage_event(cassette, invocation, "stage_completed"),
    ]


def stage_event(cassette: Cassette, invocation: Invocation, event_type: str) -> NewEvent:
    """The stage is named after its agent."""
    return {
        "id": cassette.id_of(invocation.number, event_type),
        "agent": invocation.agent,
        "event_type": event_type,
        "message": f"Invocation {invocation.number} of the {invocation.agent}",
        "data": {"stage": invocation.agent, "invocation": invocation.number},
    }


def message_event(cassette: Cassette, invocation: Invocation, place: int) -> NewEvent:
    """One message: its text, and beside it all that the cassette says of it. A call and its result correlate."""
    message = invocation.messages[place]
    said = {name: value for name, value in message.items() if value is not None and name not in {"type", "content"}}
    return {
        "id": cassette.id_of(invocation.number, "message", place),
        "agent": invocation.agent,
        "event_type": message["type"],
        "level": "error" if message["is_error"] else "info",
        "message": message["content"] or message["tool_name"] or message["type"],
        "data": said | {"invocation": invocation.number},
        "correlation_id": message["tool_call_id"],
    }


def usage_of(cassette: Cassette, invocation: Invocation) -> NewUsage:
    """What the invocation used, at the cost that was reported for it."""
    plain, output, read, written = disjoint(invocation.usage)
    return {
        "id": cassette.id_of(invocation.number, "usage"),
        "agent": invocation.agent,
        "model": invocation.model,
        "input_tokens": plain,
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_creation_tokens": written,
        "cost_usd": invocation.usage["cost_usd"],
    }


def disjoint(usage: dict[str, Any]) -> tuple[int, int, int, int]:
    """The four disjoint counts, in the order of COUNTS.

    A cassette's input counts whole prompts, those tokens among them that the cache read or wrote. Raises
    ValueError where these are more than the whole, which no subtraction can put right.
    """
    total, output, read, written = (usage[name] or 0 for name in COUNTS)
    if read + written > total:
        raise ValueError(f"{read} + {written} cached tokens cannot be part of {total} input tokens")
    return total - read - written, output, read, written


def nano(dollars: float | None) -> int:
    """Whole nano-dollars, in which sums are exact; nothing where no cost is known."""
    return round(Decimal(repr(dollars or 0.0)) * 10**9)


def check(client: Client, cassette: Cassette) -> WorkflowDetail:
    """Read the workflow back and compare all of it with the cassette. Raises Difference."""
    workflow = client.get_workflow(cassette.workflow_id)
    check_events(cassette, list(all_events(client, cassette.workflow_id)))
    check_records(cassette, list(all_records(client, cassette.workflow_id)))
    check_sums(cassette, workflow)
    same("status", workflow["status"], "completed")
    same("open stage", workflow["current_stage"], None)
    same("last_sequence", workflow["last_sequence"], len(list(expected_events(cassette))))
    return workflow


def all_events(client: Client, workflow_id: str) -> Iterator[Event]:
    """The workflow's events in order."""
    page = client.list_events(workflow_id)
    yield from page["events"]
    while page["has_more"]:
        page = client.list_events(workflow_id, after=page["next_after"])
        yield from page["events"]


def all_records(client: Client, workflow_id: str) -> Iterator[UsageRecord]:
    """The workflow's usage records in order."""
    page = client.list_token_usage(workflow_id)
    yield from page["token_usage"]
    while page["has_more"]:
        page = client.list_token_usage(workflow_id, after=page["next_after"])
        yield from page["token_usage"]


def expected_events(cassette: Cassette) -> Iterator[Mapping[str, Any]]:
    """What the workflow's events must say, one after the other; those of the moves are the service's own."""
    yield {"event_type": "workflow_created"}
    yield {"event_type": "workflow_started", "id": cassette.id_of("start")}
    for invocation in cassette.invocations:
        yield from invocation_events(cassette, invocation)
        if invocation.agent == ARCHITECT:
            yield {"event_type": "approval_required", "id": cassette.id_of("block")}
            yield {"event_type": "approval_granted", "id": cassette.id_of("approve")}
    yield {"event_type": "workflow_completed", "id": cassette.id_of("complete")}


def check_events(cassette: Cassette, events: list[Event]) -> None:
    """Every event, in order, numbered without a gap."""
    expected = list(expected_events(cassette))
    same("number of events", len(events), len(expected))
    for sequence, (event, wanted) in enumerate(zip(events, expected, strict=True), 1):
        same(f"event {sequence}", {name: event.get(name) for name in wanted}, wanted)
    same("sequences", [event["sequence"] for event in events], list(range(1, len(events) + 1)))
    positions = [event["position"] for event in events]
    same("positions", positions, sorted(set(positions)))


def check_records(cassette: Cassette, records: list[UsageRecord]) -> None:
    """Every usage record, in order."""
    expected = [usage_of(cassette, invocation) for invocation in cassette.invocations]
    same("number of usage records", len(records), len(expected))
    for number, (record, wanted) in enumerate(zip(records, expected, strict=True), 1):
        same(f"usage {number}", content_of(record), content_of(wanted))


def content_of(usage: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says, sent or stored, with its cost in nano-dollars."""
    content = {name: usage[name] for name in ("id", "agent", "model", *COUNTS)}
    return content | {"cost": None if usage["cost_usd"] is None else nano(usage["cost_usd"])}


def check_sums(cassette: Cassette, workflow: WorkflowDetail) -> None:
    """The workflow's totals: each count, the cost, and the tokens whose cost nobody knows."""
    used = [(disjoint(one.usage), one.usage["cost_usd"]) for one in cassette.invocations]
    counts = [sum(column) for column in zip(*(counts for counts, _ in used), strict=True)]
    totals = workflow["token_usage"]
    same("sums of the counts", totals and [totals[f"total_{name}"] for name in COUNTS], counts)  # type: ignore[literal-required]  # each of COUNTS has its total
    same("total_tokens", workflow["total_tokens"], sum(counts))
    same("cost in nano-dollars", nano(workflow["total_cost_usd"]), sum(nano(cost) for _, cost in used))
    same("unpriced_tokens", workflow["unpriced_tokens"], sum(sum(counts) for counts, cost in used if cost is None))


def same(what: str, found: object, wanted: object) -> None:
    """Raises Difference."""
    if found != wanted:
        raise Difference(f"{what} came back as {str(found)[:300]} where the cassette has {str(wanted)[:300]}")


def play_folder(client: Client, folder: Path, run: str) -> None:
    """Play and check each cassette, a line for each. Raises Difference, ClientError, OSError and ValueError."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no cassettes (*.json)")
    print(f"{'cassette':<26}{'workflow':<38}{'events':>7}{'tokens':>10}{'cost USD':>13}{'sent':>6}{'known':>7}")
    for path in paths:
        cassette = load(path, run)
        stored = play(client, cassette)
        workflow = check(client, cassette)
        tokens, cost = workflow["total_tokens"], workflow["total_cost_usd"]
        print(f"{cassette.name:<26}{cassette.workflow_id:<38}{workflow['last_sequence']:>7}", end="")
        print(f"{tokens:>10}{cost:>13.9f}{stored.sent:>6}{stored.duplicates:>7}")


def run_name(text: str) -> str:
    """A name that can stand in a path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise argparse.ArgumentTypeError("expected 1-64 letters, digits, - and _, first a letter or a digit")
    return text


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Play recorded runs into a service and read them back.")
    parser.add_argument("folder", nargs="?", type=Path, default=CASSETTES, help="default: those of the tests")
    parser.add_argument("--url", default="http://127.0.0.1:8420", help="default: %(default)s")
    parser.add_argument("--token", help="where the service asks for one")
    parser.add_argument("--run", type=run_name, default=secrets.token_hex(4), help="default: a new name each time")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The script's exit status."""
    options = parse(arguments)
    print(f"run {options.run}")
    try:
        with Client(options.url, options.token) as client:
            play_folder(client, options.folder, options.run)
    except (Difference, ClientError, OSError, ValueError) as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 1
    print("Everything came back as it was recorded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
