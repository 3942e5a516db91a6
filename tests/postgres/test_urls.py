"""How the service is told of its PostgreSQL, and that nobody else is told of the password."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from amelia_flask import schema
from amelia_flask.engines import engine_of
from amelia_flask.errors import AmeliaError
from amelia_flask.postgres import PostgresEngine
from amelia_flask.settings import from_environment
from tests.load import create_workflows
from tests.postgres.clusters import PASSWORD, ROLE, Cluster
from tests.postgres.conftest import Serve
from tests.serving import ROOT, free_port, serving

SECRET = quote(PASSWORD, safe="")


def run(*arguments: str, program: tuple[str, ...] = ("-m", "amelia_flask"), **environment: str) -> tuple[int, str]:
    """The exit status of a command, and what it said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AMELIA_", "PG"))}
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=clean | environment,
        input="print(Workflow.select().count())\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def tells_no_password(text: str) -> bool:
    """Neither as it is, nor as it stands in a URL, nor the beginning of either."""
    return PASSWORD not in text and SECRET not in text and PASSWORD[:6] not in text


def place(cluster: Cluster, database: str) -> str:
    return f"{ROLE}@127.0.0.1:{cluster.port}/{database}"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_the_url_may_hold_the_password(cluster: Cluster, database: str, scheme: str) -> None:
    url = cluster.url(database).replace("postgresql", scheme, 1)
    status, said = run("init-db", AMELIA_DATABASE_URL=url)
    assert (status, said.count("applied")) == (0, 1), said
    assert place(cluster, database) in said
    assert tells_no_password(said)


def test_the_password_may_be_in_the_environment(cluster: Cluster, database: str) -> None:
    url = f"postgresql://{place(cluster, database)}"
    assert run("init-db", AMELIA_DATABASE_URL=url, PGPASSWORD=PASSWORD)[0] == 0


def test_the_password_may_be_in_libpqs_file(cluster: Cluster, database: str, tmp_path: Path) -> None:
    file = tmp_path / ".pgpass"
    escaped = PASSWORD.replace(":", r"\:")
    file.write_text(f"127.0.0.1:*:*:{ROLE}:{escaped}\n")
    file.chmod(0o600)
    url = f"postgresql://{place(cluster, database)}"
    assert run("init-db", AMELIA_DATABASE_URL=url, PGPASSFILE=str(file))[0] == 0


