"""The agent's tiers: whose unfinished uploads are swept, and what a launch with other settings changes."""

import asyncio
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit import store_fixtures as store
from tests.unit.store_fixtures import make_image, put_image

from holdfast.agent import open_tiers
from holdfast.agent.answers import Answers
from holdfast.agent.shelf import Shelf
from holdfast.agent.status import save_status_by_tiers, step_infos
from holdfast.config import Config, TierConfig
from holdfast.errors import ConfigError, TierUnavailableError
from holdfast.format import names
from holdfast.lifecycle.actions import KnownImage
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store import attempts
from holdfast.tiers import PosixTier, open_tier
from holdfast.tiers.contract import ABANDONED_S
from holdfast.tiers.wrappers import Fault, Faults, Raise, Retry


@pytest.fixture
def unfinished(tmp_path):
    return tmp_path / "home" / ".tmp"


@pytest.fixture
def shelves(tmp_path):
    """Makes the shelf of an agent of the named arena; all of them share one file tier."""
    settings = Config.from_url(str(tmp_path / "home")).resolve({})
    made = []

    def make(arena):
        directory = tmp_path / arena
        directory.mkdir(exist_ok=True)
        made.append(Shelf(settings, directory))
        return made[-1]

    yield make
    for shelf in made:
        shelf.close()


def relaunch(shelf, settings):
    """A launch brings other settings."""
    shelf.tiers.reconfigure(settings, shelf.tiers.open_for(settings))


def begin(shelf, unfinished):
    """Begin a flush; the path of its temporary file."""
    before = set(unfinished.iterdir())
    shelf.tiers["posix"].upload("images/one", 8).write(0, memoryview(b"half"))
    [path] = set(unfinished.iterdir()) - before
    return path


def test_an_agent_sweeps_what_dead_agents_of_its_arena_left_and_nothing_that_may_live(shelves, unfinished):
    dead, living, mine = shelves("arena"), shelves("other"), shelves("arena")
    left, theirs, own = (begin(shelf, unfinished) for shelf in (dead, living, mine))
    mine.tiers.sweep_uploads("posix")
    assert not left.exists()
    assert theirs.exists(), "the agent of another arena, or node, may be writing it"
    assert own.exists()
    past = time.time() - ABANDONED_S - 60
    os.utime(theirs, (past, past))
    os.utime(own, (past, past))
    mine.tiers.sweep_uploads("posix")
    assert not theirs.exists(), "nobody wrote to it for so long"
    assert own.exists()
    assert list(unfinished.iterdir()) == [own]


def test_a_tier_that_moved_is_opened_at_its_new_place(shelves, tmp_path):
    shelf = shelves("arena")
    before = shelf.tiers["posix"]
    upload = before.upload("images/one", 4)
    relaunch(shelf, Config.from_url(str(tmp_path / "elsewhere")).resolve({}))
    shelf.tiers["posix"].put("attempts/00000001", memoryview(b"here"))
    assert (tmp_path / "elsewhere/attempts/00000001").read_bytes() == b"here"
    upload.write(0, memoryview(b"late"))
    upload.publish()
    assert (tmp_path / "home/images/one").read_bytes() == b"late", "what was under way ends where it began"


def test_nothing_changes_when_a_new_tier_cannot_be_opened(shelves, tmp_path):
    shelf = shelves("arena")
    before = shelf.tiers["posix"]
    with pytest.raises(ConfigError):
        relaunch(shelf, Config.from_url(str(tmp_path / "no/such/parent")).resolve({}))
    assert shelf.tiers["posix"] is before
    assert shelf.tiers.authority is before


def with_another(tmp_path, other, **more):
    """Settings of the same run with one more tier."""
    tiers = (TierConfig("memory:"), TierConfig(str(tmp_path / "home")), TierConfig(str(tmp_path / other)))
    return Config(tiers=tiers, **more).resolve({})


