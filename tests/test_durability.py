"""That an answer leaves only after the disk has what it tells of: seen from the kernel, on a real server."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.load import create_workflows, event
from tests.serving import Server, serving

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# A sync that has come back, or an answer that leaves.
SYNCED = re.compile(r"(fsync|fdatasync).* = 0$")
ANSWERED = re.compile(r'"HTTP/1\.1 (\d+)')
USAGE = {"agent": "a", "model": "m", "input_tokens": 1, "output_tokens": 1}


@contextmanager
def traced(server: Server, trace: Path) -> Iterator[None]:
    """Write down the syncs and answers of the server's processes."""
    assert server.process is not None
    pids = [child.pid for child in psutil.Process(server.process.pid).children()]
    calls = "trace=fsync,fdatasync,sync_file_range,write,sendto,sendmsg,writev"
    command = ["strace", "-f", "-s", "16", "-e", calls, "-e", "signal=none", "-o", str(trace)]
    whom = [word for pid in pids for word in ("-p", str(pid))]
    process = subprocess.Popen(command + whom, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for _ in pids:
        assert "attached" in process.stderr.readline()
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


def steps(trace: Path) -> list[str]:
    """`sync` and the statuses of answers, in their order."""
    found = []
    for line in trace.read_text().splitlines():
        if SYNCED.search(line):
            found.append("sync")
        elif answer := ANSWERED.search(line):
            found.append(answer[1])
    return found


def syncs_before_answers(trace: Path) -> list[tuple[str, int]]:
    """Each answer with the number of syncs that came back since the one before it."""
    answers, syncs = [], 0
    for step in steps(trace):
        if step == "sync":
            syncs += 1
        else:
            answers.append((step, syncs))
            syncs = 0
    return answers


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("durability") / "amelia.db", workers=1) as server:
        yield server
        assert server.stop() == 0


def test_every_write_is_answered_after_a_sync(one_process: Server, tmp_path: Path) -> None:
    workflow = create_workflows(one_process, 1)[0]
    path = f"/api/workflows/{workflow}"
    calls = [
        ("/api/workflows", {"issue_id": "D-1", "worktree_path": f"/d/{uuid4()}"}),
        (f"{path}/events", event()),
        (f"{path}/events", {"events": [event() for _ in range(500)]}),
        (f"{path}/token-usage", USAGE),
        (f"{path}/start", {}),
        (f"{path}/block", {}),
        (f"{path}/approve", {}),
        (f"{path}/complete", {}),
    ]
    with traced(one_process, tmp_path / "trace"):
        replies = [one_process.request("POST", *call) for call in calls]
        replies.append(one_process.request("PATCH", path, {"state": {"a": 1}}))
        replies.append(one_process.request("DELETE", path))
    answers = syncs_before_answers(tmp_path / "trace")
    assert [status for status, _ in answers] == [str(reply.status) for reply in replies]
    assert {reply.status for reply in replies} <= {200, 201, 204}
    assert all(syncs >= 1 for _, syncs in answers), answers


def test_a_batch_costs_one_sync(one_process: Server, tmp_path: Path) -> None:
    path = f"/api/workflows/{create_workflows(one_process, 1)[0]}/events"
    with traced(one_process, tmp_path / "trace"):
        for _ in range(3):
            one_process.request("POST", path, {"events": [event() for _ in range(100)]})
    assert syncs_before_answers(tmp_path / "trace") == [("201", 1)] * 3


def test_reads_and_refusals_sync_nothing(one_process: Server, tmp_path: Path) -> None:
    workflow = create_workflows(one_process, 1)[0]
    paths = ["health/live", "health/ready", "workflows", f"workflows/{workflow}", f"workflows/{workflow}/events"]
    paths += ["events", f"workflows/{workflow}/token-usage", "usage", "workflows/nothing", "openapi.json"]
    with traced(one_process, tmp_path / "trace"):
        for path in paths:
            one_process.request("GET", f"/api/{path}")
        one_process.request("POST", f"/api/workflows/{workflow}/events", {"agent": "a"})
    answers = syncs_before_answers(tmp_path / "trace")
    assert len(answers) == len(paths) + 1
    assert {syncs for _, syncs in answers} == {0}
