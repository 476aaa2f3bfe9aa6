"""What stands in shared memory while nobody looks after it: kept, checked, never believed."""

import json
from pathlib import Path

import pytest
from tests.fault.harness import oracle
from tests.fault.harness.checks import check
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, Fault

pytestmark = pytest.mark.torch

HELD = 3  # SlotPage.state
STATE, STEP, PAGE_BYTES = 3 * 8, 6 * 8, 4096
NO_MORE_UPLOADS = "/nonexistent/until/killed"


def slot_of(scene: Scene, step: int) -> Path:
    """The slot file that holds the step. The step's word is one more than the step."""
    for path in scene.slots():
        page = path.read_bytes()[:PAGE_BYTES]
        word = {at: int.from_bytes(page[at : at + 8], "little") for at in (STATE, STEP)}
        if (word[STATE], word[STEP]) == (HELD, step + 1):
            return path
    raise AssertionError(f"no slot holds step {step}")


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("place", ["tensor", "header", "checksums"])
def test_a_bit_flips_in_a_held_slot_while_the_agent_is_dead(scene: Scene, place: str):
    """The step is durable, too: the copy on the tier is loaded, and the bad one never gets a good checksum."""
    scene.start(steps=4, end="linger")
    scene.wait_for("durable", step=3)
    scene.kill_trainers()
    scene.kill_agent()
    slot = slot_of(scene, 3)
    flip_bit(slot, place_in(slot, place))
    scene.finish(steps=3, end="durable")
    assert scene.loaded() == 3
    check(scene)


@pytest.mark.parametrize("place", ["tensor", "header", "checksums"])
def test_the_only_copy_rots(scene: Scene, place: str):
    """The newest step is nowhere else: the next older one is loaded, and the bad image reaches no tier."""
    stop = Fault(AGENT, "holdfast.agent.shelf:Shelf.upload", do="pause", arg=NO_MORE_UPLOADS, nth=2)
    scene.inject(stop)
    scene.start(steps=5, end="linger", keep_last=None)
    scene.wait_for("memory", step=4)
    scene.until(lambda: scene.fired(stop), "flushes to stop")
    scene.kill_trainers()
    scene.kill_agent()
    scene.inject()
    rotten = 4
    assert oracle.Committed(1, rotten) not in oracle.committed(scene.home)
    slot = slot_of(scene, rotten)
    flip_bit(slot, place_in(slot, place))
    scene.finish(steps=3, end="durable", keep_last=None)
    assert scene.loaded() == rotten - 1
    for checkpoint in oracle.committed(scene.home):
        life = 1 if checkpoint.attempt == 1 else 2
        oracle.check_on_disk(scene.home, checkpoint, life=life, world=1)
    assert oracle.Committed(1, rotten) not in oracle.committed(scene.home)


def place_in(slot: Path, place: str) -> int:
    """Where in the file a bit is to flip."""
    data = slot.read_bytes()[PAGE_BYTES:]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at = {
        "tensor": 8 + length + sum(header["model.w"]["data_offsets"]) // 2,
        "header": 8 + length // 2,
        "checksums": 8 + length + header["__holdfast__.crc64nvme"]["data_offsets"][0] + 3,
    }[place]
    return PAGE_BYTES + at


def test_a_with_left_by_an_exception_keeps_memory(scene: Scene):
    """The job fails; the newest step is in memory alone, and there it is found."""
    stop = Fault(AGENT, "holdfast.agent.shelf:Shelf.upload", do="pause", arg=NO_MORE_UPLOADS, nth=2)
    scene.inject(stop)
    assert scene.run(steps=5, end="raise", pace_s=0.1) == [3]
    scene.wait_for("memory", step=3)
    assert oracle.Committed(1, 4) not in oracle.committed(scene.home)
    scene.inject()
    scene.start(steps=1)
    assert scene.loaded() == 4
    assert [1, 4, ["memory"], False] in scene.wait_for("steps")["steps"]
    scene.kill_trainers()
    scene.kill_agent()  # it holds up a flush for ever
    scene.finish(steps=1)
    check(scene)


def test_losses_are_those_without_holdfast(scene: Scene):
    """A fresh AdamW and `prepare`: the state learns its layout without a step, and a restart goes on exactly."""
    script = "tests.fault.harness.scripts:adamw"
    for args, end in (((), 0), (("with", "stop at 4"), 0), (("with",), 0)):
        assert scene.run(script=script, steps=10, args=args) == [end], scene.trainers[0].said()
    losses = {life: {e["step"]: e["loss"] for e in scene.events("loss", life=life)} for life in (1, 2, 3)}
    assert sorted(losses[2]) == [0, 1, 2, 3, 4]
    assert sorted(losses[3]) == [5, 6, 7, 8, 9]
    assert losses[2] | losses[3] == losses[1]
