"""The same event stored as one would at first: Flask's JSON, Peewee's models, one IMMEDIATE transaction a request."""

import os
import uuid
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, jsonify, request
from peewee import BigIntegerField, CompositeKey, ForeignKeyField, Model, TextField
from playhouse.pool import PooledSqliteDatabase

PATH = os.environ["NAIVE_DATABASE"]

database = PooledSqliteDatabase(
    PATH,
    pragmas={"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1, "busy_timeout": 30_000},
    lock_type="IMMEDIATE",
    max_connections=64,
    check_same_thread=False,
)


class Workflow(Model):
    """One run."""

    id = TextField(primary_key=True)
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


def set_up(workflow_ids: list[str]) -> None:
    """Make the tables and the workflows."""
    with database.connection_context():
        database.create_tables([Workflow, Event])
        Workflow.insert_many([{"id": one} for one in workflow_ids]).execute()


def create_app() -> Flask:
    """One route that stores an event."""
    app = Flask("naive", static_folder=None)
    app.before_request(lambda: database.connect(reuse_if_open=True) and None)
    app.teardown_request(lambda _error: None if database.is_closed() else database.close())

    @app.post("/api/workflows/<workflow_id>/events")
    def append(workflow_id: str) -> tuple[Response, int]:
        body: dict[str, Any] = request.get_json()
        with database.atomic():
            workflow = Workflow.get_by_id(workflow_id)
            workflow.last_sequence += 1
            workflow.save()
            event = Event.create(
                id=body.get("id") or str(uuid.uuid4()),
                workflow=workflow,
                sequence=workflow.last_sequence,
                timestamp=datetime.now(UTC).isoformat(),
                agent=body["agent"],
                event_type=body["event_type"],
                level=body.get("level", "info"),
                message=body["message"],
                data_json=app.json.dumps(body["data"]) if body.get("data") else None,
            )
        return jsonify({"events": [{"id": event.id, "sequence": event.sequence}], "duplicates": 0}), 201

    return app
