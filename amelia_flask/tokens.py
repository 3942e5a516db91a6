"""Access tokens: an operator makes, lists and revokes them; every process recognises them.

A token is random and long, so its SHA-256 can neither be guessed nor searched for: nothing slower is needed, and
nothing but the digest is kept.
"""

import hmac
import re
import secrets
import time
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from amelia_flask import clock
from amelia_flask.database import Prepared, param
from amelia_flask.errors import DatabaseUnavailable, IdReused, NotFound, ValidationError
from amelia_flask.ledger import Ledger
from amelia_flask.models import AccessToken

Scope = Literal["read", "write"]

PREFIX = "amf_"
LENGTH = len(PREFIX) + 43
# What a process knows is never older than this: a token is made and revoked in every process within a second.
MAX_AGE_SECONDS = 0.5
# How exactly it is known when a token was used last.
USE_SECONDS = 60.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_INDEXED_DIGITS = 16


class Token(NamedTuple):
    """What is kept of a token; times as stored text."""

    name: str
    digest: str
    scope: Scope
    created_at: str
    last_used_at: str | None


_ALL = Prepared(
    lambda: AccessToken.select(
        AccessToken.name, AccessToken.digest, AccessToken.scope, AccessToken.created_at, AccessToken.last_used_at
    ).order_by(AccessToken.name)
)
_INSERT = Prepared(
    lambda: (
        AccessToken.insert(
            name=param("name"), digest=param("digest"), scope=param("scope"), created_at=param("created_at")
        )
        .on_conflict_ignore()
        .returning(AccessToken.name)
    )
)
_DELETE = Prepared(lambda: AccessToken.delete().where(AccessToken.name == param("name")).returning(AccessToken.name))
_NOTE_USE = Prepared(
    lambda: AccessToken.update(last_used_at=param("now")).where(
        AccessToken.name == param("name"),
        AccessToken.last_used_at.is_null() | (AccessToken.last_used_at < param("before")),
    )
)


def create(db: Any, name: str, scope: Scope) -> str:
    """Make a token and give its text, which is kept nowhere.

    Raises ValidationError for a malformed name, IdReused for one that is taken.
    """
    if not _NAME.fullmatch(name):
        raise ValidationError("The name of a token is 1-64 letters, digits and . _ - and begins with none of these.")
    text = PREFIX + secrets.token_urlsafe(32)
    now = clock.to_text(clock.now())
    if not _INSERT.run(db, name=name, digest=_digest(text), scope=scope, created_at=now):
        raise IdReused(f"There is a token named {name} already; revoke it first, or choose another name.")
    return text


def stored(db: Any) -> list[Token]:
    """Every token that is in force, by name."""
    return [Token(*row) for row in _ALL.run(db)]


def revoke(db: Any, name: str) -> None:
    """Take a token out of force. Raises NotFound."""
    if not _DELETE.run(db, name=name):
        raise NotFound(f"There is no token named {name}.")


def note_use(db: Any, name: str, now: datetime) -> None:
    """Keep when a token was used, unless that was kept within the last minute."""
    before = now - timedelta(seconds=USE_SECONDS)
    _NOTE_USE.run(db, name=name, now=clock.to_text(now), before=clock.to_text(before))


class Keyring:
    """Recognises tokens in one process: the one of the settings, and those that are stored."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        own = ledger.settings.api_token
        self._own = None if own is None else own.encode()
        self._read: tuple[float, dict[str, Token]] = (float("-inf"), {})
        self._noted_at: dict[str, float] = {}

    def scope_of(self, text: str) -> Scope | None:
        """What the bearer of `text` may do; None for one that is no token. Raises DatabaseUnavailable."""
        if self._own is not None and hmac.compare_digest(text.encode(), self._own):
            return "write"
        if len(text) != LENGTH or not text.startswith(PREFIX):
            return None
        digest = _digest(text)
        now = time.monotonic()
        token = self._tokens(now).get(digest[:_INDEXED_DIGITS])
        if token is None or not hmac.compare_digest(digest, token.digest):
            return None
        self._note_use(token.name, now)
        return token.scope

    def _tokens(self, now: float) -> dict[str, Token]:
        """The stored tokens by the beginning of their digests, which tells nobody anything of a token."""
        read_at, known = self._read
        if now - read_at >= MAX_AGE_SECONDS:
            known = {token.digest[:_INDEXED_DIGITS]: token for token in self._ledger.read(stored)}
            self._read = now, known
        return known

    def _note_use(self, name: str, now: float) -> None:
        if now - self._noted_at.get(name, float("-inf")) >= USE_SECONDS:
            self._noted_at[name] = now
            with suppress(DatabaseUnavailable):  # worth no request: the next minute tells it again
                self._ledger.submit_to((), note_use, name, clock.now())


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
