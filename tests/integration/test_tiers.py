"""Several tiers, each with its own cadence and retention; one that fails or is lost takes nothing from the others."""

import shutil

import pytest

torch = pytest.importorskip("torch")

from tests.integration import processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


def filled(value):
    return {"x": torch.full((5000,), float(value)), "step": value}


def test_a_bare_url_means_memory_and_that_url(place):
    with holdfast.Checkpointer(place.url, every_steps=2, keep_last=2) as ckpt:
        ckpt.load(filled(0))
        saves = [ckpt.save(step, filled(step)) for step in range(9)]
        assert [s is not None for s in saves] == [True, False] * 4 + [True]
        due(saves[8]).wait("durable", timeout_s=30)
        assert due(saves[8]).due == {"memory", "posix"}
        until(lambda: place.committed() == [(1, 6), (1, 8)], "what is older than keep_last goes")
        steps = until(lambda: [s for s in ckpt.steps() if s.step >= 6], "steps are told")
        assert [(s.step, sorted(s.tiers), s.abandoned) for s in steps] == [
            (6, ["memory", "posix"], False), (8, ["memory", "posix"], False)
        ]  # fmt: skip
        assert all(s.size_bytes >= 20_000 for s in steps)


def test_a_file_tier_in_memory_is_warned_of(place):
    home = place.arena_dir / "home"
    with pytest.warns(RuntimeWarning, match="tier posix: .*/home is on tmpfs"):
        ckpt = holdfast.Checkpointer(str(home))
    with ckpt:
        ckpt.load(filled(0))
        due(ckpt.save(1, filled(1))).wait("durable", timeout_s=30)


def test_each_tier_has_its_own_cadence_and_retention(place):
    slow = place.home.parent / "slow"
    config = holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", every_steps=1, keep_last=2),
            holdfast.TierConfig(place.url, every_steps=2, keep_last=2, keep_every_steps=6),
            holdfast.TierConfig(str(slow), every_steps=5, name="slow"),
        )
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        for step in range(1, 14):
            saved = due(ckpt.save(step, filled(step)))
            assert saved.due == {"memory"} | ({"posix"} if step % 2 == 0 else set()) | (
                {"slow"} if step % 5 == 0 else set()
            )
            for tier in saved.due:
                saved.wait(tier, timeout_s=30)
            assert saved.error is None
        forced = due(ckpt.save(14, filled(14), force=True))
        assert forced.due == {"memory", "posix", "slow"}
        forced.wait("slow", timeout_s=30)
        forced.wait("posix", timeout_s=30)
        assert until(forced.done, "the save is done")
        until(
            lambda: [s for _, s in place.committed()] == [6, 12, 14], "6 and 12 by keep_every, 12 and 14 by keep_last"
        )
    assert sorted(p.name for p in (slow / "manifests").iterdir()) == [f"00000001-{s:012d}" for s in (5, 10, 14)]


def test_close_promotes_the_newest_step_though_it_was_not_due_on_the_file_tier(place):
    config = holdfast.Config(
        tiers=(holdfast.TierConfig("memory:", keep_last=2), holdfast.TierConfig(place.url, every_steps=10))
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        for step in range(10, 14):
            due(ckpt.save(step, filled(step))).wait("memory", timeout_s=30)
    assert [s for _, s in place.committed()] == [10, 13]
    state = filled(0)
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(state) == 13
    assert (state["x"] == 13).all()


def test_going_back_leaves_the_later_steps_behind(place):
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(filled(0))
        for step in (1, 2, 3):
            due(ckpt.save(step, filled(step))).wait("durable", timeout_s=30)
        state = filled(0)
        assert ckpt.load(state, step=1) == 1
        assert state["step"] == 1
        due(ckpt.save(2, filled(22))).wait("durable", timeout_s=30)
        told = {(s.attempt, s.step): s.abandoned for s in ckpt.steps()}
        assert told == {(1, 1): False, (1, 2): True, (1, 3): True, (2, 2): False}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) == 2
    assert (state["x"] == 22).all()


def test_a_tier_that_outlives_the_one_with_the_claims_still_loads(place):
    other = place.home.parent / "other"
    config = holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", keep_last=2),
            holdfast.TierConfig(place.url),
            holdfast.TierConfig(str(other)),
        )
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        for step in (1, 2):
            due(ckpt.save(step, filled(step))).wait("posix-2", timeout_s=30)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    shutil.rmtree(place.home)
    for expected, next_step in ((2, 3), (3, None)):
        state = filled(0)
        with holdfast.Checkpointer(str(other)) as ckpt:
            assert ckpt.load(state) == expected
            assert (state["x"] == expected).all()
            if next_step is not None:
                ckpt.save(next_step, filled(next_step))


def test_saves_go_on_when_an_agent_has_to_start_while_the_only_file_tier_is_gone(place):
    mount, away = place.home.parent / "mnt", place.home.parent / "away"
    mount.mkdir()
    config = holdfast.Config(
        tiers=(holdfast.TierConfig("memory:", keep_last=2), holdfast.TierConfig(str(mount / "run")))
    )
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        due(ckpt.save(1, filled(1))).wait("durable", timeout_s=30)
        mount.rename(away)
        agent = processes.the_agent(place.arena_dir)
        agent.kill()
        agent.wait(30)
        # Waits for the next agent, as `steps` would, which reads the tier.
        ckpt._session.revive()
        with pytest.warns(RuntimeWarning, match="cannot be opened"):
            saved = due(ckpt.save(2, filled(2)))
        saved.wait("memory", timeout_s=30)
        away.rename(mount)
        until(lambda: sorted(p.name for p in (mount / "run/manifests").iterdir())[-1].endswith("2"), "it is flushed")


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_a_tier_removed_under_the_run_is_not_made_again_until_the_job_is_restarted(place):
    """The agent outlives the job: the next launch finds it, and it begins the directory anew."""
    other = place.home.parent / "other"
    config = holdfast.Config(tiers=(holdfast.TierConfig(place.url), holdfast.TierConfig(str(other), name="second")))
    ckpt = holdfast.Checkpointer(config)
    ckpt.load(filled(0))
    due(ckpt.save(1, filled(1))).wait("second", timeout_s=30)
    shutil.rmtree(other)
    saved = due(ckpt.save(2, filled(2)))
    told = "step 2 is not on tier second: the directory of the tier, .*/other, was removed or unmounted"
    with pytest.raises(holdfast.HoldfastError, match=told) as caught:
        saved.wait("second", timeout_s=30)
    assert (caught.value.kind, caught.value.tier, caught.value.step) == ("tier", "second", 2)
    assert str(saved.error) == str(caught.value)
    saved.wait("posix", timeout_s=30)
    assert not other.exists()
    until(lambda: ckpt._session.run_page.errors, "the trainer is told")
    with pytest.warns(RuntimeWarning, match=f"^holdfast: {told}.*\n  hint: restart the job"):
        ckpt._saves.report_background_errors()
    ckpt._session.detach()
    with holdfast.Checkpointer(config) as again:
        assert again.load(filled(0)) == 2
        due(again.save(3, filled(3))).wait("second", timeout_s=30)
    assert [p.name[-1] for p in sorted((other / "manifests").iterdir())][-1] == "3"
