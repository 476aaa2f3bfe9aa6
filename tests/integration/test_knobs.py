"""Settings that change what real processes do: a file, a bandwidth, cores."""

import os
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import due  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch

MB = 1 << 20


def filled(value, n_bytes=20_000):
    return {"x": torch.full((n_bytes // 4,), float(value)), "step": value}


def test_a_file_says_it_all_and_the_agent_keeps_to_the_bandwidth(place):
    path = place.home.parent / "holdfast.toml"
    path.write_text("""
        run = "run"
        [[tiers]]
        url = "memory:"
        keep_last = 2
        [[tiers]]
        url = "run"
        max_bytes_per_s = "16 MiB/s"
    """)
    with holdfast.Checkpointer(holdfast.Config.from_file(path)) as ckpt:
        ckpt.load(filled(0, 40 * MB))
        due(ckpt.save(1, filled(1, 40 * MB))).wait("durable", timeout_s=60)
        [tier] = place.status()["tiers"]
        assert tier["max_bytes_per_s"] == 16 * MB
        began = time.monotonic()
        saved = due(ckpt.save(2, filled(2, 40 * MB)))
        assert saved.stall_s < 1, "training does not wait for it"
        saved.wait("durable", timeout_s=60)
        # What the burst of the first save left owing may have come in since, but for one part.
        assert time.monotonic() - began > (40 - 16) / 16 * 0.9
    assert place.committed() == [(1, 1), (1, 2)]


def affinities(pid):
    return [os.sched_getaffinity(int(t.name)) for t in Path(f"/proc/{pid}/task").iterdir()]


def test_the_agent_keeps_off_the_cores_of_its_trainers(place):
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one core")
    first = min(mine)
    os.sched_setaffinity(0, {first})
    try:
        with holdfast.Checkpointer(place.url) as ckpt:
            ckpt.load(filled(0))
            due(ckpt.save(1, filled(1))).wait("durable", timeout_s=30)
            [agent] = processes.agents(place.arena_dir)
            for cores in affinities(agent.pid):
                assert cores
                assert first not in cores
            os.sched_setaffinity(0, mine)
            ckpt.prepare(filled(0))
            assert all(cores >= mine for cores in affinities(agent.pid)), "there is no outside any more"
    finally:
        os.sched_setaffinity(0, mine)
