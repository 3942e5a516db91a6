"""The command line, as a shell runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amelia_flask import __version__
from tests.databases import Database
from tests.serving import Server

ROOT = Path(__file__).parent.parent
TRANSCRIPTS = Path(__file__).parent / "data" / "claude-code"


def run(*arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """`amelia-flask` with these arguments and AMELIA_* settings."""
    command = [sys.executable, "-m", "amelia_flask", *arguments]
    return subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=False, input=stdin
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["import"],
        ["import", "claude-code", "--help"],
        *([name, "--help"] for name in ("serve", "init-db", "prune", "backup", "restore", "check")),
    ],
)
def test_every_command_explains_itself(arguments: list[str]) -> None:
    done = run(*arguments)
    assert "Usage: amelia-flask" in done.stdout + done.stderr


def test_the_version_is_said() -> None:
    assert __version__ in run("--version").stdout


def test_init_db_sets_the_database_up_and_then_finds_it_up_to_date(empty_database: Database) -> None:
    first, again = (run("init-db", **empty_database.settings) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0)
    assert str(empty_database.engine) in first.stdout
    assert "up to date" in again.stdout
    assert empty_database.rows("SELECT COUNT(*) FROM workflows") == [(0,)]


def test_init_db_makes_a_private_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "amelia.db"
    assert run("init-db", AMELIA_DATABASE_PATH=str(path)).returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"AMELIA_PORT": "x"}, "AMELIA_PORT is malformed"),
        ({"AMELIA_PROT": "1"}, "AMELIA_PROT is not a setting"),
        ({"AMELIA_ALLOWED_HOSTS": "http://a.example"}, "which is no host name"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "init-db"])
def test_a_bad_setting_is_one_sentence_on_standard_error(
    command: str, settings: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = run(command, **{"AMELIA_DATABASE_PATH": str(tmp_path / "a.db")} | settings)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "a.db").exists()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text(
        "This is a shopping list, and quite a long one, longer than the header of a database file is.\n" * 9
    )
    done = run("serve", AMELIA_DATABASE_PATH=str(path))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert path.read_text().startswith("This is a shopping list")


def test_an_import_says_what_it_did_and_names_what_it_left_out(empty_database: Database) -> None:
    done = [run("import", "claude-code", str(TRANSCRIPTS), **empty_database.settings) for _ in range(2)]
    assert [one.returncode for one in done] == [0, 0]
    assert "26 events new, 0 known" in done[0].stdout
    assert "0 events new, 26 known" in done[1].stdout
    assert "4 workflows" in done[1].stdout
    assert f"{TRANSCRIPTS / 'edge_cases.jsonl'}:13: Expected `object`, got `str`" in done[0].stderr
    assert empty_database.rows("SELECT COUNT(*) FROM token_usage") == [(10,)]


def test_an_import_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "amelia_flask", "import", "claude-code", str(TRANSCRIPTS)]
    environment = os.environ | {"AMELIA_DATABASE_PATH": str(tmp_path / "a.db")}
    subprocess.run(command, env=environment, stderr=theirs, stdout=subprocess.DEVNULL, check=True, timeout=60)
    os.close(theirs)
    assert b"100%" in os.read(ours, 65536)
    os.close(ours)


def test_a_path_that_is_not_there_ends_an_import_with_a_sentence(tmp_path: Path) -> None:
    done = run("import", "claude-code", str(tmp_path / "none"), AMELIA_DATABASE_PATH=str(tmp_path / "a.db"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_serve_says_where_the_database_is_and_what_to_open(empty_database: Database) -> None:
    server = Server(empty_database).start()
    assert server.stop() == 0
    said = server.log.read_text()
    assert str(empty_database.engine) in said
    assert f"{server.url}/api/health" in said
    assert f"{server.url}/api/docs" in said


def test_the_shell_has_models_database_and_domain_at_hand(empty_database: Database) -> None:
    lines = [
        "from amelia_flask.workflows import NewWorkflow",
        "made, _ = ledger.write(workflows.create, NewWorkflow(issue_id='S-1', worktree_path='/s'))",
        "print('found', [w.issue_id for w in Workflow.select()], Event.select().count())",
        "print('domain', summaries.active(database).total, moves.MOVES.keys() >= {'start'}, timeline.page)",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "amelia_flask", "shell"],
        env=os.environ | dict(empty_database.settings),
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    assert "found ['S-1'] 1" in done.stdout
    assert "domain 1 True" in done.stdout
