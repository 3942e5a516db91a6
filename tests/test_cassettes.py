"""Three recorded runs, played by an orchestrator through the client against a real server."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

from amelia_flask.client import Client
from tests.serving import Server

SCRIPT = Path(__file__).parent.parent / "examples" / "play_cassettes.py"
CASSETTES = sorted((Path(__file__).parent / "data" / "amelia-cassettes").glob("*.json"))


@pytest.fixture(scope="module")
def player() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("play_cassettes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_there_are_three() -> None:
    assert len(CASSETTES) == 3


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.stem)
def test_a_recorded_run_comes_back_as_it_was(server: Server, player: ModuleType, path: Path) -> None:
    cassette = player.load(path, uuid4().hex)
    with Client(server.url) as client:
        stored = player.play(client, cassette)
        workflow = player.check(client, cassette)
        events = list(player.all_events(client, cassette.workflow_id))
    assert stored.duplicates == 0
    kinds = [event["event_type"] for event in events]
    assert kinds.count("stage_started") == kinds.count("stage_completed") == len(cassette.invocations)
    assert kinds.index("approval_required") + 1 == kinds.index("approval_granted")
    calls = [event for event in events if event["event_type"] == "tool_call"]
    assert all(event["data"]["tool_name"] for event in calls)
    assert [event["data"].get("tool_input") for event in calls] == [
        message["tool_input"]
        for invocation in cassette.invocations
        for message in invocation.messages
        if message["type"] == "tool_call"
    ]
    assert workflow["status"] == "completed"


def test_playing_a_run_again_stores_nothing_new(server: Server, player: ModuleType) -> None:
    cassette = player.load(CASSETTES[0], uuid4().hex)
    with Client(server.url) as client:
        first = player.play(client, cassette)
        before = client.get_workflow(cassette.workflow_id)
        again = player.play(client, cassette)
        assert (again.sent, again.duplicates) == (first.sent, first.sent)
        assert client.get_workflow(cassette.workflow_id) == before


def test_a_difference_is_seen(server: Server, player: ModuleType) -> None:
    cassette = player.load(CASSETTES[0], uuid4().hex)
    with Client(server.url) as client:
        player.play(client, cassette)
        client.append(cassette.workflow_id, {"agent": "x", "event_type": "note", "message": "not in the cassette"})
        with pytest.raises(player.Difference, match="number of events"):
            player.check(client, cassette)


def test_the_script_plays_them_all(server: Server) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--url", server.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Everything came back as it was recorded." in done.stdout
