"""Status, verdict, metrics and page, each from a view made by hand; and what the agent remembers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from holdfast.agent.history import KEPT, Arrivals, FlushLog, StallLog
from holdfast.agent.metrics import metrics_text
from holdfast.agent.page import render_page
from holdfast.agent.plots import by_step
from holdfast.agent.status import status_of
from holdfast.agent.view import AgentView, Shelved, SlotRoom
from holdfast.config import Config, TierConfig
from holdfast.errors import TierFullError
from holdfast.lifecycle.slots import SlotView, TierView
from holdfast.lifecycle.steps import StepStatus, TierStatus
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState, TrainerPage
from holdfast.wire.status import Flush, History, Stall, Status, Trainer

NOW_S = 1_700_000_000.0
FULL = TierFullError("no space <left>", hint="free some", tier="nvme").to_dict()


def slot_page(state: SlotState) -> SlotPage:
    page = SlotPage(memoryview(bytearray(PAGE_BYTES)))
    page.initialise()
    page.state, page.generation = state, 1
    return page


@pytest.fixture
def view() -> AgentView:
    """One rank at step 12; step 10 is in memory and on its way to nvme, step 5 is there."""
    tiers = TierConfig("memory:"), TierConfig("/data/run7", every_steps=5, keep_last=3, name="nvme")
    image = ImageId(1, 10, 0)
    return AgentView(
        settings=Config(tiers=tiers).resolve({}),
        arena=Path("/dev/shm/holdfast-0/run7-x"),
        now_s=NOW_S,
        pid=42,
        attempt=1,
        launch="ab",
        world_size=1,
        arena_bytes=8192,
        trainers=[Trainer(0, pid=7, alive=True, attached=True, step=12, saves=13, stall_s=0.5, stall_last_s=0.01)],
        tiers=[TierView("nvme", False, None, 0, 1)],
        slots=[SlotView(0, 0, "held", 1, image, flushes={"nvme": "running"}), SlotView(1, 0)],
        steps=[StepStatus(CheckpointId(1, 10), "whole", {"nvme": TierStatus("flushing")}, None, 4096)],
        rooms={0: SlotRoom(slot_page(SlotState.HELD), 4096, 3.0), 1: SlotRoom(slot_page(SlotState.FILLING), 4096)},
        shelved={"nvme": Shelved(1000, 0.5)},
        committed={"nvme": CheckpointId(1, 5)},
    )


def judged(view: AgentView, **changes: Any) -> Status:
    return status_of(replace(view, **changes))


def test_a_status_tells_everything_and_that_all_is_well(view):
    status = status_of(view)
    assert (status.level, status.headline, status.problems) == ("ok", "All is well", [])
    assert status.summary == "1 rank of 1 trains at step 12; memory holds step 10; nvme has step 5, 7 steps behind"
    [tier] = status.tiers
    assert (tier.newest_committed, tier.flush_bytes_per_s, tier.oldest_s, tier.running) == (5, 2000.0, 3.0, 1)
    assert [(s.state, s.step, s.capacity_bytes) for s in status.slots] == [("held", 10, 4096), ("filling", -1, 4096)]
    assert status.steps[0].tiers == {"nvme": "flushing"}


def test_the_status_can_be_read_back_also_from_an_agent_that_tells_less(view):
    status = status_of(view)
    assert msgspec.json.decode(msgspec.json.encode(status), type=Status) == status
    assert (
        msgspec.json.decode(b'{"run": "run7", "tiers": [{"name": "s3"}], "later": 1}', type=Status).tiers[0].url == ""
    )


def test_a_failing_tier_comes_before_a_lagging_one_and_says_what_to_do(view):
    tiers = [TierView("slow", True, None, 2, 1), TierView("nvme", False, FULL, 0, 0)]
    status = judged(view, tiers=tiers, errors=[(NOW_S - 3, FULL)], error_count=1)
    assert (status.level, status.headline) == ("bad", "The tier nvme fails: no space <left>")
    assert [(p.level, p.todo) for p in status.problems] == [
        ("bad", "free some"),
        ("warn", "raise every_steps of this tier (now due when asked), or use a quicker one"),
    ]
    assert status.last_errors == [{"at_s": NOW_S - 3, **FULL}]


@pytest.mark.parametrize(
    ("changes", "level", "headline"),
    [
        ({"superseded_by": 3}, "bad", "Attempt 3 took the run over"),
        ({"tiers": [TierView("nvme", True, None, 2, 1)]}, "warn", "The tier nvme cannot keep up"),
        ({"errors": [(NOW_S - 3, FULL)]}, "warn", "1 error in the last 10 minutes, the newest 3 s ago: no space"),
        ({"errors": [(NOW_S - 3000, FULL)]}, "ok", "All is well"),
        ({"trainers": [Trainer(0, alive=True, waiting_step=4)]}, "warn", "Rank 0 waits in a save for a slot (step 4)"),
        ({"trainers": [Trainer(0, alive=True), Trainer(1, pid=8)]}, "warn", "Rank 1 (process 8) is gone"),
        ({"trainers": [Trainer(0, alive=True), Trainer(1, closed=True)]}, "ok", "All is well"),
        ({"trainers": [Trainer(0)]}, "ok", "Nobody trains; memory stays"),
        ({"trainers": [], "slots": []}, "ok", "Nobody trains, and memory is empty"),
    ],
)
def test_the_headline_says_what_is_wrong(view, changes, level, headline):
    status = judged(view, **changes)
    assert status.level == level
    assert status.headline.startswith(headline)
    assert all(p.level in ("warn", "bad") for p in status.problems)


def test_metrics_come_from_the_view(view):
    text = metrics_text(view).decode()
    found = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert found["holdfast_slots", "held"] == found["holdfast_slots", "filling"] == 1
    assert found["holdfast_flush_lag_seconds", "nvme"] == 3
    assert found["holdfast_committed_step", "nvme"] == 5
    assert found["holdfast_stall_seconds_total", "0"] == 0.5


HISTORY = History(
    NOW_S,
    {0: [Stall(NOW_S - 2, 9, 0.002), Stall(NOW_S - 1, 10, 0.004, 2)]},
    {"nvme": [Flush(NOW_S - 5, 1, 5, 0, 0, 4096, 0.5), Flush(NOW_S - 1, 1, 10, 0, 0, 4096, 0.2, "no <room>")]},
)


@pytest.mark.parametrize("history", [History(), HISTORY])
@pytest.mark.parametrize("changes", [{}, {"trainers": [], "slots": [], "steps": [], "tiers": [], "rooms": {}}])
def test_the_page_needs_nothing_from_elsewhere_and_escapes(view, history, changes):
    errors = [(NOW_S - 3, FULL), (NOW_S - 2, FULL)]
    page = render_page(judged(view, errors=errors, error_count=2, **changes), history)
    assert "<script" not in page
    assert "src=" not in page
    assert "url(" not in page
    assert "<left>" not in page
    assert "<room>" not in page
    assert '<meta http-equiv="refresh" content="5">' in page
    if history.now_s:
        assert "2 s ago, 2 times since 3 s ago, tier nvme: no space &lt;left&gt;" in page


def test_the_page_draws_slots_steps_and_what_was(view):
    page = render_page(status_of(view), HISTORY)
    assert '<h1 class="calm">All is well</h1>' in page
    assert "on its way to nvme" in page
    assert "newest committed" in page
    assert "durable" not in page, "that is only what outlives the node"
    assert "step 10: training waited 4 ms, the mean of 2 saves" in page
    assert "step 10 failed after 200 ms: no &lt;room&gt;" in page
    assert "median 500 ms for 4 KiB, 8 KiB/s; 1 failed (red)" in page


def test_images_of_one_step_are_one_flush_and_one_failure_fails_it():
    images = [
        Flush(10.0, 1, 5, 0, 0, 100, 4.0),
        Flush(12.0, 1, 5, 1, 0, 100, 5.0, "bad"),
        Flush(20.0, 1, 10, 0, 0, 7, 1.0),
    ]
    first, second = by_step(images)
    assert (first.step, first.size_bytes, first.seconds, first.error) == (5, 200, 6.0, "bad")
    assert (second.step, second.seconds, second.error) == (10, 1.0, "")


# What is remembered --------------------------------------------------------------------------------------------------
def trainer(rank: int = 0, pid: int = 7) -> Any:
    page = TrainerPage(memoryview(bytearray(PAGE_BYTES)))
    page.initialise()
    page.pid = pid
    return SimpleNamespace(rank=rank, page=page)


def save(one: Any, step: int, stall_ns: int) -> None:
    one.page.current_step = step
    one.page.saves += 1
    one.page.stall_ns += stall_ns


def test_stalls_are_seen_once_and_several_between_two_looks_are_their_mean():
    log, one = StallLog(), trainer()
    log.look([one], 1.0)
    save(one, 1, 4_000_000)
    log.look([one], 2.0)
    log.look([one], 3.0)
    save(one, 2, 1_000_000)
    save(one, 3, 3_000_000)
    log.look([one], 4.0)
    assert log.stalls() == {0: [Stall(2.0, 1, 0.004), Stall(4.0, 3, 0.002, 2)]}


def test_a_look_between_the_two_words_of_a_save_tells_it_whole_the_next_time():
    log, one = StallLog(), trainer()
    log.look([one], 1.0)
    one.page.saves += 1
    log.look([one], 2.0)
    one.page.stall_ns += 5_000_000
    log.look([one], 3.0)
    assert log.stalls() == {0: [Stall(3.0, -1, 0.005)]}


def test_what_an_agent_before_saw_is_one_mean_and_another_process_counts_from_nothing():
    log, old, new = StallLog(), trainer(pid=7), trainer(pid=8)
    for step in range(500):
        save(old, step, 1_000_000)
    log.look([old], 1.0)
    log.look([new], 2.0)
    save(new, 1, 2_000_000)
    log.look([new], 3.0)
    assert log.stalls() == {0: [Stall(1.0, 499, 0.001, 500), Stall(3.0, 1, 0.002)]}


def test_only_the_newest_are_kept():
    log, one = StallLog(), trainer()
    log.look([one], 0.0)
    for step in range(KEPT + 5):
        save(one, step, 1000)
        log.look([one], float(step))
    assert [s.step for s in log.stalls()[0]] == list(range(5, KEPT + 5))


def test_flushes_are_noted_also_when_they_fail():
    log = FlushLog()
    with log.noting("nvme", ImageId(1, 5, 0), 100):
        pass
    with pytest.raises(TierFullError), log.noting("nvme", ImageId(1, 10, 0), 100):
        raise TierFullError("no room")
    assert [(f.step, f.error) for f in log.flushes()["nvme"]] == [(5, ""), (10, "no room")]
    assert log.totals()["nvme"][0] == 100


def test_an_image_is_as_old_as_its_generation():
    page = slot_page(SlotState.STAGED)
    arrivals, slots = Arrivals(), [SimpleNamespace(number=3, page=page)]
    arrivals.look(slots, 10.0)  # type: ignore[arg-type]
    page.state = SlotState.HELD
    arrivals.look(slots, 11.0)  # type: ignore[arg-type]
    assert (arrivals.age_s(3, 15.0), arrivals.age_s(4, 15.0)) == (5.0, 0.0)
    page.generation += 1
    arrivals.look(slots, 16.0)  # type: ignore[arg-type]
    assert arrivals.age_s(3, 17.0) == 1.0
    page.state = SlotState.FREE
    arrivals.look(slots, 18.0)  # type: ignore[arg-type]
    assert arrivals.age_s(3, 19.0) == 0.0
