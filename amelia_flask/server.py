"""The service under gunicorn: its settings, its hooks and its worker.

`amelia-flask serve` and `gunicorn wsgi:app` (through the root `gunicorn.conf.py`) take the same options from here.
"""

import errno
import ipaddress
import logging.config
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from typing import Any, ParamSpec, TypeVar

import msgspec
from gunicorn import systemd
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import TConn

from amelia_flask import counters, logs, schema, tokens
from amelia_flask.app import create_app
from amelia_flask.connections import ConnectionWorker, most_connections
from amelia_flask.database import Engine
from amelia_flask.engines import engine_of
from amelia_flask.errors import (
    AmeliaError,
    BadRequest,
    HeadersTooLarge,
    InternalError,
    SettingsError,
    UriTooLong,
)
from amelia_flask.ledger import Ledger
from amelia_flask.retention import Retention
from amelia_flask.settings import Settings
from amelia_flask.web.access import HEADERS, REQUEST_ID, new_request_id
from amelia_flask.web.errors import body

log = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")

# A process leaves within ten seconds of SIGTERM: its requests have this long, the writer the rest.
GRACEFUL_SECONDS = 8
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def options(settings: Settings) -> dict[str, Any]:
    """gunicorn's options for these settings. Raises SettingsError for more processes than the engine bears."""
    level = settings.log_level
    engine = engine_of(settings)  # holds the database as long as this dictionary: gunicorn keeps what is in it
    return {
        "bind": bind_address(settings),
        "workers": workers(settings, engine),
        "threads": settings.threads,
        "worker_connections": most_connections(settings.threads),
        "worker_class": "amelia_flask.server.Worker",
        "graceful_timeout": GRACEFUL_SECONDS,
        "timeout": 30,
        "keepalive": 75,
        "control_socket_disable": True,
        "forwarded_allow_ips": "",  # what proxies say is read in one place alone, `app.py`
        "loglevel": level,
        "logger_class": Logger,
        "logconfig_dict": logs.config(level, settings.log_format),
        "on_starting": lambda arbiter: or_exit(_begin, settings, engine, arbiter),
        "when_ready": lambda arbiter: or_exit(_begin_forking, settings, arbiter),
        "pre_fork": _before_fork,
        "post_fork": lambda _arbiter, worker: _begin_process(settings, worker),
        "post_worker_init": _begin_serving,
        "worker_exit": _end_process,
        "child_exit": lambda _arbiter, worker: counters.end_process(worker.slot),
    }


def bind_address(settings: Settings) -> str:
    """Where the service listens, as gunicorn writes it."""
    return f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"


def workers(settings: Settings, engine: Engine) -> int:
    """How many processes: two where there are two cores, one on an SQLite that cannot bear more."""
    if engine.is_mended():
        return settings.workers or min(2, os.cpu_count() or 1)
    if settings.workers is not None and settings.workers > 1:
        problem = f"{engine.version()} can lose rows with more than one process"
        raise SettingsError(f"AMELIA_WORKERS={settings.workers}, but {problem}.")
    return 1


def prepare(settings: Settings, engine: Engine) -> None:
    """Bring the database up to date before any process is forked. Raises SchemaError.

    Raises SettingsError for a service that would ask for a token where there is none.
    """
    schema.set_up(engine)
    _check_token(settings)
    if not engine.is_mended():
        log.warning("%s has the WAL-reset bug: one process alone may write. Install pysqlite3.", engine.version())


def _begin(settings: Settings, engine: Engine, starting: Any) -> None:
    """Hold the database against being replaced, while any process of this server is alive; then prepare it.

    What would keep the server from listening is refused first, so that a start in vain leaves nothing behind.
    """
    if not _inherits_listeners(starting):
        for address in starting.cfg.address:
            _check_address(address, starting.cfg.reuse_port)
    engine.check_place()
    engine.begin_serving()
    prepare(settings, engine)


