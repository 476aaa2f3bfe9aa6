"""Several ranks on one node: each stages its share, all load the same, and replicas that are none are refused."""

import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from holdfast.errors import StructureError
from holdfast.format.header import parse_header

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def headers(paths):
    for path in paths:
        data = path.read_bytes()
        yield parse_header(memoryview(data), len(data))


def written(paths):
    """How often each element of each shared tensor stands in the images."""
    counts: dict[str, np.ndarray] = {}
    for header in headers(paths):
        for entry in header.layout.entries:
            piece = entry.piece
            if piece.owner_rank is None:
                grid = counts.setdefault(piece.fqn, np.zeros(piece.shape, int))
                ends = [o + n for o, n in zip(piece.offsets, piece.lengths, strict=True)]
                grid[tuple(slice(o, e) for o, e in zip(piece.offsets, ends, strict=True))] += 1
    return counts


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_stage_equal_shares_and_each_byte_once(place, forker, world_size):
    first = processes.start(forker, world_size, jobs.train, place.url, steps=2).values()
    images = place.images(1, 1)
    assert len(images) == world_size
    sizes = [path.stat().st_size for path in images]
    assert max(sizes) - min(sizes) <= 0.05 * min(sizes), sizes
    counts = written(images)
    assert {"model.0.weight", "model.1.running_mean", "optim.state.3.weight.exp_avg_sq"} <= counts.keys()
    for name, grid in counts.items():
        assert (grid == 1).all(), name

    second = processes.start(forker, world_size, jobs.train, place.url, steps=1, seed=5).values()
    assert {r["loaded"]["start"] for r in second} == {1}
    assert {r["loaded"]["digest"] for r in second} == {r["digest"] for r in first}
    assert [r["loaded"]["at"] for r in second] == [10 + rank for rank in range(world_size)]
    assert len({r["digest"] for r in second}) == 1


@pytest.mark.parametrize(("what", "named"), [("bytes", "net.weight"), ("shape", "net.weight"), ("state", "momentum")])
def test_replicas_that_differ_are_refused_by_name(place, forker, what, named):
    assert processes.start(forker, 2, jobs.agreeing, place.url, step=7).values() == [None, None]
    before = place.committed()
    for kind, message, hint, took_s in processes.start(forker, 2, jobs.different, place.url, what=what).values():
        assert kind == "replica-mismatch"
        assert named in message
        assert hint
        assert took_s < 30
    assert place.committed() == before
    assert processes.start(forker, 2, jobs.agreeing, place.url, step=9).values() == [7, 7]


def test_plain_values_that_differ_by_rank_are_warned_of_once_with_the_path(place, forker):
    of_rank = processes.start(forker, 3, jobs.plain_values, place.url, differ=True).values()
    for first, second in of_rank:
        [warning] = first
        assert "'conf.rates.1'" in warning
        assert "rank 1, 2" in warning
        assert "per_rank" in warning
        assert second == [], "steady saves compare nothing"


def test_ranks_that_do_not_share_an_arena_are_refused_at_once(place, forker):
    for kind, message, took_s in processes.start(forker, 2, jobs.arena_of_its_own, place.url).values():
        assert kind == "usage"
        assert "rank 1" in message
        assert took_s < 20
    assert not processes.agents(place.arena_dir)


def test_plain_values_that_are_alike_are_not_warned_of(place, forker):
    assert processes.start(forker, 2, jobs.plain_values, place.url, differ=False).values() == [([], [])] * 2


def test_values_of_each_rank_at_another_number_of_ranks(place, forker):
    processes.start(forker, 2, jobs.own_values, place.url).values()
    seen = []

    def joined(values, rank, world_size):
        seen.append((values, rank, world_size))
        return {"n": sum(v["n"] for v in values), "t": torch.cat([v["t"] for v in values])}

    def state(on_resize):
        return {"x": torch.zeros(3), "mine": holdfast.per_rank({"n": 0, "t": torch.zeros(2)}, on_resize=on_resize)}

    with holdfast.Checkpointer(place.url) as ckpt:
        with pytest.raises(StructureError) as caught:
            ckpt.load(state("error"))
        assert "mine" in caught.value.message
        assert "on_resize" in caught.value.message + caught.value.hint
        dropped = state("drop")
        assert ckpt.load(dropped) == 1
        assert dropped["mine"].value["n"] == 0
        assert dropped["x"].tolist() == [1, 1, 1]
        made = state(joined)
        assert ckpt.load(made) == 1
    assert made["mine"].value["n"] == 21
    assert made["mine"].value["t"].tolist() == [10, 10, 11, 11]
    assert [(rank, size) for _, rank, size in seen] == [(0, 1)]


def run(command, env, within_s):
    """Its exit code, and what it said; when it takes too long it is killed with all that it started."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True) as process:
        try:
            said, _ = process.communicate(timeout=within_s)
        except BaseException:
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            raise
        return process.returncode, said


@pytest.mark.timeout(200)
def test_under_torchrun_a_killed_rank_restarts_all_from_memory(place):
    script = Path(__file__).parent / "train_ddp.py"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--log-dir", str(place.home.parent / "logs")]  # else in a directory that stays in /tmp
    # Else torch 2.13's gloo meets the dead ranks' addresses in the store it shares with torchrun.
    env = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    code, said = run([sys.executable, *command, str(script), place.url, str(place.home.parent)], env, within_s=150)
    assert code == 0, said
    told = sorted(p.read_text() for p in place.home.parent.glob("told-*"))
    assert Counter(told) == Counter({"began at None": 2, "began at 5": 2, "ended at 9": 2}), said
    assert (2, 9) in place.committed()
