"""Python programs in processes of their own, for what one process alone cannot show."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

SECONDS = 30.0
ROOT = Path(__file__).parent.parent


def start(code: str, *arguments: object, **settings: str) -> subprocess.Popen[str]:
    """A program with `sys`, `Path` and its first argument, if there is one, as `path`.

    It is spoken to over its standard streams; `settings` are added to its environment.
    """
    whole = f"import sys\nfrom pathlib import Path\npath = Path(*sys.argv[1:2])\n{dedent(code)}"
    command = [sys.executable, "-c", whole, *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = os.environ | settings
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(program: subprocess.Popen[str], said: str = "") -> str:
    """What it printed, when it has been told the rest and ended well."""
    out, err = program.communicate(said, SECONDS)
    assert program.returncode == 0, err
    return out


def run(code: str, *arguments: object, **settings: str) -> str:
    """What a program printed."""
    return finish(start(code, *arguments, **settings))


def wait_for_line(program: subprocess.Popen[str], line: str) -> None:
    """Until it has printed this line."""
    assert program.stdout is not None
    found = program.stdout.readline().strip()
    assert found == line, (found, program.communicate(timeout=SECONDS)[1])


def tell_all(programs: list[subprocess.Popen[str]]) -> None:
    """Let programs that wait for a line begin at one moment."""
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()


def open_files(folder: Path) -> set[str]:
    """The names of the files in this folder that this process has open."""
    fds = Path("/proc/self/fd")
    opened = [Path(os.readlink(fds / name)) for name in os.listdir(fds) if (fds / name).is_symlink()]
    return {file.name for file in opened if file.parent == folder}
