"""The stages of a workflow that have started and not completed, kept as events tell of them."""

from typing import Any

import msgspec
from peewee import EXCLUDED

from amelia_flask.database import Prepared, param
from amelia_flask.models import OpenStage

STARTED, COMPLETED = "stage_started", "stage_completed"
TYPES = frozenset({STARTED, COMPLETED})
LONGEST_STAGE = 200

_open_stage = Prepared(
    lambda: OpenStage.insert_many(
        [(param("workflow"), param("stage"), param("sequence"))],
        fields=[OpenStage.workflow, OpenStage.stage, OpenStage.sequence],
    ).on_conflict(
        conflict_target=[OpenStage.workflow, OpenStage.stage], update={OpenStage.sequence: EXCLUDED.sequence}
    )
)
_close_stage = Prepared(
    lambda: OpenStage.delete().where((OpenStage.workflow == param("workflow")) & (OpenStage.stage == param("stage")))
)


def note(tx: Any, workflow_id: str, event_type: str, data_json: str | None, sequence: int) -> None:
    """Keep the open stages by name: starting one again renews it, completing it ends it however often started."""
    stage = msgspec.json.decode(data_json or "{}").get("stage")
    if not isinstance(stage, str) or not 0 < len(stage) <= LONGEST_STAGE:
        return
    if event_type == STARTED:
        _open_stage.run(tx, workflow=workflow_id, stage=stage, sequence=sequence)
    else:
        _close_stage.run(tx, workflow=workflow_id, stage=stage)
