"""Settings that change what real processes do: a file, a bandwidth, cores."""

import contextlib
import io
import json
import os
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.cli import main  # noqa: E402

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
        max_bytes_per_s = "8 MiB/s"
    """)
    with holdfast.Checkpointer(holdfast.Config.from_file(path)) as ckpt:
        ckpt.load(filled(0, 40 * MB))
        due(ckpt.save(1, filled(1, 40 * MB))).wait("durable", timeout_s=60)
        [tier] = place.status()["tiers"]
        assert tier["max_bytes_per_s"] == 8 * MB
        began = time.monotonic()
        saved = due(ckpt.save(2, filled(2, 40 * MB)))
        assert saved.stall_s < 2, "training does not wait for it"
        saved.wait("durable", timeout_s=60)
        # What the burst of the first save left owing may have come in since, but for one part.
        assert time.monotonic() - began > (40 - 16) / 8 * 0.9
    assert place.committed() == [(1, 1), (1, 2)]


def affinities(pid):
    return [os.sched_getaffinity(int(t.name)) for t in Path(f"/proc/{pid}/task").iterdir()]


@pytest.mark.started_agents  # with the cores of whoever starts them
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
            agent = processes.the_agent(place.arena_dir)
            for cores in affinities(agent.pid):
                assert cores
                assert first not in cores
            os.sched_setaffinity(0, mine)
            ckpt.prepare(filled(0))
            assert all(cores >= mine for cores in affinities(agent.pid)), "there is no outside any more"
    finally:
        os.sched_setaffinity(0, mine)


def test_two_file_tiers_with_a_rule_each_and_a_load_from_the_other(place):
    archive = place.home.parent / "archive"
    config = holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", keep_last=2),
            holdfast.TierConfig(place.url, every_steps=1, keep_last=2),
            holdfast.TierConfig(str(archive), name="archive", every_steps=2, keep_best=2, best_metric="loss"),
        )
    )
    losses = {1: 0.0, 2: 0.5, 3: 0.0, 4: 0.1, 5: 0.0, 6: float("nan"), 7: 0.0, 8: 0.2, 9: 0.0, 10: 0.9}
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        for step, loss in losses.items():
            saved = due(ckpt.save(step, filled(step), metrics={"loss": loss, "tensor": torch.tensor(2.5)}))
            for tier in saved.due:
                saved.wait(tier, timeout_s=30)
        until(lambda: [s for _, s in place.committed()] == [9, 10], "the newest two")
        names = [f"00000001-{s:012d}" for s in (4, 8, 10)]
        until(lambda: sorted(os.listdir(archive / "manifests")) == names, "the best two, and the newest")
        [info] = [s for s in ckpt.steps() if s.step == 10]
        assert info.tiers == ["memory", "posix", "archive"]
    listed = json.loads(told("ls", str(archive), "--json"))["steps"]
    assert [(s["step"], s["metrics"]) for s in listed if s["step"] in (4, 8, 10)] == [
        (4, {"loss": 0.1, "tensor": 2.5}), (8, {"loss": 0.2, "tensor": 2.5}), (10, {"loss": 0.9, "tensor": 2.5}),
    ]  # fmt: skip
    assert all(abs(s["saved_at_s"] - time.time()) < 300 for s in listed)
    assert "loss=0.1 tensor=2.5" in told("ls", str(archive))
    assert "metrics: loss=0.9" in told("show", place.url, "--step", "10")
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    # What the first tier has lost is loaded from the other, newest and older.
    for image in place.images(1, 10):
        image.write_bytes(b"\0" * image.stat().st_size)
    for step in (10, 4):
        with holdfast.Checkpointer(config) as ckpt:
            state = filled(0)
            assert ckpt.load(state, step=None if step == 10 else step) == step
            assert (state["x"] == step).all()
            assert ckpt.last_load is not None
            assert set(ckpt.last_load.bytes_by_tier) == {"archive"}


def test_metrics_that_are_none_are_refused_before_anything_is_saved(place):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0))
        for bad in (
            {"loss": "low"},
            {3: 1.0},
            {"": 1.0},
            {"loss": torch.zeros(3)},
            {f"metric {n}": n for n in range(999)},
        ):
            with pytest.raises(holdfast.HoldfastError) as caught:
                ckpt.save(1, filled(1), metrics=bad)  # type: ignore[arg-type]
            assert caught.value.kind == "usage"
            assert caught.value.hint
        for step, loss in enumerate((0.5, 0.1, 0.4, 0.9), 1):
            due(ckpt.save(step, filled(step), metrics={"loss": loss})).wait("durable", timeout_s=30)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    best = ("--keep-best", "1", "--metric", "loss", "--json")
    for more, gone in (
        ((), [1, 3]),
        (("--greatest",), [1, 2, 3]),
        (("--keep-for", "1 h"), []),
        (("--keep-last", "2"), [1]),
    ):
        planned = json.loads(told("prune", place.url, *best, *more))
        assert [d["step"] for d in planned["delete"]] == gone
    assert main(["prune", place.url, "--keep-best", "1"]) == 2
    assert main(["prune", place.url, "--keep-every", "1"]) == 2
    told("prune", place.url, *best, "--yes")
    assert place.committed() == [(1, 2), (1, 4)]


def told(*arguments):
    """What the command line prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(arguments)) == 0
    return out.getvalue()


def test_an_agent_that_has_to_end_takes_all_the_bandwidth_there_is(place):
    tiers = (
        holdfast.TierConfig("memory:", keep_last=2),
        holdfast.TierConfig(place.url, max_bytes_per_s="512 KiB/s"),
    )
    with holdfast.Checkpointer(holdfast.Config(tiers=tiers)) as ckpt:
        ckpt.load(filled(0, 40 * MB))
        due(ckpt.save(1, filled(1, 40 * MB))).wait("memory", timeout_s=30)
        agent = processes.the_agent(place.arena_dir)
        began = time.monotonic()
        agent.terminate()
        until(place.committed, "the newest step is durable within the grace", within_s=25)
        # Two parts of 16 MiB are beyond the burst: more than 30 s at that pace.
        assert time.monotonic() - began < 25
