"""Access tokens: made, listed, revoked, and in force in every process within a second."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from flask import Flask

from amelia_flask import create_app, tokens
from amelia_flask.ledger import Ledger
from amelia_flask.lock import FileLock
from amelia_flask.settings import from_environment
from tests import ledgers
from tests.answers import check_refused
from tests.databases import Database, database_of
from tests.serving import Server, free_port, serving, until
from tests.test_cli import run

ROOT = Path(__file__).parent.parent
ledger = ledgers.ledger
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CALL = "/api/workflows"


def call(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`amelia-flask token` with these arguments on the database."""
    return run("token", *arguments, **database.settings)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def last_used(database: Database) -> str | None:
    """When the only token was used, as it is stored."""
    ((stored,),) = database.rows("SELECT last_used_at FROM access_tokens")
    return None if stored is None else str(stored)


@pytest.fixture
def app(database: Database) -> Iterator[Flask]:
    """An application that asks for a token."""
    app = create_app(from_environment({**database.settings, "AMELIA_REQUIRE_TOKEN": "on"}))
    yield app
    app.extensions["ledger"].close()


def made(app: Flask, scope: tokens.Scope = "write", name: str = "agents") -> str:
    """A new token."""
    ledger: Ledger = app.extensions["ledger"]
    return ledger.write(tokens.create, name, scope)


def test_a_token_is_shown_once_and_kept_as_its_digest(database: Database) -> None:
    done = call(database, "create", "agents", "--scope", "write")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"amf_[A-Za-z0-9_-]{43}\n", done.stdout)
    token = done.stdout.strip()
    listed = call(database, "list").stdout
    assert re.fullmatch(r"NAME +SCOPE +CREATED +LAST USED\nagents +write +\d{4}-\S+Z +never\n", listed)
    ((name, digest, scope),) = database.rows("SELECT name, digest, scope FROM access_tokens")
    assert (name, digest, scope) == ("agents", sha256(token.encode()).hexdigest(), "write")
    assert token not in repr(database.dump())


