"""What is given for running the service for good fits the service, and is what its tools accept."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from flask import Flask

from amelia_flask.cli import main
from amelia_flask.server import GRACEFUL_SECONDS
from amelia_flask.settings import Settings, from_environment
from tests.load import create_workflows
from tests.serving import Server, free_port, serving

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "amelia-flask.service"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PROGRAM = "/opt/amelia-flask/bin/amelia-flask"
LEAVE_SECONDS = 10

# Of systemd.unit, systemd.service, systemd.exec and systemd.kill, what the unit may use.
OPTIONS = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *("Type", "User", "Group", "UMask", "StateDirectory", "StateDirectoryMode", "WorkingDirectory"),
        *("Environment", "EnvironmentFile", "ExecStart", "KillMode", "TimeoutStopSec", "Restart", "RestartSec"),
        *("OOMPolicy", "LimitNOFILE", "AmbientCapabilities", "CapabilityBoundingSet", "KeyringMode"),
        *("LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices", "PrivateTmp"),
        *("PrivateUsers", "ProtectClock", "ProtectControlGroups", "ProtectHome", "ProtectHostname"),
        *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem"),
        *("RemoveIPC", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
        *("SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
    },
    "Install": {"WantedBy"},
}
INSTRUCTIONS = {
    *("FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"),
    *("ENTRYPOINT", "CMD"),
}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def unit() -> list[tuple[str, str, str]]:
    """Section, option and value of each line; an option may come twice."""
    found, section = [], ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.append((section, name, value))
    return found


def values(option: str) -> list[str]:
    return [value for _, name, value in unit() if name == option]


def test_every_option_of_the_unit_is_known_in_its_section() -> None:
    assert [(section, name) for section, name, _ in unit() if name not in OPTIONS[section]] == []


def test_the_unit_starts_a_command_that_there_is() -> None:
    (command,) = values("ExecStart")
    program, name = shlex.split(command)
    assert program == PROGRAM
    assert '[project.scripts]\namelia-flask = "amelia_flask.cli:main"' in (ROOT / "pyproject.toml").read_text()
    assert name in main.commands


def test_the_unit_keeps_the_record_where_it_may_write() -> None:
    settings = from_environment(dict(value.split("=", 1) for value in values("Environment")))
    (folder,) = values("StateDirectory")
    assert settings.database_path == Path("/var/lib") / folder / "amelia.db"
    assert values("WorkingDirectory") == [str(settings.database_path.parent)]
    assert values("ProtectSystem") == ["strict"]


def test_the_service_is_given_the_time_that_it_needs_to_leave() -> None:
    assert GRACEFUL_SECONDS < LEAVE_SECONDS < int(values("TimeoutStopSec")[0])
    assert f"stop_grace_period: {values('TimeoutStopSec')[0]}s" in (DEPLOY / "compose.yaml").read_text()
    assert f"--stop-timeout {values('TimeoutStopSec')[0]} " in OPERATIONS


@pytest.fixture
def installed_unit(tmp_path: Path) -> Path:
    """The unit as it is where the program is installed."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace(PROGRAM, str(Path(sys.prefix) / "bin" / "amelia-flask")))
    return path


@needs_systemd
def test_systemd_accepts_the_unit(installed_unit: Path) -> None:
    done = analyze("verify", str(installed_unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_little_of_the_machine_is_exposed(installed_unit: Path) -> None:
    """From 0, locked away, to 10, everything: what is left are the network, its own user and a visible /proc."""
    done = analyze("security", "--offline=true", "--threshold=20", str(installed_unit))
    if "Unknown option" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip("this systemd judges no units that are not loaded")
    assert done.returncode == 0, done.stdout


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
@needs_strace
def test_the_unit_refuses_no_system_call_that_the_service_makes(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with launched(tmp_path, ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(trace)]) as server:
        use(server)
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    allowed, refused = (system_calls(value.removeprefix("~")) for value in values("SystemCallFilter"))
    assert made >= {"accept4", "pwrite64"}, "the trace is that of the service"
    assert made - allowed == set()
    assert made & refused <= ({"fchown"} if os.geteuid() == 0 else set()), (
        "for root SQLite keeps files to their owner"
    )


@cache
def system_calls(group: str) -> frozenset[str]:
    """Every call of a group with those of the groups in it."""
    lines = [line.strip() for line in analyze("syscall-filter", group).stdout.splitlines()[1:]]
    found: set[str] = set()
    for name in lines:
        if name and not name.startswith("#"):
            found |= system_calls(name) if name.startswith("@") else {name}
    return frozenset(found)


def test_the_service_needs_no_memory_that_is_both_written_and_executed(tmp_path: Path) -> None:
    forbid = "import ctypes, os, sys; print(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0), flush=True)"
    if subprocess.run([sys.executable, "-c", forbid], capture_output=True, check=True).stdout != b"0\n":
        pytest.skip("this kernel cannot forbid it: Linux can from 6.3 on")
    with launched(tmp_path, [sys.executable, "-c", f"{forbid}; os.execv(sys.argv[1], sys.argv[1:])"]) as server:
        use(server)


@contextmanager
def launched(folder: Path, launcher: list[str]) -> Iterator[Server]:
    """A server that another program starts; all processes are told to stop, that program is not trusted to do it."""
    server = Server(folder / "amelia.db", workers=1, pin_workers="on")
    command = [*launcher, sys.executable, "-m", "amelia_flask", "serve"]
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=server.environment, stdout=log, stderr=log, start_new_session=True
        )
    server.process = process
    try:
        server.wait_until_ready()
        yield server
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(15) in {0, -signal.SIGTERM}, server.log.read_text()
    finally:
        if process.poll() is None:
            server.kill()


def use(server: Server) -> None:
    """A little of everything."""
    (workflow,) = create_workflows(server, 1)
    usage = {"agent": "a", "model": "claude-sonnet-4-5", "input_tokens": 1, "output_tokens": 1}
    event = {"agent": "a", "event_type": "note", "message": "m"}
    for path, body in (("start", {}), ("events", event), ("token-usage", usage), ("complete", {})):
        assert server.request("POST", f"/api/workflows/{workflow}/{path}", body).status < 300
    for path in ("/api/health", "/api/usage", "/metrics", "/api/openapi.json", "/api/events?wait=1&after=99"):
        assert server.request("GET", path).status == 200


def test_systemd_is_told_when_the_service_listens(tmp_path: Path) -> None:
    assert values("Type") == ["notify"]
    assert "AF_UNIX" in values("RestrictAddressFamilies")[0], "the message comes by such a socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        server = Server(tmp_path / "amelia.db")
        server.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with server.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "amelia_flask", "serve"], env=server.environment, stdout=log, stderr=log
            )
        try:
            assert b"READY=1" in systemd.recv(4096).splitlines()
            assert server.request("GET", "/api/health/live").status == 200
        finally:
            process.terminate()
            assert process.wait(15) == 0


