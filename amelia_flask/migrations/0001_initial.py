"""The first schema, frozen as it was: a record of the past, independent of today's models."""

from typing import Any

STATEMENTS = (
    (
        'CREATE TABLE "workflows" ("id" TEXT NOT NULL PRIMARY KEY, "issue_id" TEXT NOT NULL, "worktree_path" '
        'TEXT NOT NULL, "worktree_name" TEXT NOT NULL, "status" TEXT NOT NULL DEFAULT \'pending\' CHECK (status '
        "IN ('pending', 'in_progress', 'blocked', 'completed', 'failed', 'cancelled')), \"started_at\" TEXT, "
        '"completed_at" TEXT, "failure_reason" TEXT, "state_json" TEXT, "created_at" TEXT NOT NULL, '
        '"updated_at" TEXT NOT NULL, "host" TEXT NOT NULL DEFAULT \'\', "profile" TEXT, "last_sequence" INTEGER '
        'NOT NULL DEFAULT 0, "version" INTEGER NOT NULL DEFAULT 1, "digest" TEXT NOT NULL, "usage_count" '
        'INTEGER NOT NULL DEFAULT 0, "total_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (total_tokens BETWEEN 0 '
        'AND 4611686018427387904), "unpriced_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (unpriced_tokens '
        'BETWEEN 0 AND 4611686018427387904), "cost_nano" INTEGER NOT NULL DEFAULT 0 CHECK (cost_nano BETWEEN '
        "0 AND 4611686018427387904))"
    ),
    'CREATE INDEX "idx_workflows_issue_id" ON "workflows" ("issue_id")',
    'CREATE INDEX "idx_workflows_status" ON "workflows" ("status")',
    'CREATE INDEX "idx_workflows_worktree" ON "workflows" ("worktree_path")',
    'CREATE INDEX "idx_workflows_started_at" ON "workflows" ("started_at" DESC)',
    'CREATE INDEX "idx_workflows_created_at" ON "workflows" ("created_at" DESC, "id" DESC)',
    (
        'CREATE UNIQUE INDEX "idx_workflows_active_worktree" ON "workflows" ("host", "worktree_path") WHERE '
        "(\"status\" IN ('pending', 'in_progress', 'blocked'))"
    ),
    (
        'CREATE TABLE "events" ("workflow_id" TEXT NOT NULL, "sequence" INTEGER NOT NULL, "id" TEXT NOT NULL, '
        '"position" INTEGER NOT NULL, "timestamp" TEXT NOT NULL, "agent" TEXT NOT NULL, "event_type" TEXT NOT '
        "NULL, \"level\" TEXT NOT NULL DEFAULT 'info' CHECK (level IN ('debug', 'info', 'warning', 'error')), "
        '"message" TEXT NOT NULL, "data_json" TEXT, "correlation_id" TEXT, PRIMARY KEY ("workflow_id", '
        '"sequence"), FOREIGN KEY ("workflow_id") REFERENCES "workflows" ("id") ON DELETE CASCADE) WITHOUT '
        "ROWID"
    ),
    'CREATE UNIQUE INDEX "events_id" ON "events" ("id")',
    'CREATE UNIQUE INDEX "events_position" ON "events" ("position")',
    'CREATE INDEX "idx_events_workflow" ON "events" ("workflow_id", "timestamp")',
    'CREATE INDEX "idx_events_type" ON "events" ("event_type", "position")',
    'CREATE TABLE "event_position" ("id" INTEGER NOT NULL PRIMARY KEY, "value" INTEGER NOT NULL)',
    'CREATE TABLE "health_check" ("id" TEXT NOT NULL PRIMARY KEY, "checked_at" TEXT NOT NULL)',
    (
        'CREATE TABLE "models_by_day" ("day" TEXT NOT NULL, "model" TEXT NOT NULL, "workflows" INTEGER NOT '
        'NULL DEFAULT 0, "finished" INTEGER NOT NULL DEFAULT 0, "successful" INTEGER NOT NULL DEFAULT 0, '
        'PRIMARY KEY ("day", "model")) WITHOUT ROWID'
    ),
    (
        'CREATE TABLE "open_stages" ("workflow_id" TEXT NOT NULL, "stage" TEXT NOT NULL, "sequence" INTEGER '
        'NOT NULL, PRIMARY KEY ("workflow_id", "stage"), FOREIGN KEY ("workflow_id") REFERENCES "workflows" '
        '("id") ON DELETE CASCADE) WITHOUT ROWID'
    ),
    (
        'CREATE TABLE "token_usage" ("id" TEXT NOT NULL PRIMARY KEY, "workflow_id" TEXT NOT NULL, "number" '
        'INTEGER NOT NULL, "agent" TEXT NOT NULL, "model" TEXT NOT NULL, "input_tokens" INTEGER NOT NULL, '
        '"output_tokens" INTEGER NOT NULL, "cache_read_tokens" INTEGER NOT NULL DEFAULT 0, '
        '"cache_creation_tokens" INTEGER NOT NULL DEFAULT 0, "cost_usd" REAL, "cost_nano" INTEGER, '
        "\"savings_nano\" INTEGER, \"cost_source\" TEXT NOT NULL CHECK (cost_source IN ('reported', 'computed', "
        '\'unpriced\')), "timestamp" TEXT NOT NULL, "day" TEXT NOT NULL, "request_id" TEXT, "source" TEXT, '
        'FOREIGN KEY ("workflow_id") REFERENCES "workflows" ("id") ON DELETE CASCADE)'
    ),
    'CREATE UNIQUE INDEX "idx_tokens_workflow" ON "token_usage" ("workflow_id", "number")',
    'CREATE INDEX "idx_tokens_agent" ON "token_usage" ("agent")',
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
        '("day", "agent", "model")) WITHOUT ROWID'
    ),
    (
        'CREATE TABLE "usage_by_workflow" ("workflow_id" TEXT NOT NULL, "agent" TEXT NOT NULL, "model" TEXT '
        'NOT NULL, "first_day" TEXT NOT NULL, "input_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (input_tokens '
        'BETWEEN 0 AND 4611686018427387904), "output_tokens" INTEGER NOT NULL DEFAULT 0 CHECK (output_tokens '
        'BETWEEN 0 AND 4611686018427387904), "cache_read_tokens" INTEGER NOT NULL DEFAULT 0 CHECK '
        '(cache_read_tokens BETWEEN 0 AND 4611686018427387904), "cache_creation_tokens" INTEGER NOT NULL '
        'DEFAULT 0 CHECK (cache_creation_tokens BETWEEN 0 AND 4611686018427387904), "unpriced_tokens" INTEGER '
        'NOT NULL DEFAULT 0 CHECK (unpriced_tokens BETWEEN 0 AND 4611686018427387904), "cost_nano" INTEGER '
        'NOT NULL DEFAULT 0 CHECK (cost_nano BETWEEN 0 AND 4611686018427387904), PRIMARY KEY ("workflow_id", '
        '"agent", "model"), FOREIGN KEY ("workflow_id") REFERENCES "workflows" ("id") ON DELETE CASCADE) '
        "WITHOUT ROWID"
    ),
    (
        'CREATE TABLE "workflows_by_day" ("day" TEXT NOT NULL PRIMARY KEY, "workflows" INTEGER NOT NULL '
        'DEFAULT 0, "finished" INTEGER NOT NULL DEFAULT 0, "successful" INTEGER NOT NULL DEFAULT 0, '
        '"duration_ms" INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID'
    ),
)


def up(migrator: Any, db: Any) -> None:  # noqa: ARG001 - the signature that the runner calls
    """Create the tables and indexes of version 0.1."""
    for statement in STATEMENTS:
        db.execute_sql(statement)
    db.execute_sql("INSERT INTO event_position (id, value) VALUES (1, 0)")
