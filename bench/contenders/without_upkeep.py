"""The service with the upkeep of the sums by day taken out: what that costs is the difference."""

from typing import Any

from amelia_flask import rollups
from amelia_flask.server import serve
from amelia_flask.settings import from_environment


class Nothing:
    """In the place of a query: does nothing and finds nothing."""

    def run(self, _db: Any, **_values: Any) -> list[Any]:
        """No rows."""
        return []


def take_out() -> None:
    """Neither usage nor models are summed by day any more."""
    nothing = Nothing()
    for name in ("_add_to_day", "_add_models", "_first_days"):
        assert hasattr(rollups, name), f"rollups.{name} is gone"
        setattr(rollups, name, nothing)


if __name__ == "__main__":
    take_out()
    serve(from_environment(), lambda: None)