def test_the_password_may_be_in_a_file_of_its_own(cluster: Cluster, database: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    url = f"postgresql://{place(cluster, database)}"
    assert run("init-db", AMELIA_DATABASE_URL=url, AMELIA_DATABASE_PASSWORD_FILE=str(file))[0] == 0


def test_a_password_closer_to_the_service_comes_first(cluster: Cluster, database: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    wrong = f"postgresql://{ROLE}:wrong@127.0.0.1:{cluster.port}/{database}"
    assert run("init-db", AMELIA_DATABASE_URL=wrong, AMELIA_DATABASE_PASSWORD_FILE=str(file))[0] == 0
    assert run("init-db", AMELIA_DATABASE_URL=cluster.url(database), PGPASSWORD="wrong")[0] == 0
    (tmp_path / ".pgpass").write_text(f"*:*:*:{ROLE}:wrong\n")
    (tmp_path / ".pgpass").chmod(0o600)
    url, wrong_file = f"postgresql://{place(cluster, database)}", str(tmp_path / ".pgpass")
    assert run("init-db", AMELIA_DATABASE_URL=url, PGPASSFILE=wrong_file, PGPASSWORD=PASSWORD)[0] == 0
    assert run("init-db", AMELIA_DATABASE_URL=url, PGPASSFILE=wrong_file)[0] == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_without_a_password_is_refused(
    cluster: Cluster, database: str, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    url = f"postgresql://{place(cluster, database)}"
    status, said = run("init-db", AMELIA_DATABASE_URL=url, AMELIA_DATABASE_PASSWORD_FILE=str(file))
    assert (status, len(said.splitlines())) == (1, 1)
    assert f"AMELIA_DATABASE_PASSWORD_FILE {file} cannot be read" in said


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://host/x", "Expected a URL that begins with postgresql://"),
        ("host=localhost dbname=x", "Expected a URL that begins with postgresql://"),
        (f"postgresql://{ROLE}:{SECRET}@[::1/x", "malformed"),
        (f"postgresql://{ROLE}:{SECRET}%zz@localhost/x", "malformed"),
        (f"postgresql://{ROLE}:{SECRET}@localhost/x?no_such_option=1", "malformed"),
        (f"postgresql://{ROLE}:{SECRET}@localhost:port/x", "malformed|cannot be reached"),
        (f"postgresql://{ROLE}:{PASSWORD}@localhost/x", "malformed|cannot be reached"),  # nobody encoded it
        (f"postgresql://{ROLE}:s3cret/more@localhost/x", "malformed"),
        (f"postgresql://{ROLE}:5432/s3cret@localhost/x", "malformed"),
        (f"postgresql://{ROLE}:s3cret[more@no-such-host.invalid/x", "cannot be reached"),
        (f"postgresql://{ROLE}:s3cret?more@no-such-host.invalid/x", "cannot be reached"),
        (f"postgresql://{ROLE}:s3cret#more@no-such-host.invalid/x", "cannot be reached"),
        (f"postgresql://{ROLE}:{SECRET}@no-such-host.invalid/x", "cannot be reached"),
        (f"postgresql://{ROLE}:{SECRET}@localhost/x?sslmode=maybe", "malformed|cannot be reached"),
        (f"postgresql://{ROLE}:{SECRET}@localhost/x?connect_timeout=soon", "malformed|cannot be reached"),
        (
            f"postgresql:///x?host=localhost&user={ROLE}&password={SECRET}&sslmode=maybe",
            "malformed|cannot be reached",
        ),
    ],
)
def test_what_is_no_url_is_refused_with_a_sentence(url: str, reason: str) -> None:
    with pytest.raises(AmeliaError) as refused:
        schema.set_up(engine_of(from_environment({"AMELIA_DATABASE_URL": url})))
    (sentence,) = refused.value.message.splitlines()
    assert re.search(reason, sentence), sentence
    assert tells_no_password(sentence), sentence


@pytest.mark.parametrize("command", ["init-db", "serve"])
@pytest.mark.parametrize("url", ["mysql://host/x", f"postgresql://{ROLE}:{SECRET}@[::1/x"])
def test_a_command_says_that_sentence_and_no_more(url: str, command: str) -> None:
    status, said = run(command, AMELIA_DATABASE_URL=url, AMELIA_PORT=str(free_port()))
    assert (status, len(said.splitlines())) == (1, 1), said
    assert said.startswith("Error: AMELIA_DATABASE_URL is malformed: ")
    assert tells_no_password(said), said


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"role": "nobody"}, "nobody"),
    ],
)
def test_what_the_server_refuses_is_told(cluster: Cluster, database: str, wrong: dict[str, str], reason: str) -> None:
    given = {"role": ROLE, "password": SECRET, "database": database} | wrong
    url = "postgresql://{role}:{password}@127.0.0.1:{port}/{database}".format(**given, port=cluster.port)
    status, said = run("init-db", AMELIA_DATABASE_URL=url)
    assert (status, len(said.splitlines())) == (1, 1), said
    assert reason in said
    assert tells_no_password(said)


def test_a_schema_of_ones_own_is_separate(cluster: Cluster, database: str, tmp_path: Path) -> None:
    cluster.run(f"CREATE SCHEMA team AUTHORIZATION {ROLE}; CREATE TABLE public.others (x INT)", database=database)
    in_team = cluster.url(database, options="?options=-csearch_path%3Dteam&sslmode=disable")
    elsewhere = cluster.url(database, options="?options=-csearch_path%3Dteam2")
    cluster.run(f"CREATE SCHEMA team2 AUTHORIZATION {ROLE}", database=database)
    for url in (in_team, in_team, elsewhere):
        assert run("init-db", AMELIA_DATABASE_URL=url)[0] == 0
    with (
        serving(tmp_path / "none.db", database_url=in_team) as one,
        serving(tmp_path / "none.db", database_url=elsewhere) as other,
    ):
        create_workflows(one, 2)
        create_workflows(other, 3)
        assert [server.request("GET", "/api/workflows").json["total"] for server in (one, other)] == [2, 3]
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    assert cluster.run(tables, database=database) == [("others",)]
    status, said = run("check", AMELIA_DATABASE_URL=in_team)
    assert status == 0, said