def test_a_directory_that_was_replaced_is_opened_anew_though_another_tier_failed_first(shelves, tmp_path):
    shelf = shelves("arena")
    (tmp_path / "home").rename(tmp_path / "old")
    (tmp_path / "home").mkdir()
    with pytest.raises(ConfigError):
        relaunch(shelf, with_another(tmp_path, "no/such/parent"))
    relaunch(shelf, with_another(tmp_path, "other"))
    shelf.tiers["posix"].put("attempts/00000001", memoryview(b"here"))
    assert (tmp_path / "home/attempts/00000001").read_bytes() == b"here"


def test_reading_images_from_a_tier_that_hangs_takes_no_threads_of_another(shelves, tmp_path):
    shelf = shelves("arena")
    relaunch(shelf, with_another(tmp_path, "other"))
    answers = threading.Event()
    for _ in range(8):
        shelf.tiers.fetches("posix").submit(answers.wait, 60)
    try:
        assert shelf.tiers.fetches("posix-2").submit(lambda: "free").result(30) == "free"
    finally:
        answers.set()


@pytest.mark.parametrize("pool", ["acts", "chores"])
def test_what_is_under_way_at_the_end_has_the_threads_for_its_parts_until_it_is_done(shelves, pool):
    tiers = shelves("arena").tiers
    began, go_on = threading.Event(), threading.Event()

    def work():
        began.set()
        go_on.wait(30)
        return tiers.parts("posix").submit(lambda: "read").result(30)

    working = getattr(tiers, pool)("posix").submit(work)
    assert began.wait(30)
    closing = threading.Thread(target=tiers.close)
    closing.start()
    while not getattr(tiers, pool)("posix")._shutdown:  # from then on that pool is waited for
        time.sleep(0.001)
    go_on.set()
    assert working.result(30) == "read"
    closing.join(30)


def test_tiers_that_stay_open_get_the_patience_of_the_new_launch(shelves, tmp_path):
    shelf = shelves("arena")
    before = shelf.tiers["posix"]
    relaunch(shelf, with_another(tmp_path, "other", retry_s=7.0))
    assert shelf.tiers["posix"] is before
    for name in ("posix", "posix-2"):
        tier = shelf.tiers[name]
        assert isinstance(tier, Retry)
        assert tier.policy.deadline_s == 7.0


def test_what_cannot_be_loaded_does_not_stand(shelves, tmp_path):
    """Nothing may be let go for the sake of a checkpoint whose image is gone."""
    shelf = shelves("arena")
    image = make_image(ImageId(1, 100, 0), world_size=1)
    put_image(shelf.tiers["posix"], image)
    shelf.claiming.owner = 1
    attempts.claim(shelf.tiers.authority, [], run="home", parent=None, coordinator="", seen=0)
    shelf.keeping.check_whole(CheckpointId(1, 100), (KnownImage(image.record, image.header),), None)
    shelf.keeping.commit("posix", CheckpointId(1, 100), (KnownImage(image.record, image.header),))
    assert shelf.contents.catalog("posix")[0] == {CheckpointId(1, 100)}
    (tmp_path / "home" / image.key).unlink()
    assert shelf.contents.catalog("posix")[0] == frozenset()


def test_a_step_tells_on_which_tier_it_is_damaged(tmp_path):
    tiers = (
        TierConfig("memory:"),
        TierConfig(f"{tmp_path}/near", name="near"),
        TierConfig(f"{tmp_path}/far", name="far"),
    )
    (tmp_path / "arena").mkdir()
    shelf = Shelf(Config(tiers=tiers).resolve({}), tmp_path / "arena")
    for _, tier in shelf.tiers.shelved():
        store.begin(tier)
        store.save(tier, 1, 10)
    (tmp_path / "near" / names.manifest_key(CheckpointId(1, 10))).write_bytes(b"noise")

    (info,) = step_infos(shelf.contents.view(), [], [])
    shelf.close()
    assert info.tiers == ["far"]
    assert info.problem.startswith("near: ")


