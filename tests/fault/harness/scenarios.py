"""Stories told twice: as they are, they end well; with a planted defect, the oracle must object.

Each takes a scene and the defects to plant, and raises Violation when a promise is broken.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.fault.harness import oracle
from tests.fault.harness.checks import check, check_disk, read
from tests.fault.harness.oracle import Committed, Violation
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, COMMAND, Fault

Defects = tuple[str, ...]
NEVER = "/nonexistent"
"""A file for which a paused process waits until it is killed."""
PAGE_BYTES, STATE_AT, STEP_AT, HELD = 4096, 3 * 8, 6 * 8, 3


# Power ----------------------------------------------------------------------------------------------------------------
def power_cuts(
    scene: Scene,
    defects: Defects = (),
    *,
    seed: int | None = None,
    cuts: int = 4,
    pace_s: float = 0.002,
    faults: tuple[Fault, ...] = (),
    moment: Callable[[], None] | None = None,
    longest_s: float = 0.4,
) -> None:
    """The node stops again and again, at moments of saving, flushing and pruning that chance chooses: so long at most
    after a step is durable, and `moment` has returned."""
    chance = random.Random(seed or 0)
    scene.inject(*faults, record=True, defects=defects)
    for life in range(1, cuts + 1):
        scene.start(steps=100_000, pace_s=pace_s)
        scene.wait_for("durable")
        if moment is not None:
            moment()
        time.sleep(chance.random() * longest_s)
        scene.lose_power(None if seed is None else seed * 1000 + life)
        history = read(scene.events(), memory_lost=range(1, life + 1))
        check_disk(scene.home, history, keep_last=scene.job.keep_last)
        oracle.check_names(scene.home)
    scene.inject(defects=defects)
    scene.finish(steps=4, end="durable")
    history = check(scene, memory_lost=range(1, cuts + 1))
    if len(history.durable) <= cuts:
        raise RuntimeError("this tested nothing")


def power_cuts_amid_recycling(scene: Scene, defects: Defects = (), *, seed: int | None = None) -> None:
    """The same on a disk of the node's own, where images are written over deleted ones."""
    used = Fault(AGENT, "holdfast.tiers.posix.recycle:_is_ours_alone", when="after", do="count")
    slow = Fault(AGENT, "holdfast.tiers.posix.upload:PosixUpload.write", when="after", do="sleep", arg="0.05")

    def moment() -> None:
        before = scene.fired(used)
        scene.until(lambda: scene.fired(used) > before, "a file to be used again")

    scene.job = scene.job_with(scope="node", keep_last=1)
    power_cuts(scene, defects, seed=seed, faults=(used, slow), moment=moment)


def power_cuts_while_overwriting(scene: Scene, defects: Defects = (), *, seed: int | None = None) -> None:
    """Each time half an image stands in the file of a deleted one: a step is flushed, and the one before the last
    pruned, well before the next step begins."""
    flag = scene.directory / "a file is used again"
    used = Fault(AGENT, "holdfast.tiers.posix.recycle:_move", when="after", do="touch", arg=str(flag))
    stop = Fault(AGENT, "holdfast.store.flush:run_parts", when="after", do="pause", arg=NEVER, while_there=str(flag))

    def moment() -> None:
        before = scene.fired(stop)
        scene.until(lambda: scene.fired(stop) > before, "a file that is used again to be overwritten")
        flag.unlink()

    scene.job = scene.job_with(scope="node", keep_last=1)
    power_cuts(scene, defects, seed=seed, pace_s=0.3, faults=(used, stop), moment=moment, longest_s=0.0)


# Rot ------------------------------------------------------------------------------------------------------------------
def rot_while_the_agent_is_dead(scene: Scene, defects: Defects = (), *, place: str = "tensor") -> None:
    """A bit flips in the newest step, which is nowhere else: the next older one is loaded, the bad one goes nowhere."""
    stop = Fault(AGENT, "holdfast.agent.keeping:Keeping.upload", do="pause", arg=NEVER, nth=2)
    scene.inject(stop)
    scene.start(steps=5, end="linger")
    scene.wait_for("memory", step=4)
    scene.until(lambda: scene.fired(stop), "flushes to stop")
    scene.kill_trainers()
    scene.kill_agent()
    scene.inject(defects=defects)
    flip_in_memory(scene, 4, place)
    scene.finish(steps=3, end="durable")
    check(scene, rotten=[(1, 4)])
    _expect(scene.loaded() == 3, f"step {scene.loaded()} was loaded")


def rot_beside_a_living_agent(scene: Scene, defects: Defects = ()) -> None:
    """A bit flips in a slot that was verified before; the step is durable, too, and loaded from there."""
    scene.inject(defects=defects)
    scene.start(steps=4, end="linger")
    scene.wait_for("durable", step=3)
    scene.kill_trainers()
    flip_in_memory(scene, 3, "tensor")
    scene.finish(steps=3, end="durable")
    _expect(scene.loaded() == 3, f"step {scene.loaded()} was loaded")
    check(scene)


def rot_on_a_tier(scene: Scene, defects: Defects = ()) -> None:
    """The memory is lost and the newest durable step has rotted: the one before it is loaded."""
    scene.inject(defects=defects)
    scene.finish(steps=4)
    flip_bit(_image(scene, 1, 3), 5 << 20)
    scene.lose_memory()
    scene.finish(steps=3, end="durable")
    read(scene.events(), rotten=[(1, 3)])
    _expect(scene.loaded() == 2, f"step {scene.loaded()} was loaded")


