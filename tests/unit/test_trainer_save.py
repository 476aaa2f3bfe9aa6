"""What a handle waits for when it waits for "durable"."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from holdfast.config import Config, TierConfig  # noqa: E402
from holdfast.errors import NotDueError  # noqa: E402
from holdfast.trainer.save import Save  # noqa: E402
from holdfast.wire.messages import SaveStatus, TierState  # noqa: E402

pytestmark = pytest.mark.torch

MEMORY = TierConfig("memory:")
DISK = TierConfig("/mnt/nvme/r", scope="node", name="disk")
NEAR = TierConfig("/lustre/r", name="near")
FAR = TierConfig("/archive/r", name="far")


def handle(*tiers: TierConfig, due: set[str], committed: set[str]) -> Save:
    """Of a step that is due on some tiers, and stands on those that are committed already."""
    status = SaveStatus("whole", {n: TierState("committed" if n in committed else "flushing") for n in due})
    settings = Config(tiers=tiers).resolve({})
    session: Any = SimpleNamespace(settings=settings, closed=False, ask=lambda *args, **more: status)
    return Save(session, attempt=1, step=7, due=frozenset(due), stall_s=0.0)


def test_a_disk_of_the_node_is_not_durable_where_a_tier_is_shared():
    save = handle(MEMORY, DISK, NEAR, due={"memory", "disk"}, committed={"disk"})
    with pytest.raises(NotDueError, match="'durable' is not due at step 7"):
        save.wait("durable", timeout_s=1)
    save.wait("disk", timeout_s=1)


def test_a_disk_of_the_node_is_durable_where_it_is_all_there_is():
    save = handle(MEMORY, DISK, due={"memory", "disk"}, committed={"disk"})
    save.wait("durable", timeout_s=1)


@pytest.mark.parametrize("there", ["near", "far"])
def test_one_of_several_shared_tiers_is_enough(there):
    save = handle(MEMORY, DISK, NEAR, FAR, due={"memory", "disk", "near", "far"}, committed={there})
    save.wait("durable", timeout_s=1)
