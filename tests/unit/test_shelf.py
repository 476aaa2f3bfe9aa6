"""The agent's tiers: whose unfinished uploads are swept, and what a launch with other settings changes."""

import os
import time

import pytest

from holdfast.agent.shelf import Shelf
from holdfast.config import Config, TierConfig
from holdfast.errors import ConfigError, TierUnavailableError
from holdfast.tiers.contract import ABANDONED_S


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


def begin(shelf, unfinished):
    """Begin a flush; the path of its temporary file."""
    before = set(unfinished.iterdir())
    shelf.tiers["posix"].upload("images/one", 8).write(0, memoryview(b"half"))
    [path] = set(unfinished.iterdir()) - before
    return path


def test_an_agent_sweeps_what_dead_agents_of_its_arena_left_and_nothing_that_may_live(shelves, unfinished):
    dead, living, mine = shelves("arena"), shelves("other"), shelves("arena")
    left, theirs, own = (begin(shelf, unfinished) for shelf in (dead, living, mine))
    mine.sweep_uploads()
    assert not left.exists()
    assert theirs.exists(), "the agent of another arena, or node, may be writing it"
    assert own.exists()
    past = time.time() - ABANDONED_S - 60
    os.utime(theirs, (past, past))
    os.utime(own, (past, past))
    mine.sweep_uploads()
    assert not theirs.exists(), "nobody wrote to it for so long"
    assert own.exists()
    assert list(unfinished.iterdir()) == [own]


def test_a_tier_that_moved_is_opened_at_its_new_place(shelves, tmp_path):
    shelf = shelves("arena")
    before = shelf.tiers["posix"]
    upload = before.upload("images/one", 4)
    shelf.reconfigure(Config.from_url(str(tmp_path / "elsewhere")).resolve({}))
    shelf.tiers["posix"].put("attempts/00000001", memoryview(b"here"))
    assert (tmp_path / "elsewhere/attempts/00000001").read_bytes() == b"here"
    upload.write(0, memoryview(b"late"))
    upload.publish()
    assert (tmp_path / "home/images/one").read_bytes() == b"late", "what was under way ends where it began"


def test_nothing_changes_when_a_new_tier_cannot_be_opened(shelves, tmp_path):
    shelf = shelves("arena")
    before = shelf.tiers["posix"]
    with pytest.raises(ConfigError):
        shelf.reconfigure(Config.from_url(str(tmp_path / "no/such/parent")).resolve({}))
    assert shelf.tiers["posix"] is before
    assert shelf.authority is before


def test_an_agent_starts_without_a_tier_that_cannot_be_opened_and_uses_it_later(tmp_path):
    config = Config(tiers=(TierConfig(str(tmp_path / "home")), TierConfig(str(tmp_path / "gone/other"))))
    shelf = Shelf(config.resolve({}), tmp_path)
    try:
        assert shelf.catalog("posix") == (frozenset(), frozenset())
        with pytest.raises(TierUnavailableError, match=r"cannot be opened: .*gone"):
            shelf.catalog("posix-2")
        (tmp_path / "gone").mkdir()
        shelf.tiers["posix-2"].put("attempts/00000001", memoryview(b"here"))
        assert (tmp_path / "gone/other/attempts/00000001").read_bytes() == b"here"
        assert shelf.tiers["posix-2"].capabilities == shelf.tiers["posix"].capabilities
    finally:
        shelf.close()
