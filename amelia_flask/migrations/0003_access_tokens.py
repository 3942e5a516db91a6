"""Tokens that an operator makes and revokes while the service runs."""

from typing import Any

TABLE = (
    'CREATE TABLE "access_tokens" ("name" TEXT NOT NULL PRIMARY KEY, "digest" TEXT NOT NULL, "scope" TEXT NOT NULL '
    "CHECK (scope IN ('read', 'write')), \"created_at\" TEXT NOT NULL, \"last_used_at\" TEXT) WITHOUT ROWID"
)


def up(migrator: Any, db: Any) -> None:  # noqa: ARG001 - the signature that the runner calls
    """Create the table."""
    db.execute_sql(TABLE)
