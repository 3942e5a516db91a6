"""The service under gunicorn: its settings, its hooks and its worker.

`amelia-flask serve` and `gunicorn wsgi:app` (through the root `gunicorn.conf.py`) take the same options from here.
"""

import ipaddress
import logging.config
import os
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from typing import Any

import msgspec
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from amelia_flask import counters, logs, schema, tokens
from amelia_flask.app import create_app
from amelia_flask.database import engine_is_mended, engine_version
from amelia_flask.errors import (
    AmeliaError,
    BadRequest,
    HeadersTooLarge,
    InternalError,
    SettingsError,
    UriTooLong,
)
from amelia_flask.ledger import Ledger
from amelia_flask.lock import SERVING, FileLock
from amelia_flask.retention import Retention
from amelia_flask.settings import Settings
from amelia_flask.web.access import HEADERS, REQUEST_ID, new_request_id
from amelia_flask.web.errors import body

log = logging.getLogger(__name__)

# A client that stops in the middle of a request holds a thread no longer than this.
RECEIVE_SECONDS = 5
# A process leaves within ten seconds of SIGTERM: its requests have this long, the writer the rest.
GRACEFUL_SECONDS = 8
CLOSERS = 4


def options(settings: Settings) -> dict[str, Any]:
    """gunicorn's options for these settings. Raises SettingsError for more processes than the engine bears."""
    level = settings.log_level
    held = FileLock(settings.database_path, SERVING)  # as long as this dictionary: gunicorn keeps what is in it
    return {
        "bind": bind_address(settings),
        "workers": workers(settings),
        "threads": settings.threads,
        "worker_class": "amelia_flask.server.Worker",
        "graceful_timeout": GRACEFUL_SECONDS,
        "timeout": 30,
        "keepalive": 75,
        "control_socket_disable": True,
        "forwarded_allow_ips": "",  # what proxies say is read in one place alone, `app.py`
        "loglevel": level,
        "logger_class": Logger,
        "logconfig_dict": logs.config(level, settings.log_format),
        "on_starting": lambda _arbiter: _or_exit(_begin, settings, held),
        "when_ready": lambda arbiter: _or_exit(_check_openness, settings, arbiter),
        "pre_fork": _give_slot,
        "post_fork": lambda _arbiter, worker: _begin_process(settings, worker),
        "post_worker_init": _begin_serving,
        "worker_exit": _end_process,
        "child_exit": lambda _arbiter, worker: counters.end_process(worker.slot),
    }


def bind_address(settings: Settings) -> str:
    """Where the service listens, as gunicorn writes it."""
    return f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"


def workers(settings: Settings) -> int:
    """How many processes: two where there are two cores, one on an SQLite that cannot bear more."""
    if engine_is_mended():
        return settings.workers or min(2, os.cpu_count() or 1)
    if settings.workers is not None and settings.workers > 1:
        problem = f"SQLite {engine_version()} can lose rows with more than one process"
        raise SettingsError(f"AMELIA_WORKERS={settings.workers}, but {problem}.")
    return 1


def prepare(settings: Settings) -> None:
    """Bring the database up to date before any process is forked. Raises SchemaError.

    Raises SettingsError for a service that would ask for a token where there is none.
    """
    schema.set_up(settings.database_path)
    _check_token(settings)
    if not engine_is_mended():
        log.warning(
            "SQLite %s has the WAL-reset bug: one process alone may write. Install pysqlite3.", engine_version()
        )


def _begin(settings: Settings, held: FileLock) -> None:
    """Hold the database against being replaced, while any process of this server is alive; then prepare it."""
    settings.database_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    held.share()
    prepare(settings)


def _check_token(settings: Settings) -> None:
    if settings.asks_for_token and settings.api_token is None and not _stored_tokens(settings):
        opens = f"AMELIA_HOST={settings.host} opens the service to a network"
        raise SettingsError(
            f"{'AMELIA_REQUIRE_TOKEN is on' if settings.is_loopback else opens}, but there is no token: set "
            "AMELIA_API_TOKEN, or make one with `amelia-flask token create NAME --scope read|write`."
        )


def _stored_tokens(settings: Settings) -> list[tokens.Token]:
    with closing(Ledger(settings)) as ledger:
        return ledger.read(tokens.stored)


