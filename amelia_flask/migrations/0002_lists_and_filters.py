"""Lists are read and counted along an index, filters find what is rare, sums stand in the order of the report."""

from typing import Any

STATEMENTS = (
    'DROP INDEX "idx_workflows_status"',
    'DROP INDEX "idx_workflows_worktree"',
    'DROP INDEX "idx_workflows_issue_id"',
    'CREATE INDEX "idx_workflows_status" ON "workflows" ("status", "created_at" DESC, "id" DESC)',
    'CREATE INDEX "idx_workflows_host" ON "workflows" ("host", "created_at" DESC, "id" DESC)',
    'CREATE INDEX "idx_workflows_host_status" ON "workflows" ("host", "status", "created_at" DESC, "id" DESC)',
    (
        'CREATE INDEX "idx_workflows_worktree" ON "workflows" ("worktree_path", "created_at" DESC, "id" DESC, '
        '"status", "host")'
    ),
    (
        'CREATE INDEX "idx_workflows_issue_id" ON "workflows" ("issue_id", "created_at" DESC, "id" DESC, '
        '"status", "host")'
    ),
    'CREATE INDEX "idx_events_agent" ON "events" ("agent", "position")',
    'CREATE INDEX "idx_events_level" ON "events" ("position") WHERE ("level" IN (\'warning\', \'error\'))',
    'CREATE INDEX "idx_open_stages_sequence" ON "open_stages" ("workflow_id", "sequence")',
    'CREATE INDEX "idx_usage_first_day" ON "usage_by_workflow" ("workflow_id", "model", "first_day")',
    (
        'CREATE TABLE "finished_workflows" ("status" TEXT NOT NULL PRIMARY KEY, "workflows" INTEGER NOT NULL '
        "DEFAULT 0) WITHOUT ROWID"
    ),
    (
        "INSERT INTO finished_workflows SELECT status, COUNT(*) FROM workflows "
        "WHERE status IN ('completed', 'failed', 'cancelled') GROUP BY status"
    ),
    # The order of a primary key cannot be changed in place.
    'ALTER TABLE "usage_by_day" RENAME TO "usage_by_day_before"',
    (
        'CREATE TABLE "usage_by_day" ("day" TEXT NOT NULL, "agent" TEXT NOT NULL, "model" TEXT NOT NULL, '
        '"input_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (input_tokens BETWEEN 0 AND 4611686018427387904), '
        '"output_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (output_tokens BETWEEN 0 AND 4611686018427387904), '
        '"cache_read_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (cache_read_tokens BETWEEN 0 AND '
        '4611686018427387904), "cache_creation_tokens" INTEGER NOT NULL DEFAULT 0 CHECK '
        '(cache_creation_tokens BETWEEN 0 AND 4611686018427387904), "unpriced_tokens" INTEGER NOT NULL '
        'DEFAULT 0 CHECK (unpriced_tokens BETWEEN 0 AND 4611686018427387904), "cost_nano" INTEGER NOT NULL '
        'DEFAULT 0 CHECK (cost_nano BETWEEN 0 AND 4611686018427387904), "savings_nano" INTEGER NOT NULL '
        "DEFAULT 0 CHECK (savings_nano BETWEEN -4611686018427387904 AND 4611686018427387904), PRIMARY KEY "
        '("day", "model", "agent")) WITHOUT ROWID'
    ),
    "INSERT INTO usage_by_day SELECT * FROM usage_by_day_before",
    "DROP TABLE usage_by_day_before",
)


def up(migrator: Any, db: Any) -> None:  # noqa: ARG001 - the signature that the runner calls
    """Make the indexes, the table and the new order."""
    for statement in STATEMENTS:
        db.execute_sql(statement)
