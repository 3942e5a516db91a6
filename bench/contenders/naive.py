"""The same record kept as one would at first: Flask's JSON, Peewee's models, one IMMEDIATE transaction a request."""

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from peewee import BigIntegerField, CompositeKey, ForeignKeyField, Model, TextField
from playhouse.pool import PooledSqliteDatabase

database = PooledSqliteDatabase(
    None,
    pragmas={"busy_timeout": 30_000, "journal_mode": "wal", "synchronous": "full", "foreign_keys": 1},
    lock_type="IMMEDIATE",
    max_connections=64,
    check_same_thread=False,
)


class Workflow(Model):
    """One run."""

    id = TextField(primary_key=True)
    issue_id = TextField()
    worktree_path = TextField()
    last_sequence = BigIntegerField(default=0)

    class Meta:
        database = database


class Event(Model):
    """One thing that happened in it."""

    id = TextField(unique=True)
    workflow = ForeignKeyField(Workflow, on_delete="CASCADE")
    sequence = BigIntegerField()
    timestamp = TextField()
    agent = TextField()
    event_type = TextField(index=True)
    level = TextField()
    message = TextField()
    data_json = TextField(null=True)

    class Meta:
        database = database
        primary_key = CompositeKey("workflow", "sequence")


def prepare(path: Path) -> None:
    """Make the tables before a process is forked, and leave nothing open."""
    database.init(str(path))
    with database.connection_context():
        database.create_tables([Workflow, Event])
    database.close_all()


def create_app() -> Flask:
    """What it takes to store events."""
    app = Flask("naive", static_folder=None)

    @app.before_request
    def connect() -> None:
        database.connect(reuse_if_open=True)

    @app.teardown_request
    def close(_error: BaseException | None) -> None:
        if not database.is_closed():
            database.close()

    @app.get("/api/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/api/workflows")
    def create() -> tuple[Response, int]:
        body: dict[str, Any] = request.get_json()
        workflow = Workflow.create(
            id=str(uuid.uuid4()), issue_id=body["issue_id"], worktree_path=body["worktree_path"]
        )
        return jsonify({"id": workflow.id}), 201

    @app.post("/api/workflows/<workflow_id>/events")
    def append(workflow_id: str) -> tuple[Response, int]:
        event = store(workflow_id, request.get_json())
        return jsonify({"events": [{"id": event.id, "sequence": event.sequence}], "duplicates": 0}), 201

    return app


def store(workflow_id: str, body: dict[str, Any]) -> Event:
    """The event with the next number of its workflow."""
    with database.atomic():
        workflow = Workflow.get_by_id(workflow_id)
        workflow.last_sequence += 1
        workflow.save()
        event: Event = Event.create(
            id=body.get("id") or str(uuid.uuid4()),
            workflow=workflow,
            sequence=workflow.last_sequence,
            timestamp=datetime.now(UTC).isoformat(),
            agent=body["agent"],
            event_type=body["event_type"],
            level=body.get("level", "info"),
            message=body["message"],
            data_json=json.dumps(body["data"]) if body.get("data") else None,
        )
        return event
