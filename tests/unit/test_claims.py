"""Which attempt counts while the tier that has the claims, or another one, does not answer."""

import threading

import pytest
from tests.unit.store_fixtures import begin, make, save, upload

from holdfast.agent.claiming import Claimed
from holdfast.agent.claims import Claims, Standing
from holdfast.agent.shelf import Shelf
from holdfast.config import Config, TierConfig
from holdfast.errors import SupersededError, TierUnavailableError
from holdfast.format import names
from holdfast.model.identity import CheckpointId, Lineage
from holdfast.store.attempts import read_attempts
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers.faults import Fault, Faults, Raise
from holdfast.wire.spawn import coordinator_at, coordinator_socket


def tier(name):
    return Faults(MemoryTier(HeapSlots(), name=name))


def away(tier):
    """From now on its claims cannot be listed."""
    error = TierUnavailableError("does not answer", tier=tier.name)
    return tier.add(Fault("list", Raise(error), key="^attempts/", times=None))


@pytest.fixture
def home():
    return tier("home")


@pytest.fixture
def other():
    return tier("other")


@pytest.fixture
def claims():
    return Claims(lambda home, others: read_attempts([home], spare=others))


def test_a_tier_besides_the_home_is_passed_over_when_it_does_not_answer(home, other, claims):
    begin(home)
    fault = away(other)
    assert claims.read(home, [other]).highest == 1
    assert claims.for_load(home, [other]) == Standing(Lineage({1: None}), 1)
    assert fault.fired == 2


def test_it_counts_where_the_home_has_no_claims_for_then_it_may_have_them(home, other, claims):
    away(other)
    for ask in (claims.read, claims.for_load):
        with pytest.raises(TierUnavailableError):
            ask(home, [other])
    other.clear()
    begin(other)
    assert claims.read(home, [other]).highest == 1


def test_a_claim_besides_the_home_that_cannot_be_read_counts_where_it_is_the_highest(home, other, claims):
    begin(other)
    assert claims.read(home, [other]).highest == 1
    begin(other, CheckpointId(1, 50))
    error = TierUnavailableError("bad sector", tier="other")
    other.add(Fault("read_into|size", Raise(error), key="^attempts/", times=None))
    with pytest.raises(TierUnavailableError, match="bad sector"):
        claims.read(home, [other])
    assert "the claims on other cannot be read (bad sector)" in claims.for_load(home, [other]).doubt
    for _ in range(3):
        begin(home)
    assert claims.for_load(home, [other]) == Standing(Lineage({3: None}), 3)


def test_without_the_home_what_it_said_last_counts_for_loads(home, other, claims):
    begin(home)
    begin(home, CheckpointId(1, 50))
    claims.read(home, [other])
    away(home)
    standing = claims.for_load(home, [other])
    assert (standing.lineage, standing.highest) == (Lineage({2: None, 1: 50}), 2)
    assert "the claims on home cannot be read (does not answer): attempt 2 counts as before" in standing.doubt
    with pytest.raises(TierUnavailableError):
        claims.read(home, [other])  # for a claim, a commit, a prune


def test_a_new_agent_goes_by_the_attempt_its_arena_claimed_last_and_by_nothing_else(home, claims):
    away(home)
    with pytest.raises(TierUnavailableError, match="the claims of the run cannot be read: does not answer") as caught:
        claims.for_load(home, [])
    assert caught.value.hint
    claims.own = 3
    lineage = claims.for_load(home, []).lineage
    assert CheckpointId(3, 10) in lineage
    assert CheckpointId(2, 10) not in lineage, "it may be abandoned"


def test_a_claim_after_a_load_without_the_home_is_refused_when_somebody_was_quicker(home, claims):
    begin(home)
    claims.read(home, [])
    fault = away(home)
    claims.go_by(claims.for_load(home, []))
    with pytest.raises(TierUnavailableError):
        claims.check(home)
    home.faults.remove(fault)
    claims.check(home)
    begin(home)
    with pytest.raises(
        SupersededError, match="attempt 2 was claimed while the claims on home could not be read"
    ) as caught:
        claims.check(home)
    assert "load again" in caught.value.hint
    claims.go_by(claims.for_load(home, []))
    claims.check(home)
    claims.claimed(3)
    assert claims.own == 3