def test_a_schema_that_is_not_there_is_refused_with_a_sentence(cluster: Cluster, database: str) -> None:
    url = cluster.url(database, options="?options=-csearch_path%3Dnowhere")
    status, said = run("init-db", AMELIA_DATABASE_URL=url)
    assert (status, len(said.splitlines())) == (1, 1), said


def test_the_password_is_told_nobody(serve: Serve, cluster: Cluster, database: str) -> None:
    server = serve(log_level="debug", host="127.0.0.1")
    create_workflows(server, 1)
    told = [server.request("GET", path).raw.decode() for path in ("/api/health", "/metrics", "/api/openapi.json")]
    cluster.stop()
    told += [
        server.request("GET", path).raw.decode() for path in ("/api/health", "/api/workflows", "/api/health/ready")
    ]
    told.append(server.request("POST", "/api/workflows", {"issue_id": "X-1", "worktree_path": "/x"}).raw.decode())
    cluster.start()
    assert server.stop() == 0
    log = server.log.read_text()
    assert place(cluster, database) in log, "the operator is told which database it is"
    for text in [*told, log]:
        assert tells_no_password(text)
    for text in told:
        assert str(cluster.port) not in text


def test_a_shell_reads_and_tells_no_password(cluster: Cluster, database: str) -> None:
    shell = ("-m", "flask", "--app", "amelia_flask", "shell")
    status, said = run(program=shell, AMELIA_DATABASE_URL=cluster.url(database))
    assert status == 0, said
    assert "0" in said.split()[-3:] or ">>> 0" in said, said
    assert tells_no_password(said)


def test_without_the_driver_a_sentence_says_what_to_install() -> None:
    code = """
import sys
sys.modules["psycopg"] = None
from amelia_flask.cli import main
main()
"""
    status, said = run("init-db", program=("-c", code), AMELIA_DATABASE_URL="postgresql://localhost/x")
    assert (status, len(said.splitlines())) == (1, 1), said
    assert "pip install 'amelia-flask[postgres]'" in said


def test_sessions_are_told_what_they_may_rely_on(cluster: Cluster, database: str) -> None:
    loose = {
        "synchronous_commit": "off",
        "default_transaction_isolation": "serializable",
        "timezone": "Asia/Tokyo",
        "datestyle": "German",
        "statement_timeout": "0",
    }
    for name, value in loose.items():
        cluster.run(f"ALTER ROLE {ROLE} IN DATABASE {database} SET {name} = '{value}'")
    door = PostgresEngine(cluster.url(database)).open_door()
    door.open()
    found = {name: door.db.connection().execute(f"SHOW {name}").fetchone()[0] for name in loose}
    assert found == {
        "synchronous_commit": "on",
        "default_transaction_isolation": "read committed",
        "timezone": "UTC",
        "datestyle": "ISO, DMY",
        "statement_timeout": "10s",
    }
    door.close()


@pytest.mark.parametrize(
    ("given", "kept"), [("remote_apply", "remote_apply"), ("local", "on"), ("remote_write", "on")]
)
def test_a_session_never_acknowledges_sooner(cluster: Cluster, database: str, given: str, kept: str) -> None:
    cluster.run(f"ALTER ROLE {ROLE} IN DATABASE {database} SET synchronous_commit = '{given}'")
    door = PostgresEngine(cluster.url(database, options="?application_name=desk")).open_door()
    door.open()
    assert door.db.connection().execute("SHOW synchronous_commit").fetchone() == (kept,)
    assert door.db.connection().execute("SHOW application_name").fetchone() == ("desk",)
    door.close()
