"""What retention needs: to find what has ended, and to know again what it took."""

from typing import Any

STATEMENTS = (
    ('CREATE INDEX "idx_workflows_completed_at" ON "workflows" ("completed_at") WHERE ("completed_at" IS NOT NULL)'),
    'CREATE TABLE "pruned_workflows" ("id" TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID',
)


def up(migrator: Any, db: Any) -> None:  # noqa: ARG001 - the signature that the runner calls
    """Create the index and the table."""
    for statement in STATEMENTS:
        db.execute_sql(statement)
