"""One long run in which trainer, agent or both are killed at random moments and started again.

`HOLDFAST_TEST_KILLS=1000 HOLDFAST_TEST_SEED=7 pytest tests/fault/test_random_kills.py` goes on for longer, elsewhere;
with `HOLDFAST_TEST_SLOW=1` three functions, which the seed chooses, are slowed down.
"""

import os
import random
import time

import pytest
from tests.fault.harness.checks import check, check_tidy
from tests.fault.harness.scene import Scene
from tests.fault.inject.faults import AGENT, TRAINER, Fault

pytestmark = [pytest.mark.torch, pytest.mark.timeout(0 if "HOLDFAST_TEST_KILLS" in os.environ else 600)]

KILLS = int(os.environ.get("HOLDFAST_TEST_KILLS", "60"))
SEED = int(os.environ.get("HOLDFAST_TEST_SEED", "1"))
SLOW = "HOLDFAST_TEST_SLOW" in os.environ
CHECKED_EVERY = 10
DURABLE_EVERY = 5
SLOWED = [
    (AGENT, "holdfast.tiers.posix.upload:PosixUpload.write"),
    (AGENT, "holdfast.tiers.posix.tier:PosixTier.move"),
    (AGENT, "holdfast.tiers.posix.tier:PosixTier.delete"),
    (AGENT, "holdfast.store.commit:publish_manifest"),
    (AGENT, "holdfast.agent.executor:seal_image"),
    (AGENT, "holdfast.agent.executor:check_image"),
    (AGENT, "holdfast.agent.contents:Contents.view"),
    (AGENT, "holdfast.agent.claiming:Claiming.claim"),
    (AGENT, "holdfast.agent.contents:Contents.catalog"),
    (TRAINER, "holdfast.trainer.move:move"),
    (TRAINER, "holdfast.wire.mapped:populate"),
]


@pytest.mark.parametrize(("world", "kills"), [(1, KILLS), (2, KILLS // 4)], ids=["one rank", "two ranks"])
def test_random_kills(scene: Scene, world: int, kills: int):
    chance = random.Random(SEED + world)
    scene.job = scene.job_with(world=world, steps=1_000_000, pace_s=0.004, end="linger")
    scene.inject(*slowness(chance) if SLOW else ())
    scene.start()
    scene.wait_for("memory")  # a run that never had anything whole has nothing to go on from, and says so
    failed: list[int] = []  # lives of which a rank was killed: another may have said so before it was, too
    for n in range(1, kills + 1):
        if n % DURABLE_EVERY == 0:
            wait_for_another_durable_step(scene)
        elif chance.random() < 0.7:
            scene.wait_for("loaded")
        time.sleep(chance.random() * 0.3)
        if kill_some(scene, chance) and world > 1:
            failed.append(scene.life - 1)
        if n % CHECKED_EVERY == 0:
            check(scene, failed=failed)
    scene.kill_trainers()
    failed.append(scene.life)
    scene.finish(steps=4, end="durable")
    history = check(scene, failed=failed)
    check_tidy(scene)
    assert len(history.durable) > kills / 8, "this tested nothing"
    assert sum(load is not None for load in history.loads) > kills / 4


def wait_for_another_durable_step(scene: Scene) -> None:
    """However slow the machine is."""
    before = len(scene.events("durable"))
    scene.until(lambda: len(scene.events("durable")) > before, "a step to become durable")


def slowness(chance: random.Random) -> list[Fault]:
    """Some functions take their time, so that other moments are hit."""
    chosen = chance.sample(SLOWED, 3)
    return [Fault(process, at, do="sleep", arg=f"{chance.random() * 0.08:.3f}") for process, at in chosen]


def kill_some(scene: Scene, chance: random.Random) -> bool:
    """Somebody dies. When it was a trainer (the answer), a launcher starts all ranks again."""
    who = chance.choice(("trainer", "agent", "both"))
    if who != "trainer":
        scene.kill_agent()
    if who != "agent":
        chance.choice(scene.trainers).kill()
        scene.kill_trainers()
        scene.start()
    return who != "agent"
