"""Connections of slow clients: how long, and how many, may keep a thread or a file descriptor from others.

A connection waits on the worker's main loop, where it costs no thread, until the head of a request is there. From
then on it has a thread, which waits for the client's bytes, or until the client takes its own, for as long as is
bearable: less where other requests wait for a thread.
"""

import contextlib
import errno
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from gunicorn.workers.gthread import TConn, ThreadWorker

from amelia_flask import counters

# Every wait of a thread for a client is looked at again after a step.
STEP_SECONDS = 1
# How long a connection may be open before the head of its first request is there, and how long a later one may take.
HEAD_SECONDS = 10
# A head that is larger is read by a thread, which refuses it.
HEAD_BYTES = 32_768
# A body up to this size goes out with its head.
SMALL_BODY = 65_536
CLOSERS = 4
# By how many connections a process may be ahead of another before it lets that one go first, and for how long.
MOST_AHEAD = 1
MOMENT_SECONDS = 0.001

connections = counters.Gauge()
MOST_CONNECTIONS = 10_000
# What a process needs beside its connections: the database, its log, the modules that are still to be imported.
SPARE_FILES = 100


class Patience(NamedTuple):
    """Seconds without a byte, and seconds for all of a request's body or of an answer."""

    idle: float
    whole: float


PATIENT = Patience(5, 30)
CROWDED = Patience(1, 5)


class ClientSocket(socket.socket):
    """Raises ConnectionResetError where the client is too slow, as if it had gone.

    The head of an answer, which gunicorn sends by itself, waits for the beginning of the body: sending costs a system
    call, a turn of the interpreter, and the client a wake-up.
    """

    is_crowded: Callable[[], bool]
    began = 0.0
    seen = 0  # bytes of a head that was not whole yet
    held = b""

    def recv(self, size: int, flags: int = 0) -> bytes:
        """The next bytes of the request that began last."""
        idle = 0
        while True:
            self._check(idle, self.began)
            try:
                return super().recv(size, flags)
            except BlockingIOError:
                idle += STEP_SECONDS

    def sendall(self, data: Any, flags: int = 0) -> None:
        """All of `data`, after what was held back; the head of an answer is held back itself."""
        if data.startswith(b"HTTP/1.") and data.endswith(b"\r\n\r\n") and not self.held:
            self.held = data
        elif self.held and len(data) <= SMALL_BODY:
            data, self.held = self.held + data, b""
            self._sendall(data, flags)
        else:
            self.flush()
            self._sendall(data, flags)

    def flush(self) -> None:
        """Send what was held back."""
        if self.held:
            data, self.held = self.held, b""
            self._sendall(data, 0)

    def sendfile(self, *args: Any, **kwargs: Any) -> int:
        """Called by gunicorn for the body of an answer that is a file."""
        self.flush()
        return super().sendfile(*args, **kwargs)

    def _sendall(self, data: bytes, flags: int) -> None:
        rest, began, idle = memoryview(data), time.monotonic(), 0
        while rest:
            self._check(idle, began)
            try:
                rest, idle = rest[self.send(rest, flags) :], 0
            except BlockingIOError:
                idle += STEP_SECONDS

    def _check(self, idle: int, began: float) -> None:
        whole = time.monotonic() - began
        if idle < CROWDED.idle and whole < CROWDED.whole:
            return
        patience = CROWDED if self.is_crowded() else PATIENT
        if idle >= patience.idle or whole >= patience.whole:
            raise ConnectionResetError(errno.ECONNRESET, "the client is too slow")


