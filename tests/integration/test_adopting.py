"""What a new agent makes of what the one before left in the arena."""

import asyncio
import time

import pytest

torch = pytest.importorskip("torch")

from tests.images import images_of  # noqa: E402

from holdfast.agent.agent import Agent  # noqa: E402
from holdfast.agent.arena import Arena  # noqa: E402
from holdfast.config import Config  # noqa: E402
from holdfast.model.identity import CheckpointId  # noqa: E402
from holdfast.wire.pages import SlotState  # noqa: E402

pytestmark = pytest.mark.torch

STEP = CheckpointId(1, 7)


def leave(arena, source, state):
    """A slot as a killed agent left it."""
    slot = arena.create(len(source.buffer))
    arena.make_ready(slot)
    slot.room(len(source.buffer))[:] = source.buffer
    page, image = slot.page, source.header.id
    page.attempt, page.step, page.rank, page.image = image.attempt, image.step, image.rank, image.image
    page.world_size, page.image_count, page.image_bytes = 2, 1, len(source.buffer)
    page.generation, page.due_mask, page.state = 1, 0b11, state


@pytest.mark.parametrize("states", [(SlotState.STAGED, SlotState.STAGED), (SlotState.HELD, SlotState.STAGED)])
def test_a_step_that_two_ranks_staged_before_all_died_is_whole(place, states):
    settings = Config.from_url(place.url).resolve()
    arena = Arena(settings.arena, 0)
    for source, state in zip(images_of({"x": torch.ones(999)}, {"x": torch.ones(999)}), states, strict=True):
        leave(arena, source, state)
    arena.close()

    async def live():
        agent = Agent(settings.arena, settings)
        await agent.start()
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                agent.poller.poll(settings.tiers)
                status = agent.executor.run.status(STEP)
                if status is not None and status.memory != "staged":
                    return status.memory, list(agent.view().errors)
                await asyncio.sleep(0.01)
            return "staged", list(agent.view().errors)
        finally:
            await agent.finish()

    assert asyncio.run(live()) == ("whole", [])


def test_a_page_that_an_agent_died_making_is_no_obstacle(place):
    settings = Config.from_url(place.url).resolve()
    settings.arena.mkdir(parents=True)
    (settings.arena / "trainer-00000.page").touch()
    with (settings.arena / "trainer-00001.page").open("wb") as file:
        file.truncate(4096)

    async def live():
        agent = Agent(settings.arena, settings)
        await agent.start()
        await agent.finish()

    asyncio.run(live())
    assert not list(settings.arena.glob("trainer-*"))
