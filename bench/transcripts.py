"""A corpus of Claude Code transcripts, the same for the same seed: what months of work leave on disk."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

BEGIN = datetime(2025, 6, 1, tzinfo=UTC)
TURNS = (5, 120)  # of a session: requests to the model
PIECES = (
    "the request is validated before it reaches the handler",
    "so we return early when the cache already holds a value",
    "def test_parse(self):\n        assert result == expected\n",
    "import json\nfrom pathlib import Path\n\n",
    'raise ValueError("no such key")\n',
    "\tif not found:\n\t\tlogger.warning(path)\n",
    '{"status": "ok", "items": [1, 2, 3]}',
    "# naïve → 日本語",
)


def write(folder: Path, size: int, seed: int = 1) -> int:
    """Write files of at least `size` bytes in all; give their exact number of bytes."""
    chance = random.Random(seed)
    prose = " ".join(chance.choices(PIECES, k=10_000))
    written = number = 0
    while written < size:
        project = folder / f"-home-dev-project-{number % 20}"
        project.mkdir(parents=True, exist_ok=True)
        session = _Session(chance, prose, number)
        path = project / f"{session.id}.jsonl"
        path.write_text("".join(session.lines()), encoding="utf-8")
        written += path.stat().st_size
        number += 1
    return written


class _Session:
    """One session, which is one file."""

    def __init__(self, chance: random.Random, prose: str, number: int) -> None:
        self._chance = chance
        self._prose = prose
        self._now = BEGIN + timedelta(hours=number)
        self._last: str | None = None
        self._cwd = f"/home/dev/project-{number % 20}"
        self.id = self._uuid()

    def lines(self) -> Iterator[str]:
        """A summary, then prompts, answers in two lines that repeat their usage, and the results of tools."""
        yield _json({"type": "summary", "summary": self._text(40, 80), "leafUuid": self._uuid()})
        for turn in range(self._chance.randint(*TURNS)):
            if turn % 8 == 0:
                yield self._line("user", message={"role": "user", "content": self._text(40, 1500)})
            yield from self._turn(turn % 25 == 24)

    def _turn(self, is_sidechain: bool) -> Iterator[str]:
        answer = {"id": f"msg_{self._hex(24)}", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
        request = {"requestId": f"req_{self._hex(24)}", "isSidechain": is_sidechain}
        tool: dict[str, Any] = {
            "type": "tool_use",
            "id": f"toolu_{self._hex(24)}",
            "name": self._chance.choice(["Read", "Bash", "Edit"]),
            "input": {"file_path": f"{self._cwd}/src/{self._hex(6)}.py", "content": self._text(20, 1200)},
        }
        used = self._usage()
        for content in ({"type": "text", "text": self._text(40, 900)}, tool):
            yield self._line("assistant", message=answer | {"content": [content], "usage": used}, **request)
        yield self._result(tool["id"], is_sidechain)

    def _result(self, tool: str, is_sidechain: bool) -> str:
        """What a tool gave back stands in the line twice: for the model, and for the terminal."""
        text = self._text(200, 6000)
        block = {
            "type": "tool_result",
            "tool_use_id": tool,
            "content": text,
            "is_error": self._chance.random() < 0.05,
        }
        message = {"role": "user", "content": [block]}
        return self._line(
            "user", isSidechain=is_sidechain, message=message, toolUseResult={"stdout": text, "stderr": ""}
        )

    def _line(self, kind: str, **members: Any) -> str:
        self._now += timedelta(milliseconds=self._chance.randint(20, 20_000))
        parent, self._last = self._last, self._uuid()
        common = {
            "parentUuid": parent,
            "isSidechain": False,
            "userType": "external",
            "cwd": self._cwd,
            "sessionId": self.id,
            "version": "2.0.14",
            "gitBranch": "main",
            "type": kind,
            "uuid": self._last,
            "timestamp": self._now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        return _json(common | members)

    def _usage(self) -> dict[str, Any]:
        written = self._chance.randint(100, 4000)
        return {
            "input_tokens": self._chance.randint(1, 50),
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": self._chance.randint(10_000, 150_000),
            "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
            "output_tokens": self._chance.randint(20, 1500),
            "service_tier": "standard",
        }

    def _text(self, least: int, most: int) -> str:
        start = self._chance.randrange(len(self._prose) - most)
        return self._prose[start : start + self._chance.randint(least, most)]

    def _hex(self, digits: int) -> str:
        return f"{self._chance.getrandbits(4 * digits):0{digits}x}"

    def _uuid(self) -> str:
        return str(UUID(int=self._chance.getrandbits(128), version=4))


def _json(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
