"""How long commands tell how far they are, on a terminal and elsewhere."""

import os
import subprocess
import sys
import time

import pytest

from amelia_flask.progress import MEGABYTES, Unit, progress

STEPS = [1_500_000, 500_000, 2_000_000]
ROWS = Unit("rows", 1)


def run(every: float, unit: Unit = MEGABYTES) -> None:
    with progress("Storing", sum(STEPS), unit, every) as step:
        for more in STEPS:
            step(more)


def test_off_a_terminal_each_line_says_how_much_is_done_how_fast_and_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(every=0)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "Storing: 1.5 of 4.0 MB",
        "Storing: 2.0 of 4.0 MB",
        "Storing: 4.0 of 4.0 MB",
    ]
    assert all(" MB/s, 0:00:0" in line and line.endswith(" left") for line in lines)
    assert said.out == ""
    assert "\r" not in said.err


def test_other_things_than_bytes_are_counted_whole(capsys: pytest.CaptureFixture[str]) -> None:
    run(every=0, unit=ROWS)
    assert capsys.readouterr().err.startswith("Storing: 1500000 of 4000000 rows, ")


def test_a_short_command_stays_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(every=60)
    assert capsys.readouterr().err == ""


def test_lines_come_no_more_often_than_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    until = time.monotonic() + 0.35
    with progress("Storing", 10**9, every=0.1) as step:
        while time.monotonic() < until:
            step(1000)
    assert 1 <= len(capsys.readouterr().err.splitlines()) <= 3


@pytest.mark.parametrize("length", [0, 4_000_000, 9_000_000])
def test_a_terminal_shows_a_bar_with_rate_and_leaves_it_whole(length: int) -> None:
    ours, theirs = os.openpty()
    program = f"""
from amelia_flask.progress import progress
with progress("Storing", {length}) as step:
    step(1000)
    step(max(0, {length} - 1000))
"""
    subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert b"Storing" in shown
    assert b"MB/s" in shown
    assert b"100%" in shown or not length
    assert shown.endswith((b"\n", b"\x1b[?25h"))