def instructions() -> list[tuple[str, str]]:
    """Those of the Containerfile, each in one line."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_every_instruction_of_the_containerfile_is_known() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    assert instructions()[0][0] == "FROM"


def copied() -> Iterator[str]:
    """What the image is made from, as paths in the repository."""
    for rest in of("COPY"):
        *sources, _target = shlex.split(rest)
        if not sources[0].startswith("--from="):
            yield from sources


def test_what_the_containerfile_copies_is_there_and_not_ignored() -> None:
    wanted = [line[1:] for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    assert sorted(copied()) == sorted(wanted)
    assert [name for name in copied() if not (ROOT / name).exists()] == []


def test_the_image_is_built_from_all_that_the_package_is_built_from() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'^(?:readme|license-files|packages) = \[?"([^"]+)"', project, re.MULTILINE)
    assert len(needed) == 3
    assert {"pyproject.toml", *needed} == set(copied())


def test_each_stage_that_is_copied_from_is_there() -> None:
    stages = [rest.split(" AS ")[1] for rest in of("FROM") if " AS " in rest]
    assert [found for rest in of("COPY") for found in re.findall(r"--from=(\S+)", rest)] == stages


def container_settings() -> Settings:
    given = dict(rest.split("=", 1) for rest in of("ENV"))
    return from_environment({name: value for name, value in given.items() if name.startswith("AMELIA_")})


def test_the_container_runs_the_service_as_somebody_and_keeps_the_record_in_its_volume() -> None:
    settings = container_settings()
    assert of("USER") == ["amelia"]
    assert "useradd" in of("RUN")[-1]
    (volume,) = json.loads(of("VOLUME")[0])
    assert settings.database_path.parent == Path(volume)
    assert of("EXPOSE") == [str(settings.port)]
    assert (json.loads(of("ENTRYPOINT")[0]), json.loads(of("CMD")[0])) == (["amelia-flask"], ["serve"])


def test_the_container_asks_for_a_token() -> None:
    settings = container_settings()
    assert (settings.host, settings.asks_for_token, settings.api_token) == ("0.0.0.0", True, None)


def health_check(port: int) -> int:
    """The exit status of the container's health check on this port."""
    options, _, command = of("HEALTHCHECK")[0].partition("CMD ")
    assert all(fnmatch.fnmatch(option, "--*=*") for option in options.split())
    _python, *arguments = json.loads(command)
    arguments = [argument.replace(":8420", f":{port}") for argument in arguments]
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, timeout=30).returncode


def test_the_health_check_tells_a_service_that_is_ready_from_none(tmp_path: Path) -> None:
    assert str(container_settings().port) in of("HEALTHCHECK")[0]
    with serving(tmp_path / "amelia.db", workers=1, host="0.0.0.0", api_token="a-token-of-these-tests") as server:
        assert health_check(server.port) == 0
        server.file.rename(tmp_path / "moved.db")
        assert health_check(server.port) == 1
    assert health_check(free_port()) == 1


def test_compose_uses_the_same_names(app: Flask) -> None:
    compose = (DEPLOY / "compose.yaml").read_text()
    assert (DEPLOY / re.findall(r"context: (\S+)", compose)[0]).resolve() == ROOT
    assert [ROOT / name for name in re.findall(r"dockerfile: (\S+)", compose)] == [DEPLOY / "Containerfile"]
    assert f"record:{container_settings().database_path.parent}\n" in compose
    assert set(re.findall(r"AMELIA_([A-Z_]+)", compose)) == {"API_TOKEN"}
    assert "/api/health/ready" in {rule.rule for rule in app.url_map.iter_rules()}


def test_every_command_that_the_operator_is_told_of_is_there() -> None:
    told = set(re.findall(r"(?:^|`|bin/|amelia |-flask )amelia(?:-flask)? ([a-z-]+)", OPERATIONS, re.MULTILINE))
    assert told >= {"backup", "restore", "check", "token"}
    assert told <= set(main.commands)


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.iterdir()))
def test_every_file_has_its_place_in_the_instructions(name: str) -> None:
    assert name in OPERATIONS or name == "Containerfile.dockerignore"