class ConnectionWorker(ThreadWorker):
    """gunicorn's threaded worker, in which only a request that has begun well takes a thread."""

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        self._closers = _begun(ThreadPoolExecutor(CLOSERS, thread_name_prefix="closer"), CLOSERS)
        super().init_process()

    def notify(self) -> None:
        """Called by gunicorn each time that the main loop goes round."""
        connections.set(self.nr_conns)
        super().notify()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Called by gunicorn in the new process."""
        return _begun(super().get_thread_pool(), self.cfg.threads)

    def bound_waiting(self) -> None:
        """Bound every wait for a client: sockets inherit it from the one that accepts them."""
        limit = struct.pack("ll", STEP_SECONDS, 0)
        for listener in self.sockets:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                listener.sock.setsockopt(socket.SOL_SOCKET, option, limit)

    def accept(self, listener: Any) -> None:
        """Called by gunicorn when somebody connects. Where there are too many, the one idle for longest has to go.

        Every process is told of it. One that has more connections than another leaves that a moment to be first: of
        many that come at once, it would otherwise take all, and serve them alone.
        """
        if self.nr_conns - connections.fewest(self.cfg.workers) > MOST_AHEAD:
            time.sleep(MOMENT_SECONDS)  # others may be first
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._close_idlest()
            elif error.errno not in {errno.EAGAIN, errno.ECONNABORTED}:
                raise
            return
        sock = ClientSocket(fileno=client.detach())
        sock.is_crowded = self._is_crowded
        self.nr_conns += 1
        connections.set(self.nr_conns)
        self._await_head(TConn(self.cfg, sock, address, listener.getsockname()))
        if self.nr_conns >= self.worker_connections:
            self._close_idlest()

    def on_pending_socket_readable(self, conn: TConn, client: ClientSocket) -> None:
        """Called by gunicorn when there is more of a head."""
        if client.fileno() >= 0 and _has_head(client):  # it may have been closed to make room for the one before it
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: TConn, client: ClientSocket) -> None:
        """Called by gunicorn when a connection that was kept open is used again."""
        if client.fileno() < 0:
            return
        if _has_head(client):
            super().on_client_socket_readable(conn, client)
        else:
            self.poller.unregister(client)
            self.keepalived_conns.remove(conn)
            self._await_head(conn)

    def handle(self, conn: TConn) -> Any:
        """Handle a request, on a thread.

        A graceful close waits up to two seconds for each client that lingers; on the main loop, where gunicorn
        does it, nobody else would be served meanwhile.
        """
        conn.sock.began = time.monotonic()
        conn.close = lambda graceful=False: self._close(conn, graceful)
        goes_on = super().handle(conn)
        with contextlib.suppress(OSError):  # the next request will tell that the client has gone
            conn.sock.flush()
        return goes_on

    def _await_head(self, conn: TConn) -> None:
        conn.timeout = time.monotonic() + HEAD_SECONDS
        self.pending_conns.append(conn)
        ready = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, ready)

    def _cap_keepalive(self, deadline: float) -> None:
        """gunicorn's bound for idle connections at the end, for those too on which no request has begun."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _is_crowded(self) -> bool:
        """Whether requests wait for a thread, or the process for its end."""
        idle = len(self.pending_conns) + len(self.keepalived_conns)
        return not self.alive or self.nr_conns - idle > self.cfg.threads

    def _close_idlest(self) -> None:
        idle = self.pending_conns or self.keepalived_conns
        if idle:
            conn = idle.popleft()
            self.poller.unregister(conn.sock)
            self.nr_conns -= 1
            conn.close()

    def _close(self, conn: TConn, graceful: bool) -> None:
        if graceful and self.alive:
            self._closers.submit(TConn.close, conn, True)
        else:
            TConn.close(conn)


def _begun(pool: ThreadPoolExecutor, threads: int) -> ThreadPoolExecutor:
    """The pool with all its threads: one for which there is no memory later would end the process."""
    meeting = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(meeting.wait)
    meeting.wait()
    return pool


def _has_head(client: ClientSocket) -> bool:
    """Whether a thread can go on with the request: its head is there, or no more of it will come.

    What is there is left in the socket, which is not called readable again before there is more than that.
    """
    try:
        head = socket.socket.recv(client, HEAD_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    is_over = b"\r\n\r\n" in head or len(head) == HEAD_BYTES or len(head) <= client.seen
    if not is_over or client.seen:
        client.seen = 0 if is_over else len(head)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, client.seen + 1)
    return is_over


def most_connections(threads: int) -> int:
    """How many a process can hold open with the files that it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    bearable = MOST_CONNECTIONS if files == resource.RLIM_INFINITY else files - SPARE_FILES
    return max(threads + 1, min(MOST_CONNECTIONS, bearable))