def test_a_step_is_not_said_to_be_lost_while_a_tier_cannot_be_looked_at(shelves):
    async def in_thread(work, *args):
        return work(*args)

    shelf = shelves("arena")
    store.begin(shelf.tiers["posix"])
    store.save(shelf.tiers["posix"], 1, 10)
    host: Any = SimpleNamespace(in_thread=in_thread)
    executor: Any = SimpleNamespace(run=SimpleNamespace(status=lambda checkpoint: None))
    arena: Any = SimpleNamespace(find=lambda *states: iter(()))
    answers = Answers(host, executor, arena, shelf.contents)

    def status(step):
        return asyncio.run(answers.save_status(CheckpointId(1, step), targets=[], wait_s=0.0)).memory

    assert (status(10), status(11)) == ("gone", "lost")
    away = Fault("list", Raise(TierUnavailableError("does not answer")), times=None)
    shelf.tiers._tiers["posix"] = Faults(shelf.tiers["posix"], away)
    with pytest.raises(TierUnavailableError, match="does not answer"):
        status(10)


def test_a_step_is_not_settled_while_a_tier_that_may_have_it_cannot_be_looked_at(shelves, tmp_path):
    shelf = shelves("arena")
    relaunch(shelf, with_another(tmp_path, "other"))
    for _, tier in shelf.tiers.shelved():
        store.begin(tier)
        store.save(tier, 1, 10)
    away = Fault("list", Raise(TierUnavailableError("does not answer")), times=None)
    faulty = shelf.tiers._tiers["posix-2"] = Faults(shelf.tiers["posix-2"], away)
    status = save_status_by_tiers(shelf.contents.view(), CheckpointId(1, 10))
    assert (status.memory, status.settled) == ("gone", False)
    assert {n: (t.state, t.error and t.error["message"]) for n, t in status.tiers.items()} == {
        "posix": ("committed", None),
        "posix-2": ("waiting", "does not answer"),
    }
    faulty.clear()
    status = save_status_by_tiers(shelf.contents.view(), CheckpointId(1, 10))
    assert {n: t.state for n, t in status.tiers.items()} == {"posix": "committed", "posix-2": "committed"}
    assert status.settled


def test_an_agent_starts_without_a_tier_that_cannot_be_opened_and_uses_it_later(tmp_path):
    config = Config(tiers=(TierConfig(str(tmp_path / "home")), TierConfig(str(tmp_path / "gone/other"))))
    shelf = Shelf(config.resolve({}), tmp_path)
    try:
        assert shelf.contents.catalog("posix") == (frozenset(), frozenset(), {})
        with pytest.raises(TierUnavailableError, match=r"cannot be opened: .*gone"):
            shelf.contents.catalog("posix-2")
        (tmp_path / "gone").mkdir()
        shelf.tiers["posix-2"].put("attempts/00000001", memoryview(b"here"))
        assert (tmp_path / "gone/other/attempts/00000001").read_bytes() == b"here"
        assert shelf.tiers["posix-2"].capabilities == shelf.tiers["posix"].capabilities
    finally:
        shelf.close()


@pytest.fixture
def slow(monkeypatch):
    """Looks end soon, and tiers in a directory of that name hang until it is set."""
    answers = threading.Event()

    def slowly(url, **more):
        if url.endswith("/slow"):
            answers.wait(30)
        return open_tier(url, **more)

    monkeypatch.setattr(open_tiers, "open_tier", slowly)
    monkeypatch.setattr(open_tiers, "_LEAST_LOOK_S", 1.0)
    monkeypatch.setattr(open_tiers, "_LOOKS_PER_START", 1000)
    yield answers
    answers.set()


def test_an_agent_starts_without_a_tier_that_hangs_as_it_is_opened_and_uses_it_when_it_answers(slow, tmp_path):
    began = time.monotonic()
    shelf = Shelf(with_another(tmp_path, "slow"), tmp_path)
    try:
        assert time.monotonic() - began < 20
        with pytest.raises(TierUnavailableError, match="still does not answer"):
            shelf.contents.catalog("posix-2")
        slow.set()
        shelf.tiers["posix-2"].put("attempts/00000001", memoryview(b"here"))
        assert (tmp_path / "slow/attempts/00000001").read_bytes() == b"here"
    finally:
        slow.set()
        shelf.close()


