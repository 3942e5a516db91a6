"""Who may import whom."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "amelia_flask"

# A module imports only those above it.
ROOMS = [
    "errors",
    "clock",
    "files",
    "counters",
    "logs",
    "progress",
    "settings",
    "strictjson",
    "fields",
    "redaction",
    "database",
    "lock",
    "sqlite",
    "postgres",
    "engines",
    "models",
    "schema",
    "groups",
    "writer",
    "pricing",
    "stages",
    "events",
    "timeline",
    "rollups",
    "usage",
    "summaries",
    "workflows",
    "moves",
    "report",
    "ledger",
    "tokens",
    "stream",
    "health",
    "retention",
    "backup",
    "audit",
    "transfer",
    "repricing",
    "demo",
    "metrics",
    "intake",
    "web",
    "app",
    "connections",
    "server",
    "client",
    "cli",
    "__main__",
]


def imported(file: Path) -> set[str]:
    """Every module that a file imports, by its full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str | None:
    """The room that a module of this package belongs to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "amelia_flask" and len(parts) > 1 and parts[1] in ROOMS else None


def modules() -> list[tuple[str, Path]]:
    files = [file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]
    return [(file.stem, file) for file in files] + [
        (folder, file)
        for folder in ("cli", "client", "intake", "postgres", "sqlite", "transfer", "web")
        for file in (PACKAGE / folder).glob("*.py")
    ]


def test_a_module_imports_only_those_above_it() -> None:
    for name, file in modules():
        for other in {room(found) for found in imported(file)} - {None, name}:
            assert ROOMS.index(str(other)) < ROOMS.index(name), f"{name} imports {other}"


def test_blueprints_never_import_one_another() -> None:
    blueprints = {"health", "workflows", "events", "usage", "docs", "metrics"}
    for name in blueprints:
        found = imported(PACKAGE / "web" / f"{name}.py")
        assert not {f"amelia_flask.web.{other}" for other in blueprints} & found


def words(file: Path) -> set[str]:
    """Every dotted name of two parts that a file uses."""
    nodes = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute))
    return {f"{node.value.id}.{node.attr}" for node in nodes if isinstance(node.value, ast.Name)}


def test_what_has_one_owner_stays_with_it() -> None:
    for name, file in modules():
        tops = {found.partition(".")[0] for found in imported(file)}
        assert "flask" not in tops or name in {"web", "app"}, file
        assert not tops & {"peewee", "playhouse"} or name not in {
            "intake",
            "web",
            "app",
            "server",
            "client",
            "cli",
        }, file
        assert "psycopg" not in tops or name == "postgres", file
        assert "psutil" not in tops or name == "health", file
        assert not {"os.environ", "os.getenv"} & words(file) or name == "settings", file


def test_functions_and_files_stay_short() -> None:
    for file in [*PACKAGE.rglob("*.py"), *Path(__file__).parent.glob("*.py")]:
        text = file.read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{file.name}: {node.name}"
