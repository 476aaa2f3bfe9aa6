"""The agent's HTTP service on its Unix socket (mode 0600, same user): thin routes over the Agent object."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from holdfast.agent.agent import Agent
from holdfast.agent.metrics import metrics_text
from holdfast.agent.page import render_page
from holdfast.agent.status import status_of
from holdfast.errors import AgentError, HoldfastError, UsageError
from holdfast.model.identity import CheckpointId
from holdfast.wire import messages

log = logging.getLogger("holdfast.agent")

T = TypeVar("T")
_ATTACH_POLL_S = 0.05
_MAX_BODY_BYTES = 64 << 20
_STATUS = {"run-busy": 409, "superseded": 409, "capacity": 507, "not-found": 404}


class Server:
    """Routes. Each handler decodes, calls the agent, encodes; errors become `to_dict` with a 4xx or 5xx."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_errors])
        add = self.app.router.add_route
        add("GET", "/attach", self.attach)
        add("POST", "/launch", self._posted(messages.Launch, agent.admission.launch))
        add("POST", "/prepare", self._posted(messages.Prepare, agent.dealing.prepare))
        add("POST", "/attempt", self._posted(messages.ClaimAttempt, agent.ownership.claim))
        add("GET", "/loadable", self.loadable)
        add("POST", "/place", self._posted(messages.Fetch, agent.loading.place))
        add("POST", "/fetch", self._posted(messages.Fetch, agent.loading.fetch))
        add("POST", "/unpin", self._posted(messages.Unpin, agent.loading.unpinned))
        add("POST", "/bad", self._posted(messages.BadImage, agent.loading.bad_image))
        add("GET", "/save/{attempt:\\d+}/{step:\\d+}", self.save)
        add("GET", "/steps", self.steps)
        add("POST", "/prune", self._posted(messages.Prune, agent.prune))
        add("POST", "/repair", self._posted(messages.Repair, agent.repairing.repair))
        add("POST", "/close", self._posted(messages.Close, agent.closing.close_rank))
        add("POST", "/stop", self._posted(messages.Stop, agent.closing.stop))
        add("GET", "/errors", self.errors)
        add("GET", "/status", self.status)
        add("GET", "/history", self.history)
        add("GET", "/metrics", self.metrics)
        add("GET", "/", self.page)

    async def serve(self, path: Path) -> web.AppRunner:
        """Listen on the socket; the caller cleans the runner up."""
        path.unlink(missing_ok=True)
        runner = web.AppRunner(self.app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(path))
        path.chmod(0o600)
        await web.SockSite(runner, sock, shutdown_timeout=1.0).start()
        return runner

    def _posted(
        self, kind: type[T], call: Callable[[T], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            try:
                body = msgspec.json.decode(await request.read(), type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                raise _misread(request, e) from e
            return _json(await call(body))

        return handler

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Keep the connection until either side goes: that is the whole message."""
        rank = _needed(_int(request, "rank"), request, "rank")
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": "holdfast"})
        await response.prepare(request)
        with self._agent.launches.attachment(rank):
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(_ATTACH_POLL_S)
        return response

    async def loadable(self, request: web.Request) -> web.Response:
        step = _int(request, "step")
        below_attempt, below_step = _int(request, "below_attempt"), _int(request, "below_step")
        below = (
            CheckpointId(below_attempt, below_step) if below_attempt is not None and below_step is not None else None
        )
        return _json(await self._agent.loading.loadable(step=step, below=below))

    async def save(self, request: web.Request) -> web.Response:
        attempt, step = (_parsed(int, request, n, request.match_info[n]) for n in ("attempt", "step"))
        targets = [t for t in request.query.get("for", "").split(",") if t]
        wait_s = _parsed(_seconds, request, "wait_s", request.query.get("wait_s", "0"))
        return _json(await self._agent.answers.save_status(CheckpointId(attempt, step), targets=targets, wait_s=wait_s))

    async def steps(self, request: web.Request) -> web.Response:
        return _json(await self._agent.answers.step_infos())

    async def errors(self, request: web.Request) -> web.Response:
        return _json(self._agent.errors_since(_int(request, "since") or 0))

    async def status(self, request: web.Request) -> web.Response:
        return _json(status_of(self._agent.view()))

    async def history(self, request: web.Request) -> web.Response:
        return _json(self._agent.looking.history())

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics_text(self._agent.view()), content_type="text/plain", charset="utf-8")

    async def page(self, request: web.Request) -> web.Response:
        view = self._agent.view()
        text = render_page(status_of(view), self._agent.looking.history())
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse other users; turn our errors into JSON, and anything else too: nothing is swallowed."""
    try:
        _same_user(request)
        _no_foreign_page(request)
        return await handler(request)
    except HoldfastError as e:
        return _refusal(_STATUS.get(e.kind, 400 if not e.retryable else 503), e)
    except msgspec.ValidationError as e:
        return _refusal(400, _misread(request, e))
    except web.HTTPException as e:
        error = UsageError(f"{request.method} {request.path}: {e.reason}", hint="see docs/reference.md, agent API")
        return _refusal(e.status, error)
    except ConnectionError:  # whoever asked is gone
        raise
    except Exception as e:
        # Not an AgentError: that would say the agent is gone, and the trainer would let go of one that lives.
        log.exception("%s %s", request.method, request.path)
        what = f"the agent failed at {request.method} {request.path}: {type(e).__name__}: {e}"
        return _refusal(500, HoldfastError(what, hint="this is a defect; see agent.log"))


def _refusal(status: int, error: HoldfastError) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(error.to_dict()), content_type="application/json")


def _misread(request: web.Request, error: Exception) -> UsageError:
    return UsageError(f"{request.path}: {error}", hint="trainer and agent differ in version?")


def _same_user(request: web.Request) -> None:
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    if sock is None or sock.family != socket.AF_UNIX:
        return
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    own = Path("/proc/self").stat().st_uid
    if uid not in (own, 0):
        raise AgentError(f"user {uid} may not speak to the agent of user {own}", hint="run as the job's user")


def _no_foreign_page(request: web.Request) -> None:
    """Where a person forwards the socket to a port, any web page they visit could send calls there: it may only look.

    Browsers say where a call comes from; trainers and commands have nothing to say.
    """
    if request.method not in ("GET", "HEAD") and "Origin" in request.headers:
        raise UsageError(f"{request.method} {request.path} from a browser", hint="use the command line")


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _int(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    return None if text is None else _parsed(int, request, name, text)


def _needed(value: T | None, request: web.Request, name: str) -> T:
    if value is None:
        raise UsageError(f"{request.path} needs {name}", hint="see docs/reference.md, agent API")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _parsed(parse: Callable[[str], T], request: web.Request, name: str, text: str) -> T:
    """Raises: UsageError when the caller sent nonsense."""
    try:
        return parse(text)
    except ValueError as e:
        raise UsageError(f"{request.path}: {name}={text[:40]!r}", hint="see docs/reference.md, agent API") from e
