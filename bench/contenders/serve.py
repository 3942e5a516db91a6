"""Serves a contender as the service is served: gunicorn with the same settings, and its own threaded worker.

`python -m bench.contenders.serve NAME` takes the settings of the service from the same environment variables.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from gunicorn.app.base import BaseApplication

from amelia_flask.server import options
from amelia_flask.settings import Settings, from_environment

SHARED = ("bind", "workers", "threads", "timeout", "graceful_timeout", "keepalive", "control_socket_disable")


class Contender(BaseApplication):
    """gunicorn with the module's application."""

    def __init__(self, module: ModuleType, settings: Settings) -> None:
        self._module = module
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn."""
        ours = options(self._settings)
        for name in SHARED:
            self.cfg.set(name, ours[name])
        self.cfg.set("worker_class", "gthread")
        self.cfg.set("loglevel", self._settings.log_level)
        self.cfg.set("on_starting", lambda _arbiter: self._module.prepare(self._settings.database_path))
        if self._settings.pin_workers:
            self.cfg.set("post_fork", _pin)

    def load(self) -> Any:
        """Called by gunicorn in each process."""
        return self._module.create_app()


def _pin(_arbiter: Any, worker: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(worker.age - 1) % len(cores)]})


if __name__ == "__main__":
    Contender(importlib.import_module(f"bench.contenders.{sys.argv[1]}"), from_environment()).run()