def _inherits_listeners(starting: Any) -> bool:
    """Whether somebody else listens for this server already: systemd, or the server that it takes the place of."""
    return bool(systemd.listen_fds(unset_environment=False) or getattr(starting, "master_pid", 0))


def _check_address(address: Any, reuse_port: bool) -> None:
    """Refuse at once, and with a sentence, what gunicorn would try five times: an address of TCP is a pair."""
    if not isinstance(address, tuple):
        return
    host, port = address
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        try:
            probe.bind(address)
        except (OSError, UnicodeError) as error:
            raise SettingsError(_why_not(host, port, error)) from None


def _why_not(host: str, port: int, error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError | socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: set AMELIA_HOST to one that is."
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use by another program: stop that, or set AMELIA_PORT."
    return f"The service cannot listen on port {port} of {host}: {error.strerror}."


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


def _begin_forking(settings: Settings, arbiter: Any) -> None:
    _check_openness(settings, arbiter)
    os.register_at_fork(after_in_parent=_hear_of_stops)


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


def or_exit(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Call `function`, and end the program with a sentence where it fails: gunicorn would show where in the code."""
    try:
        return function(*args, **kwargs)
    except AmeliaError as error:
        sys.exit(f"Error: {error.message}")


class Server(BaseApplication):
    """gunicorn with our application and no settings but ours."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn."""
        for name, value in or_exit(options, self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Called by gunicorn in each process."""
        return create_app(self._settings)


class Logger(GunicornLogger):
    """gunicorn's log without its access lines: `web/access.py` writes those, without queries."""

    access_log_enabled = False


class Worker(ConnectionWorker):
    """A process of the service, which answers gunicorn's own refusals in our shape."""

    slot = 0
    retention: Retention | None = None

    def init_signals(self) -> None:
        """Called by gunicorn when everything is there that handlers of signals need."""
        super().init_signals()
        _hear_of_stops()

    def handle(self, conn: TConn) -> Any:
        """Handle a request, on a thread."""
        logs.request_id.set(None)  # that of the request before on this thread
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
        """Begin to stop, and tell at once those that wait.

        Only once: where a supervisor tells every process, gunicorn's master tells it again, and a handler on top of
        this one would wait for ever for a lock that this one holds.
        """
        if not self.alive:
            return
        super().handle_exit(sig, frame)
        application = getattr(self, "wsgi", None)
        if application is not None:
            application.extensions["ledger"].stopping = True
        if self.retention is not None:
            self.retention.stop()


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


def _before_fork(arbiter: Any, worker: Worker) -> None:
    """Give a process that is about to be forked a slot in the shared memory that no living one has.

    A stop waits until that process has handlers of its own. Those of gunicorn's master, which it is born with,
    would queue it for nobody, and the server's end would take as long as that of a process that hangs.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    taken = {other.slot for other in arbiter.WORKERS.values()}
    worker.slot = next(slot for slot in range(counters.MOST_PROCESSES) if slot not in taken)


def _hear_of_stops() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _begin_process(settings: Settings, worker: Worker) -> None:
    counters.begin_process(worker.slot)
    if settings.pin_workers and hasattr(os, "sched_setaffinity"):  # not every system has it
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[worker.slot % len(cores)]})


def _begin_serving(worker: Worker) -> None:
    worker.bound_waiting()
    worker.wsgi.extensions["ledger"].writer.ensure_running()
    worker.retention = Retention(worker.wsgi.extensions["ledger"])
    worker.retention.start()


def _end_process(_arbiter: Any, worker: Worker) -> None:
    if worker.retention is not None:
        worker.retention.close()
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["ledger"].close()


def serve(settings: Settings, ready: Callable[[], None]) -> None:
    """Serve until told to stop; `ready` is called when everything has been checked.

    Ends the program, in every case; with a sentence where the service cannot be started.
    """
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    server = Server(settings)
    server.cfg.on_starting(server)  # gunicorn does it again, but not before it has said that it starts
    ready()
    server.run()
