"""How the client's requests travel: over connections that are kept open, repeated while that is safe and of use."""

import contextlib
import http.client
import itertools
import json
import os
import random
import ssl
import time
import weakref
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit
from uuid import UUID

# What goes away by itself: too many requests, and services that are busy, away or slow behind a proxy.
PASSING = frozenset({429, 502, 503, 504})
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
# What a connection raises that broke, and an answer that is not HTTP.
BROKEN = (OSError, http.client.HTTPException)


class ClientError(Exception):
    """The call failed.

    `outcome_unknown`: it may have been carried out all the same, because the answer to one of its attempts was
    lost; calling again with the same ids settles it. `is_passing`: trying later may help. `retry_after`: seconds
    to wait before that, where the service said so.
    """

    outcome_unknown = False
    is_passing = False
    retry_after: float | None = None


class ServiceUnavailable(ClientError):
    """The service could not be reached, or gave no answer that can be read."""

    is_passing = True

    def __init__(self, message: str, outcome_unknown: bool = False) -> None:
        self.outcome_unknown = outcome_unknown
        super().__init__(message)


class ApiError(ClientError):
    """The service refused the call: `status` of HTTP, `code` (such as INVALID_STATE), `message`, a sentence.

    `details` holds what is specific to the code; `detail` the list of faults of a VALIDATION_ERROR, the active
    workflow of a WORKFLOW_CONFLICT, and otherwise the sentence again. An answer that is not this service's own
    (a proxy's, say) has the code HTTP_<status>.
    """

    def __init__(self, status: int, code: str, message: str, details: dict[str, Any], detail: Any) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.detail = detail
        self.is_passing = status in PASSING
        super().__init__(status, code, message, details, detail)  # all of them, so that it can be pickled

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


class Request(NamedTuple):
    """What is asked. `wait`: seconds for which the service may hold the answer back.

    `repeatable`: whether carrying it out twice does what carrying it out once does.
    """

    method: str
    path: str
    query: Mapping[str, Any] | None = None
    body: Any = None
    headers: Mapping[str, str] | None = None
    wait: float = 0
    repeatable: bool = True


class Answer(NamedTuple):
    """A 2xx; `json` is None where it has no body."""

    headers: http.client.HTTPMessage
    json: Any


class Transport:
    """Sends requests to one service, from any thread. Proxies that the environment names are not used.

    Raises ValueError for an address or a token that cannot be one.
    """

    def __init__(self, base_url: str, token: str | None, timeout: float, attempts: int, patience: float) -> None:
        address = urlsplit(base_url)
        if address.scheme not in {"http", "https"} or not address.hostname or address.query or address.fragment:
            raise ValueError(f"{base_url!r} is not the address of a service, such as http://127.0.0.1:8420.")
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise ValueError("The token is empty or holds characters that a header cannot carry.")
        self._kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = address.hostname, address.port
        self._prefix = address.path.rstrip("/")
        self._place = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{self._prefix}"
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._timeout, self._attempts, self._patience = timeout, attempts, patience
        self._begin_process()

    def send(self, request: Request) -> Answer:
        """The answer of 2xx. Raises ApiError, ServiceUnavailable, and ValueError for what JSON cannot hold."""
        body = None if request.body is None else _to_json(request.body)
        deadline = time.monotonic() + self._patience + request.wait
        in_doubt = False
        for attempt in itertools.count(1):
            timeout = max(0.001, min(self._timeout + request.wait, deadline - time.monotonic()))
            try:
                return self._exchange(self._connection(timeout), request, body)
            except ClientError as error:
                in_doubt = error.outcome_unknown = in_doubt or error.outcome_unknown
                pause = _pause(error, attempt)
                is_last = attempt >= self._attempts or time.monotonic() + pause >= deadline
                if is_last or not error.is_passing or (in_doubt and not request.repeatable):
                    raise
            time.sleep(pause)  # as the server asked, or longer each time
        raise AssertionError("there is always a next attempt")

    def close(self) -> None:
        """Close the connections that are kept open; a later call opens a new one."""
        _close_all(self._idle)

    def _begin_process(self) -> None:
        self._process = os.getpid()
        self._idle: deque[http.client.HTTPConnection] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        """One that was kept and is still open, else a new one. Raises ServiceUnavailable."""
        if self._process != os.getpid():
            self._begin_process()  # forked: the connections that are kept are our parent's
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if _is_open(connection):
                    connection.sock.settimeout(timeout)
                    return connection
                connection.close()
        return self._connect(timeout)

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = self._kind(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except BROKEN as error:
            connection.close()
            raise ServiceUnavailable(f"{self._place} cannot be reached: {error}", outcome_unknown=False) from error
        return connection

    def _exchange(self, connection: http.client.HTTPConnection, request: Request, body: bytes | None) -> Answer:
        """Send, receive, and keep the connection if the answer came whole."""
        try:
            # A service that refuses a body closes before it has read all of it; its answer tells more.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(request.method, self._target(request), body, self._all_headers(request, body))
            response = connection.getresponse()
            content = response.read()
        except BaseException as error:
            connection.close()
            if isinstance(error, BROKEN):
                message = f"{self._place} gave no answer: {error or type(error).__name__}"
                raise ServiceUnavailable(message, outcome_unknown=True) from error
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return _understand(response, content)

    def _target(self, request: Request) -> str:
        return self._prefix + request.path + (f"?{urlencode(request.query)}" if request.query else "")

    def _all_headers(self, request: Request, body: bytes | None) -> dict[str, str]:
        kind = {} if body is None else {"Content-Type": "application/json"}
        return self._headers | kind | dict(request.headers or {})


def _is_open(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has left an idle connection open. Nothing is to be read from one."""
    try:
        connection.sock.settimeout(0)
        connection.sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False


def _close_all(connections: deque[http.client.HTTPConnection]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            connections.pop().close()


def _pause(error: ClientError, attempt: int) -> float:
    """Seconds until the next attempt, never the same for all clients that wait for one service."""
    if error.retry_after is not None:
        return error.retry_after + random.uniform(0, FIRST_PAUSE)
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1)


def _understand(response: http.client.HTTPResponse, content: bytes) -> Answer:
    try:
        value = json.loads(content) if content else None
    except ValueError:
        value = content
    if response.status // 100 != 2:
        raise _refusal(response, value)
    if isinstance(value, bytes):
        raise ServiceUnavailable("The service's answer is not JSON.", outcome_unknown=True)
    return Answer(response.headers, value)


def _refusal(response: http.client.HTTPResponse, said: Any) -> ApiError:
    status = response.status
    is_own = isinstance(said, dict) and isinstance(said.get("code"), str) and isinstance(said.get("details"), dict)
    if is_own:
        error = ApiError(status, said["code"], str(said.get("error")), said["details"], said.get("detail"))
    else:
        sentence = f"The answer was {status} {response.reason or HTTPStatus(status).phrase}."
        error = ApiError(status, f"HTTP_{status}", sentence, {}, sentence)
    was_refused = status < 500 or (is_own and status == 503 and not error.details.get("outcome_unknown"))
    error.outcome_unknown = not was_refused
    after = response.headers.get("Retry-After", "")
    error.retry_after = float(after) if after.isascii() and after.isdigit() else None
    return error


def _to_json(value: Any) -> bytes:
    """Raises ValueError for NaN, infinities and half surrogates, TypeError for what is no JSON value."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
