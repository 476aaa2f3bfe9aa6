"""The trainer's and the CLI's side of the agent's socket: plain HTTP, one connection per call, deadlines always."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from holdfast.errors import AgentError, DeadlineError, from_dict

T = TypeVar("T")
_QUEUE_POLL_S = 0.01
_START_AGENT = "the agent ended; the next call of a Checkpointer starts one (see agent.log beside the socket)"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, self.timeout or 0.0)


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connected stream socket.

    Raises: TimeoutError when somebody listens and does not come round to us; OSError as the kernel says it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + timeout_s
    try:
        sock.settimeout(timeout_s)
        while True:
            try:
                sock.connect(str(path))
                break
            except BlockingIOError as e:  # its queue is full; the kernel waits for that on blocking sockets only
                if time.monotonic() > deadline:
                    raise TimeoutError(e.errno, "nobody accepts the connection") from e
            time.sleep(_QUEUE_POLL_S)
    except BaseException:
        sock.close()
        raise
    return sock


class AgentClient:
    """Calls to one agent. Threads: any; every call uses a connection of its own."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def get(self, path: str, answer: type[T], *, timeout_s: float, **query: object) -> T:
        """`GET path?query`, decoded as `answer`."""
        text = urlencode({k: str(v) for k, v in query.items() if v is not None})
        return self._call("GET", f"{path}?{text}" if text else path, None, answer, timeout_s)

    def post(self, path: str, body: object, answer: type[T], *, timeout_s: float) -> T:
        """`POST path` with a JSON body, decoded as `answer`."""
        return self._call("POST", path, msgspec.json.encode(body), answer, timeout_s)

    def read(self, path: str, *, timeout_s: float) -> bytes:
        """`GET path`, as it is: the page for people, the metrics."""
        status, data = self._exchange("GET", path, None, timeout_s)
        if status >= 400:
            _decode(status, data, dict, f"GET {path}")
        return data

    def _call(self, method: str, path: str, body: bytes | None, answer: type[T], timeout_s: float) -> T:
        """Raises: whatever HoldfastError the agent answers; DeadlineError; AgentError when it is not there."""
        status, data = self._exchange(method, path, body, timeout_s)
        return _decode(status, data, answer, f"{method} {path}")

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        connection = _UnixConnection(self.socket_path, timeout_s)
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as e:
            raise DeadlineError(
                f"the agent did not answer {method} {path} within {timeout_s:g} s",
                hint=f"look into {self.socket_path.parent / 'agent.log'}",
            ) from e
        except (OSError, http.client.HTTPException) as e:
            raise AgentError(f"no agent answers at {self.socket_path}: {e}", hint=_START_AGENT) from e
        finally:
            connection.close()


def _decode(status: int, data: bytes, answer: type[T], what: str) -> T:
    try:
        if status >= 400:
            raise from_dict(msgspec.json.decode(data, type=dict))
        return msgspec.json.decode(data, type=answer)
    except (msgspec.DecodeError, KeyError) as e:
        raise AgentError(f"the agent answered {what} with {status} and {data[:200]!r}", hint=_START_AGENT) from e


class Attachment:
    """The open connection that tells each side of the other's death.

    Invariant: nothing is sent on it after the handshake; readable means the agent is gone.
    """

    def __init__(self, socket_path: Path, rank: int, timeout_s: float) -> None:
        """Raises: AgentError when the agent is not there or refuses; DeadlineError when it does not answer."""
        try:
            self._socket, answer = _shake_hands(socket_path, rank, timeout_s)
        except TimeoutError as e:
            raise DeadlineError(
                f"the agent did not answer rank {rank} within {timeout_s:g} s",
                hint=f"look into {socket_path.parent / 'agent.log'}",
            ) from e
        except OSError as e:
            raise AgentError(f"no agent answers at {socket_path}: {e}", hint=_START_AGENT) from e
        if b" 101 " not in answer.split(b"\r\n", 1)[0]:
            self._socket.close()
            raise AgentError(f"the agent refused to attach rank {rank}: {answer[:200]!r}", hint=_START_AGENT)
        self._socket.setblocking(False)

    @property
    def alive(self) -> bool:
        """Whether the agent still holds its end: one non-blocking look, no message."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        # Shut down, not only closed: a child that was forked has the socket, too, and the agent would not see the end.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _shake_hands(path: Path, rank: int, timeout_s: float) -> tuple[socket.socket, bytes]:
    """A connection on which a rank asked to be attached, and the head of the answer. Raises: OSError."""
    sock = connect(path, timeout_s)
    try:
        request = f"GET /attach?rank={rank} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: holdfast\r\n\r\n"
        sock.sendall(request.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            chunk = sock.recv(4096)
            if not chunk:
                raise ConnectionResetError("closed during the handshake")
            answer += chunk
        return sock, answer
    except BaseException:
        sock.close()
        raise