def _check_openness(settings: Settings, arbiter: Any) -> None:
    """Refuse to listen, by an option of gunicorn's own, where the settings would let everybody in."""
    if settings.asks_for_token:
        return
    names = [listener.sock.getsockname() for listener in arbiter.LISTENERS]
    hosts = [name[0] for name in names if isinstance(name, tuple)]  # a Unix socket has a path
    foreign = [host for host in hosts if not ipaddress.ip_address(host.partition("%")[0]).is_loopback]
    if foreign:
        raise SettingsError(
            f"gunicorn listens on {foreign[0]}, which opens the service to a network: set AMELIA_HOST instead."
        )
    if settings.proxy_hops:
        log.warning("whoever reaches the proxy may read and write everything, unless AMELIA_REQUIRE_TOKEN is on")


def _or_exit(check: Callable[..., None], *arguments: Any) -> None:
    """Call `check`, and end the program with a sentence where it fails: gunicorn would show where in the code."""
    try:
        check(*arguments)
    except AmeliaError as error:
        sys.exit(f"Error: {error.message}")


class Server(BaseApplication):
    """gunicorn with our application and no settings but ours."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn."""
        for name, value in options(self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Called by gunicorn in each process."""
        return create_app(self._settings)


class Logger(GunicornLogger):
    """gunicorn's log without its access lines: `web/access.py` writes those, without queries."""

    access_log_enabled = False


class Worker(ThreadWorker):
    """gunicorn's threaded worker, which answers its own refusals in our shape and never closes on its main loop."""

    slot = 0
    retention: Retention | None = None

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        self._closers = ThreadPoolExecutor(CLOSERS, thread_name_prefix="closer")
        super().init_process()

    def handle(self, conn: TConn) -> Any:
        """Handle a request, on a thread.

        A graceful close waits up to two seconds for each client that lingers; on the main loop, where gunicorn
        does it, nobody else would be served meanwhile.
        """
        logs.request_id.set(None)  # that of the request before on this thread
        conn.close = lambda graceful=False: self._close(conn, graceful)
        return super().handle(conn)

    def handle_error(self, _req: Any, client: socket.socket, _addr: Any, exc: BaseException) -> None:
        """Answer a request that never reached the application."""
        if not isinstance(exc, ParseException):
            log.error("a request failed outside the application", exc_info=exc)
        answer = _raw_answer(_refusal(exc))
        try:
            client.sendall(answer)
        except OSError:
            log.debug("the client was gone before its refusal")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop: readers that wait are told at once."""
        application = getattr(self, "wsgi", None)
        if application is not None:
            application.extensions["ledger"].stopping = True
        if self.retention is not None:
            self.retention.stop()
        super().handle_exit(sig, frame)

    def _cap_keepalive(self, deadline: float) -> None:
        """gunicorn's bound for idle connections at the end, for those too on which nothing was ever sent."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _close(self, conn: TConn, graceful: bool) -> None:
        if graceful and self.alive:
            self._closers.submit(TConn.close, conn, True)
        else:
            TConn.close(conn)


def _refusal(exc: BaseException) -> AmeliaError:
    if isinstance(exc, LimitRequestHeaders):
        return HeadersTooLarge()
    if isinstance(exc, LimitRequestLine):
        return UriTooLong()
    return BadRequest() if isinstance(exc, ParseException) else InternalError()


def _raw_answer(error: AmeliaError) -> bytes:
    content = msgspec.json.encode(body(error))
    request_id = new_request_id()
    logs.request_id.set(request_id)
    log.info("refused what is no request: %d", error.status)
    fields = HEADERS | {
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        REQUEST_ID: request_id,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def _give_slot(arbiter: Any, worker: Worker) -> None:
    """Give a process that is about to be forked a slot in the shared memory that no living one has."""
    taken = {other.slot for other in arbiter.WORKERS.values()}
    worker.slot = next(slot for slot in range(counters.MOST_PROCESSES) if slot not in taken)


def _begin_process(settings: Settings, worker: Worker) -> None:
    counters.begin_process(worker.slot)
    if settings.pin_workers:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[worker.slot % len(cores)]})


def _begin_serving(worker: Worker) -> None:
    _bound_receiving(worker)
    worker.retention = Retention(worker.wsgi.extensions["ledger"])
    worker.retention.start()


def _bound_receiving(worker: Worker) -> None:
    """Bound the wait for bytes on every connection: sockets inherit it from the one that accepts them."""
    limit = struct.pack("ll", RECEIVE_SECONDS, 0)
    for listener in worker.sockets:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _end_process(_arbiter: Any, worker: Worker) -> None:
    if worker.retention is not None:
        worker.retention.close()
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["ledger"].close()


def serve(settings: Settings, ready: Callable[[], None]) -> None:
    """Serve until told to stop; `ready` is called when everything has been checked. Raises AmeliaError."""
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    prepare(settings)
    server = Server(settings)
    ready()
    server.run()
