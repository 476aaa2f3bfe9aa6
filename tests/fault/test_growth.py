"""A hundred saves later nothing has grown: arena, and private memory, descriptors, threads of trainer and agent."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.fault.harness.scene import Scene
from tests.fault.harness.scripts import usage

pytestmark = pytest.mark.torch

LOOKS = (20, 120, 220)
SLACK_BYTES = 4 << 20
"""Less than half an image: what is leaked once per save would be a hundred times that."""


def test_a_hundred_saves_without_growth(scene: Scene):
    go = scene.directory / "go"
    scene.start(script="tests.fault.harness.scripts:many_saves", steps=LOOKS[-1] + 1, force=LOOKS, go=str(go))
    seen = [look(scene, step, go) for step in LOOKS]
    assert scene.trainers[0].wait(60.0) == 0, scene.trainers[0].said()
    for early, late in pairwise(seen):
        for who in ("trainer", "agent"):
            assert late[who]["private_bytes"] < early[who]["private_bytes"] + SLACK_BYTES, (who, early[who], late[who])
            assert late[who]["descriptors"] <= early[who]["descriptors"] + 1, (who, early[who], late[who])
        assert late["arena_bytes"] == early["arena_bytes"]
        assert late["files"] == early["files"]
    for who in ("trainer", "agent"):
        # A bounded pool starts another thread whenever all it has are busy, once; what leaks grows in each hundred.
        threads = [s[who]["threads"] for s in seen]
        assert any(late <= early + 1 for early, late in pairwise(threads)), (who, threads)


def look(scene: Scene, step: int, go: Path) -> dict[str, Any]:
    """Both processes, at rest after the step."""
    trainer = scene.wait_for("grown", step=step)
    arena = [p for p in scene.arena.rglob("*") if p.is_file()]
    seen = {
        "trainer": trainer,
        "agent": usage(scene.agents()[0]),
        "arena_bytes": sum(p.stat().st_blocks for p in arena if p.name != "agent.log") * 512,
        "files": len(arena),
    }
    Path(f"{go}-{step}").touch()
    return seen
