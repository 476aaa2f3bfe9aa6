"""Ten thousand steps in one home: listing, loading, starting and pruning stay quick, and memory bounded."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402
from tests.unit import store_fixtures as store  # noqa: E402

import holdfast  # noqa: E402
from holdfast.format import manifest as codec  # noqa: E402
from holdfast.format import names  # noqa: E402
from holdfast.model.identity import CheckpointId, ImageId  # noqa: E402
from holdfast.store.catalog import KnownManifests, read_catalog  # noqa: E402
from holdfast.tiers.posix import PosixTier  # noqa: E402
from holdfast.tiers.wrappers import Faults  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.started_agents]

STEPS = 10_000
LISTING_S = 30.0
"""3 s on an idle machine; other work may run beside this."""
MEMORY_BYTES = 200 << 20


@pytest.fixture
def crowded(place):
    """A home with one step that was saved, and 9,999 that look like it: images are links, manifests are their own."""
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load({"x": torch.zeros(100)})
        due(ckpt.save(STEPS, {"x": torch.full((100,), 7.0)})).wait("durable", timeout_s=30)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    tier = PosixTier(str(place.home), create=False)
    one = store.make(1, 0, world_size=1)
    [image] = one.images
    first = place.home / image.key
    first.parent.mkdir(parents=True)
    first.write_bytes(image.data)
    for step in range(STEPS):
        if step:
            path = place.home / names.image_key(ImageId(1, step, 0))
            os.makedirs(path.parent)
            os.link(first, path)
        (place.home / names.manifest_key(CheckpointId(1, step))).write_bytes(_manifest(one, step))
    tier.close()
    return place


def _manifest(one, step):
    header = replace(one.images[0].header, id=ImageId(1, step, 0))
    record = replace(one.images[0].record, id=ImageId(1, step, 0))
    return codec.encode(codec.build([header], [record], one.plain))


def test_ten_thousand_steps(crowded, capsys):
    tier = Faults(PosixTier(str(crowded.home), create=False))
    known = KnownManifests()
    for read in (STEPS + 1, 0):
        tier.calls.clear()
        began = time.monotonic()
        assert len(read_catalog(tier, known=known).entries) == STEPS + 1
        assert time.monotonic() - began < LISTING_S
        assert tier.calls.get("read_into", 0) == read, "what is known is not read again"
    tier.close()

    began = time.monotonic()
    code = "import sys; from holdfast.cli import main; main(); print(open('/proc/self/status').read(), file=sys.stderr)"
    command = [sys.executable, "-c", code, "ls", str(crowded.home), "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(json.loads(done.stdout)["steps"]) == STEPS + 1
    assert time.monotonic() - began < LISTING_S
    [most] = re.findall(r"VmHWM:\s+(\d+) kB", done.stderr.decode())
    assert int(most) << 10 < 2 * MEMORY_BYTES

    began = time.monotonic()
    state = {"x": torch.zeros(100)}
    with holdfast.Checkpointer(crowded.url, keep_last=STEPS) as ckpt:
        assert ckpt.load(state) == STEPS
        assert time.monotonic() - began < 2 * LISTING_S
        assert (state["x"] == 7).all()
        for step in range(STEPS + 1, STEPS + 4):
            due(ckpt.save(step, state)).wait("durable", timeout_s=60)
        until(lambda: not (crowded.home / names.manifest_key(CheckpointId(1, 0))).exists(), "the oldest goes", 60)
        assert processes.the_agent(crowded.arena_dir).memory_info().rss < MEMORY_BYTES