@pytest.fixture
def shelf(tmp_path):
    tiers = (
        TierConfig("memory:"),
        TierConfig(f"{tmp_path}/home", name="home"),
        TierConfig(f"{tmp_path}/far", name="far"),
    )
    (tmp_path / "arena").mkdir()
    made = Shelf(Config(tiers=tiers).resolve({}), tmp_path / "arena")
    for name in ("home", "far"):
        made.tiers._tiers[name] = Faults(made.tiers[name])
    yield made
    made.close()


def test_a_claim_does_not_need_the_other_tiers(shelf):
    away(shelf.tiers["far"])
    assert shelf.claiming.claim(None, "here", 0) == Claimed(1, Lineage({1: None}))
    assert shelf.contents.view().lineage == Lineage({1: None})


def test_a_claim_on_nothing_tells_what_it_leaves(shelf):
    home, far = shelf.tiers["home"], shelf.tiers["far"]
    begin(home)
    begin(far)
    save(home, 1, 10)
    save(far, 1, 20)
    upload(far, make(1, 30))
    assert shelf.claiming.claim(CheckpointId(1, 10), "here", 0).left is None
    assert shelf.claiming.claim(None, "here", 0).left == CheckpointId(1, 20), "of those that are whole"


class AskedFor:
    """The lock that a claim holds until it is answered: whoever waits for it has the answer come."""

    def __init__(self, lock, answers):
        self.lock, self.answers = lock, answers

    def acquire(self, timeout):
        self.answers.set()
        return self.lock.acquire(timeout=timeout)

    def release(self):
        self.lock.release()


@pytest.fixture
def slow_claim(shelf):
    """The home shows a claim before it answers the claimant, as a slow disk does; claimed in a thread."""
    seen, answers = threading.Event(), threading.Event()

    class Slow(Faults):
        def put(self, key, buffer, *, if_absent=False):
            super().put(key, buffer, if_absent=if_absent)
            if key.startswith(names.ATTEMPTS):
                seen.set()
                answers.wait(30)

    shelf.claiming.claim(None, "here", 0)
    shelf.tiers._tiers["home"] = Slow(shelf.tiers["home"])
    claimant = threading.Thread(target=shelf.claiming.claim, args=(CheckpointId(1, 10), "here", 0))
    claimant.start()
    assert seen.wait(30)
    shelf.claiming._claim_lock = AskedFor(shelf.claiming._claim_lock, answers)
    yield shelf
    answers.set()
    claimant.join(30)


def test_what_is_committed_while_the_next_attempt_is_claimed_is_not_superseded_by_it(slow_claim):
    checkpoint = make(1, 10)
    upload(slow_claim.tiers["home"], checkpoint)
    slow_claim.keeping.commit("home", checkpoint.id, ())
    assert slow_claim.claiming.owner == 2
    assert slow_claim.contents.view().committed.keys() == {CheckpointId(1, 10)}


def test_a_claim_of_ours_that_is_under_way_is_no_successor(slow_claim):
    assert slow_claim.claiming.owner == 1
    assert slow_claim.claiming.successor() == 0
    begin(slow_claim.tiers["home"])
    assert slow_claim.claiming.successor() == 3
    upload(slow_claim.tiers["home"], make(2, 20))
    with pytest.raises(SupersededError, match="attempt 3 owns the run, this one is 2"):
        slow_claim.keeping.commit("home", CheckpointId(2, 20), ())


def test_an_attempt_found_again_takes_nothing_from_one_that_is_claimed_meanwhile(slow_claim):
    assert slow_claim.claiming.owner == 1
    slow_claim.claiming.own_again(1)
    assert slow_claim.claiming.owner == 2, "it was waited for"
    slow_claim.claiming.own_again(1)
    assert slow_claim.claiming.owner == 2


def test_steps_are_listed_though_it_is_not_known_which_attempt_counts(shelf):
    away(shelf.tiers["home"])
    view = shelf.contents.view()
    assert isinstance(view.unknown, TierUnavailableError)
    assert not view.empty
    assert (view.committed, view.abandoned) == ({}, set())


def test_a_claim_names_the_socket_of_its_agent_to_this_machine_only(tmp_path):
    assert coordinator_socket(coordinator_at(tmp_path)) == tmp_path / "agent.sock"
    for other in ("", "here", "10.0.0.1:4711", f"another-boot:{tmp_path}/agent.sock"):
        assert coordinator_socket(other) is None