def test_a_launch_that_needs_a_tier_that_hangs_is_refused_in_time(slow, shelves, tmp_path):
    shelf = shelves("arena")
    for text in ("did not answer within", "still does not answer"):
        with pytest.raises(TierUnavailableError, match=text):
            shelf.tiers.open_for(with_another(tmp_path, "slow"))
    assert shelf.tiers.open_for(with_another(tmp_path, "other")), "another place is another tier"
    slow.set()


def test_a_tier_that_opens_too_late_for_a_launch_is_closed(slow, shelves, tmp_path, monkeypatch):
    shelf, close, closed = shelves("arena"), PosixTier.close, threading.Event()

    def noted(tier):
        close(tier)
        if tier.root.endswith("/slow"):
            closed.set()

    monkeypatch.setattr(PosixTier, "close", noted)
    with pytest.raises(TierUnavailableError, match="did not answer within"):
        shelf.tiers.open_for(with_another(tmp_path, "slow"))
    assert not closed.is_set()
    slow.set()
    assert closed.wait(30)


def test_a_tier_that_hangs_as_a_launch_begins_is_not_taken_for_replaced(slow, shelves, monkeypatch):
    shelf = shelves("arena")
    monkeypatch.setattr(PosixTier, "stands", lambda self: slow.wait(30))
    assert shelf.tiers.open_for(shelf.tiers.settings) == {}
    slow.set()


def test_a_tier_that_is_opened_after_a_launch_has_the_limit_of_that_launch(tmp_path):
    def limited(limit):
        there = TierConfig(str(tmp_path / "gone/other"), max_bytes_per_s=limit)
        return Config(tiers=(TierConfig(str(tmp_path / "home")), there)).resolve({})

    shelf = Shelf(limited(1000), tmp_path)
    try:
        relaunch(shelf, limited(2000))
        (tmp_path / "gone").mkdir()
        shelf.tiers["posix-2"].put("attempts/00000001", memoryview(b"here"))
        assert shelf.tiers.limit_of("posix-2") == 2000
        shelf.tiers.lift_limits()
        assert shelf.tiers.limit_of("posix-2") is None
    finally:
        shelf.close()


# What a prune refuses -------------------------------------------------------------------------------------------------
ALL = [CheckpointId(1, step) for step in (10, 20, 30)]


@pytest.fixture
def pruner(shelves):
    """A shelf with three steps on its tier, and its prune of some of them: what it refused."""
    shelf = shelves("arena")
    tier = shelf.tiers["posix"]
    store.begin(tier)
    shelf.claiming.owner = 1
    for checkpoint in ALL:
        store.save(tier, 1, checkpoint.step)

    def prune(*checkpoints):
        refused = shelf.keeping.prune("posix", frozenset(checkpoints), frozenset())
        return {c.step: (e.kind, e.message, bool(e.hint)) for c, e in refused.items()}

    return shelf, prune


def test_the_last_that_loads_stays_and_the_others_go(pruner):
    shelf, prune = pruner
    refused = prune(*ALL)
    assert refused == {30: ("usage", f"{ALL[2]} is the last that can be loaded there and is not pruned yet", True)}
    assert shelf.contents.catalog("posix")[0] == {ALL[2]}
    assert list(prune(ALL[2])) == [30]
    store.save(shelf.tiers["posix"], 1, 40)
    assert prune(ALL[2]) == {}
    assert shelf.contents.catalog("posix")[0] == {CheckpointId(1, 40)}


def test_what_a_manifest_that_cannot_be_read_may_name_stays_and_is_told(pruner, tmp_path):
    shelf, prune = pruner
    path = tmp_path / "home" / names.manifest_key(ALL[1])
    good = path.read_bytes()
    path.write_bytes(b"noise")
    refused = prune(ALL[0])
    assert refused[10][0] == "corrupt"
    assert "may share its images" in refused[10][1]
    assert shelf.contents.catalog("posix")[0] == {ALL[0], ALL[2]}
    path.write_bytes(good)
    assert prune(ALL[0]) == {}
    assert shelf.contents.catalog("posix")[0] == {*ALL[1:]}