def rot_before_the_commit(scene: Scene, defects: Defects = ()) -> None:
    """An image was flushed, trainer and agent die before the manifest, it rots there: it is not committed like that."""
    scene.job = scene.job_with(keep_last=None)
    stop = Fault(AGENT, "holdfast.store.commit:publish_manifest", do="pause", arg=NEVER, nth=2)
    scene.inject(stop)
    scene.start(steps=2, end="linger")
    scene.wait_for("memory", step=1)
    scene.until(lambda: scene.fired(stop), "a commit to stop")
    scene.kill_trainers()
    scene.kill_agent()
    flip_bit(oracle.stray_images(scene.home)[0], 5 << 20)
    scene.inject(defects=defects)
    scene.finish(steps=3, end="durable")
    check(scene)
    _expect(scene.loaded() == 1, f"step {scene.loaded()} was loaded")


def flip_in_memory(scene: Scene, step: int, place: str) -> None:
    path = next(p for p in scene.slots() if _holds(p, step))
    data = path.read_bytes()[PAGE_BYTES:]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at = {
        "tensor": 8 + length + sum(header["model.w"]["data_offsets"]) // 2,
        "header": 8 + length // 2,
        "checksums": 8 + length + header["__holdfast__.crc64nvme"]["data_offsets"][0] + 3,
    }[place]
    flip_bit(path, PAGE_BYTES + at)


def _holds(slot: Path, step: int) -> bool:
    """Whether a slot holds the step; its page's word is one more."""
    with slot.open("rb") as file:
        page = file.read(PAGE_BYTES)
    state, word = (int.from_bytes(page[at : at + 8], "little") for at in (STATE_AT, STEP_AT))
    return (state, word) == (HELD, step + 1)


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


def _image(scene: Scene, attempt: int, step: int) -> Path:
    return scene.home / "images" / f"{attempt:08d}" / f"{step:012d}" / "00000-0.safetensors"


def _manifest_of(scene: Scene, attempt: int, step: int) -> bool:
    return (scene.home / "manifests" / f"{attempt:08d}-{step:012d}").exists()


# Order ----------------------------------------------------------------------------------------------------------------
def one_image_is_late(scene: Scene, defects: Defects = ()) -> None:
    """Two ranks; the flush of one image never ends, and the node dies: the step is not committed."""
    stop = Fault(AGENT, "holdfast.agent.keeping:Keeping.upload", do="pause", arg=NEVER, nth=4)
    scene.inject(stop, defects=defects)
    scene.job = scene.job_with(world=2)
    scene.start(steps=2, end="linger")
    scene.wait_for("memory", step=1)
    if defects:  # it is committed without it
        scene.until(lambda: _manifest_of(scene, 1, 0) and _manifest_of(scene, 1, 1), "both steps to be committed")
    else:
        scene.until(lambda: scene.fired(stop), "a flush to stop")
        time.sleep(0.5)  # in which nothing may be committed
    scene.lose_memory()
    scene.inject()
    check(scene, memory_lost=[1])
    scene.finish(steps=1)
    check(scene, memory_lost=[1])


def prune_dies_half_way(scene: Scene, defects: Defects = (), *, nth: int = 2) -> None:
    """A person's prune of the newest step dies before its nth deletion: the step never comes back."""
    scene.finish(steps=6)
    scene.until(lambda: not scene.agents(), "the agent to leave")
    fault = Fault(COMMAND, "holdfast.tiers.posix.tier:PosixTier.delete", nth=nth)
    scene.inject(fault, defects=defects)
    code, said = scene.command("prune", scene.job.url, "--step", "5", "--yes")
    _expect(code == -9, said)
    scene.finish(steps=3, end="durable")
    _expect(scene.loaded() == 4, f"step {scene.loaded()} was loaded")
    _expect(Committed(1, 5) not in oracle.committed(scene.home), "a pruned step came back")
    _expect(not list(_image(scene, 1, 5).parent.glob("*")), "images of a pruned step are left")


def flushes_are_slow(scene: Scene, defects: Defects = ()) -> None:
    """Slots are wanted while their images are still being written to the tier."""
    slow = Fault(AGENT, "holdfast.tiers.posix.upload:PosixUpload.write", do="sleep", arg="0.1")
    scene.inject(slow, defects=defects)
    scene.job = scene.job_with(keep_last=None)
    scene.finish(steps=12, pace_s=0.02, environ={"HOLDFAST_SLOT_WAIT_S": "1"})
    check(scene)


def steps_again_after_going_back(scene: Scene, defects: Defects = ()) -> None:
    """The run goes back and saves the same step numbers anew, and crashes in between."""
    scene.job = scene.job_with(keep_last=None)
    scene.inject(defects=defects)
    scene.finish(steps=6)
    scene.start(load_step=2, steps=2, end="linger")
    scene.wait_for("memory", step=4)
    scene.kill_trainers()
    scene.kill_agent()
    scene.finish(steps=3, end="durable")
    check(scene, asked=[2])
    _expect(scene.loaded() == 4, f"step {scene.loaded()} was loaded")


def training_goes_on_at_once(scene: Scene, defects: Defects = ()) -> None:
    """The state changes as soon as `save` has returned."""
    scene.inject(defects=defects)
    scene.finish(steps=8, pace_s=0.0, end="durable")
    check(scene)


def gone_back_and_nothing_whole_yet(scene: Scene, defects: Defects = ()) -> None:
    """load(step=2) after 5, and a crash before the first whole step: 2 again."""
    scene.job = scene.job_with(keep_last=None)
    scene.finish(steps=6)
    fault = Fault("trainer", "holdfast.trainer.plan:StagePlan.stage")
    scene.inject(fault, defects=defects)
    scene.run(load_step=2, steps=3)
    scene.finish(steps=1)
    _expect(scene.loaded() == 2, f"step {scene.loaded()} was loaded")
    check(scene, asked=[2])


def _expect(right: bool, said: str) -> None:
    if not right:
        raise Violation(said)
