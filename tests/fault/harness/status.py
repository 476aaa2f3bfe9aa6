"""What an agent says of itself, asked as anybody may ask: HTTP on its socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from tests.fault.harness.scene import Scene

_LIMIT_S = 10.0


def status(scene: Scene) -> dict[str, Any]:
    """`GET /status`; empty when no agent answers."""
    connection = http.client.HTTPConnection("localhost", timeout=_LIMIT_S)
    try:
        connection.sock = _connected(scene.arena)
        connection.request("GET", "/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, IndexError):
        return {}
    else:
        return found
    finally:
        connection.close()


def _connected(arena: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(_LIMIT_S)
    try:
        made.connect(str(next(iter(arena.glob("*/*/agent.sock")), arena)))
    except OSError:
        made.close()
        raise
    return made


def lagging(scene: Scene) -> list[str]:
    """Names of the tiers marked so."""
    return [tier["name"] for tier in status(scene).get("tiers", []) if tier["lagging"]]
