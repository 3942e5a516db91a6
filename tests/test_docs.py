"""The documents say what there is, and what they show works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
from flask import Flask

from amelia_flask import errors
from amelia_flask.cli import main
from amelia_flask.errors import AmeliaError, SchemaError, SettingsError
from amelia_flask.settings import Settings
from tests.serving import Server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# Those that end a command with a sentence and never reach HTTP.
NOT_HTTP = {SettingsError, SchemaError, AmeliaError}
CODES = sorted(
    {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AmeliaError)}
)


def commands(group: click.Group, path: str = "amelia-flask") -> list[str]:
    """Every command with the groups that lead to it."""
    found: list[str] = []
    for name, command in group.commands.items():
        here = f"{path} {name}"
        found += commands(command, here) if isinstance(command, click.Group) else [here]
    return found


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_in_the_readme_with_its_default(field: msgspec.structs.FieldInfo) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `AMELIA_{field.name.upper()}` |"))
    default = row.split("|")[2]
    if isinstance(field.default, bool):
        assert f"`{'on' if field.default else 'off'}`" in default
    elif isinstance(field.default, str | int) and field.default != "":
        assert f"`{field.default}`" in default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_no_setting_that_is_not(page: Path) -> None:
    known = {f"AMELIA_{name.upper()}" for name in Settings.__struct_fields__} | {"AMELIA_TEST_POSTGRES_URL"}
    assert set(re.findall(r"AMELIA_[A-Z_]+[A-Z]", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("command", commands(main))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"| `{command}" in README


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_is_in_the_readme(code: str) -> None:
    assert f"`{code}`" in README


def braces(rule: str) -> str:
    """A rule as the README writes it."""
    return re.sub(r"<(?:uuid:)?(.+?)>", r"{\1}", rule)


def test_every_route_is_in_the_readme_and_no_other(app: Flask) -> None:
    there = {
        f"{method} {braces(rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(re.findall(r"`((?:GET|POST|PATCH|DELETE|PUT) /[^`]*)`", README)) == there


def test_every_module_has_its_room_in_the_architecture() -> None:
    names = {file.name for file in (ROOT / "amelia_flask").glob("*.py") if not file.name.startswith("__")}
    names |= {f"{folder.parent.name}/" for folder in (ROOT / "amelia_flask").glob("*/__init__.py")}
    rooms = set(re.findall(r"`([a-z_]+(?:\.py|/))`", ARCHITECTURE.split("## How a write travels")[0]))
    assert names - rooms == set()


def test_every_dependency_has_its_reason() -> None:
    for name in re.findall(r'^    "([a-z0-9-]+)[>=]', PROJECT, re.MULTILINE):
        assert re.search(rf"\b{name}\b", ARCHITECTURE.split("## Libraries")[1]), name


def blocks(language: str) -> list[str]:
    """The README's code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_curl_lines_work(server: Server) -> None:
    script = next(block for block in blocks("sh") if "curl" in block).replace("http://127.0.0.1:8420", server.url)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status":"completed"' in done.stdout
    assert '"approval_granted"' in done.stdout


def test_the_orchestrator_works(server: Server) -> None:
    script = blocks("python")[0].replace("http://127.0.0.1:8420", server.url)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