def test_tokens_are_all_different_and_listed_by_name(ledger: Ledger) -> None:
    texts = {ledger.write(tokens.create, name, "read") for name in ("b", "a", "C", "0")}
    assert len(texts) == 4
    assert [token.name for token in ledger.read(tokens.stored)] == ["0", "C", "a", "b"]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["create", "taken", "--scope", "read"], 1, "There is a token named taken already"),
        (["create", "", "--scope", "read"], 1, "The name of a token is"),
        (["create", "a b", "--scope", "read"], 1, "The name of a token is"),
        (["create", "a\n", "--scope", "read"], 1, "The name of a token is"),
        (["create", "-a", "--scope", "read"], 2, "No such option"),
        (["create", "ä", "--scope", "read"], 1, "The name of a token is"),
        (["create", "n" * 65, "--scope", "read"], 1, "The name of a token is"),
        (["create", "new", "--scope", "admin"], 2, "'admin' is not one of 'read', 'write'"),
        (["create", "new"], 2, "Missing option '--scope'"),
        (["revoke", "new"], 1, "There is no token named new."),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    database: Database, arguments: list[str], status: int, sentence: str
) -> None:
    with closing(database.ledger()) as ledger:
        ledger.write(tokens.create, "taken", "write")
    before = database.dump()
    done = call(database, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert database.dump() == before


@pytest.mark.parametrize(
    ("scope", "method", "target", "status"),
    [
        ("read", "GET", CALL, 200),
        ("read", "HEAD", CALL, 200),
        ("read", "GET", "/api/openapi.json", 200),
        ("read", "POST", CALL, 403),
        ("read", "PATCH", CALL, 403),
        ("read", "DELETE", CALL, 403),
        ("read", "OPTIONS", CALL, 403),
        ("read", "BREW", CALL, 403),
        ("read", "POST", "/no/such/path", 403),
        ("write", "GET", CALL, 200),
        ("write", "POST", CALL, 415),
        ("write", "DELETE", CALL, 405),
    ],
)
def test_a_read_token_reads_and_a_write_token_does_everything(
    app: Flask, scope: tokens.Scope, method: str, target: str, status: int
) -> None:
    headers = bearer(made(app, scope)) | {"Content-Type": "text/plain"}
    response = app.test_client().open(target, method=method, headers=headers)
    assert response.status_code == status
    if status == 403:
        check_refused(response, 403, "FORBIDDEN")


def test_no_text_but_the_token_itself_is_one(app: Flask) -> None:
    token = made(app)
    digest = sha256(token.encode()).hexdigest()
    other = tokens.PREFIX + "A" * 43
    wrong = [other, token[:-1], token + "A", token.swapcase(), token[4:], digest, f"amf_{digest[:43]}", "amf_", ""]
    wrong += [token[:-1] + ("A" if token[-1] != "A" else "B"), "amf_" + "é" * 43, f"{token} {token}", "\x00" * 47]
    for text in wrong:
        response = app.test_client().get(CALL, headers=bearer(text.encode().decode("latin-1")))
        check_refused(response, 401, "UNAUTHORIZED")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert token not in response.text
    assert app.test_client().get(CALL, headers=bearer(token)).status_code == 200


def test_digests_that_begin_alike_are_told_apart(app: Flask) -> None:
    token = made(app)
    near = sha256(token.encode()).hexdigest()[:60] + "0000"
    database_of(app.extensions["ledger"]).execute(f"UPDATE access_tokens SET digest = '{near}'")
    assert app.test_client().get(CALL, headers=bearer(token)).status_code == 401


def test_the_token_of_the_settings_may_write_beside_those_that_are_stored(database: Database) -> None:
    own = "a-token-of-some-length"
    app = create_app(from_environment({**database.settings, "AMELIA_API_TOKEN": own}))
    body = {"issue_id": "T-1", "worktree_path": "/t"}
    stored = made(app, "read")
    assert app.test_client().post(CALL, json=body, headers=bearer(own)).status_code == 201
    assert app.test_client().get(CALL, headers=bearer(stored)).status_code == 200
    check_refused(app.test_client().post(CALL, json=body, headers=bearer(stored)), 403, "FORBIDDEN")
    app.extensions["ledger"].close()


def test_on_loopback_a_stored_token_makes_none_necessary(database: Database) -> None:
    app = create_app(from_environment(database.settings))
    token = made(app, "read")
    for headers in ({}, bearer(token), bearer("wrong")):
        assert app.test_client().get(CALL, headers=headers).status_code == 200
    app.extensions["ledger"].close()


@pytest.mark.engines("sqlite")
def test_without_the_database_nobody_is_told_that_his_token_is_wrong(app: Flask, path: Path) -> None:
    token = made(app)
    path.rename(path.with_name("away.db"))
    check_refused(app.test_client().get(CALL, headers=bearer(token)), 503, "DATABASE_UNAVAILABLE")
    check_refused(app.test_client().get(CALL, headers=bearer("no-token-of-ours")), 401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    ("later", "kept"),
    [(timedelta(seconds=59), NOW), (timedelta(seconds=61), NOW + timedelta(seconds=61)), (-timedelta(1), NOW)],
)
def test_the_last_use_is_kept_to_the_minute(ledger: Ledger, later: timedelta, kept: datetime) -> None:
    ledger.write(tokens.create, "agents", "read")
    for moment in (NOW, NOW + later):
        ledger.write(tokens.note_use, "agents", moment)
    (token,) = ledger.read(tokens.stored)
    assert token.last_used_at == kept.strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def test_many_requests_with_a_token_are_one_write(app: Flask, database: Database) -> None:
    token = made(app)
    writer = app.extensions["ledger"].writer
    before = writer.commits
    for _ in range(100):
        assert app.test_client().get(CALL, headers=bearer(token)).status_code == 200
    until(lambda: last_used(database))
    assert writer.commits == before + 1


@pytest.mark.engines("sqlite")
def test_a_use_that_cannot_be_kept_now_holds_up_no_request(app: Flask, database: Database, path: Path) -> None:
    token = made(app)
    lock = FileLock(path)
    with closing(lock), lock.held():  # as another process does that writes for long
        assert app.test_client().get(CALL, headers=bearer(token)).status_code == 200
        assert last_used(database) is None
    until(lambda: last_used(database))


def test_a_use_is_not_kept_where_no_writes_are_taken(app: Flask, database: Database) -> None:
    token = made(app)
    app.extensions["ledger"].writer.stop()
    assert app.test_client().get(CALL, headers=bearer(token)).status_code == 200
    assert last_used(database) is None


def test_tokens_come_and_go_in_every_process_within_a_second(database: Database) -> None:
    first = call(database, "create", "first", "--scope", "read").stdout.strip()
    with serving(database, workers=2, require_token="on", log_level="debug") as server:
        assert server.request("GET", CALL, headers=bearer(first)).status == 200
        with closing(database.ledger()) as ledger:
            second = ledger.write(tokens.create, "second", "write")
            assert settled(server, second) == {200}
            ledger.write(tokens.revoke, "first")
            assert settled(server, first) == {401}
        assert server.request("GET", CALL, headers=bearer(second)).status == 200
        server.stop()
    text = server.log.read_text()
    assert CALL in text
    assert not [secret for secret in (first, second, "amf_", sha256(first.encode()).hexdigest()) if secret in text]
    assert re.search(r"second +write +\S+ +\d{4}-", call(database, "list").stdout)


def settled(server: Server, token: str) -> set[int]:
    """What requests are answered that begin a second from now, on so many connections that every process is met."""
    begin = time.monotonic() + 1.0
    answered: list[int] = []
    while len(answered) < 30:
        is_late = time.monotonic() >= begin
        reply = server.request("GET", CALL, headers=bearer(token))
        assert token not in reply.raw.decode() + str(reply.headers)
        answered += [reply.status] if is_late else []
    return set(answered)


NETWORK = {"AMELIA_HOST": "0.0.0.0"}
REQUIRED = {"AMELIA_REQUIRE_TOKEN": "on"}
SERVE = ["-m", "amelia_flask", "serve"]
GUNICORN = ["-m", "gunicorn", "wsgi:app"]


def start(command: list[str], database: Database, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    given = {**database.settings, "AMELIA_PORT": str(free_port())} | settings
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [(NETWORK, "AMELIA_HOST=0.0.0.0 opens the service to a network"), (REQUIRED, "AMELIA_REQUIRE_TOKEN is on")],
)
@pytest.mark.parametrize("command", [SERVE, GUNICORN])
def test_a_service_that_nobody_could_enter_does_not_start(
    database: Database, command: list[str], settings: dict[str, str], reason: str
) -> None:
    done = start(command, database, settings)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if "Error:" in line]
    assert reason in said
    assert "set AMELIA_API_TOKEN, or make one with `amelia-flask token create NAME --scope read|write`" in said
    assert "Traceback" not in done.stderr


def test_gunicorns_own_options_open_no_service_that_asks_for_no_token(database: Database) -> None:
    done = start([*GUNICORN, "--bind", f"0.0.0.0:{free_port()}"], database, {})
    assert done.returncode == 1
    assert "gunicorn listens on 0.0.0.0, which opens the service to a network: set AMELIA_HOST" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"require_token": "on"}])
def test_a_stored_token_is_enough_to_start(database: Database, settings: dict[str, str]) -> None:
    with closing(database.ledger()) as ledger:
        token = ledger.write(tokens.create, "agents", "read")
    with serving(database, None, **settings) as server:
        assert server.request("GET", CALL).status == 401
        assert server.request("GET", CALL, headers=bearer(token)).status == 200
        assert server.request("POST", CALL, {}, headers=bearer(token)).status == 403
