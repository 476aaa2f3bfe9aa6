import io
import json
import math
import re

import pytest
from rich.console import Console
from tests.unit import demo_events as made_up

from holdfast.demo import drawings, page
from holdfast.demo.events import EventLog, Tail
from holdfast.demo.facts import compare
from holdfast.demo.read import read
from holdfast.demo.screen import Screen, print_summary
from holdfast.demo.script import LEAST_STEPS, Script
from holdfast.demo.story import MID_FLUSH, MID_STEP, NODE_LOST
from holdfast.demo.summary import Summary

SCRIPT = Script()


@pytest.fixture(scope="module")
def summary() -> Summary:
    return Summary(SCRIPT, read(made_up.undisturbed(SCRIPT)), read(made_up.killed(SCRIPT)))


def test_each_kill_is_measured_from_the_signal_to_the_first_new_step(summary):
    recovery_s = made_up.START_S + 0.1 + made_up.LOAD_S
    cuts = summary.run.interruptions
    assert [cut.scene for cut in cuts] == [MID_STEP, MID_FLUSH, NODE_LOST]
    assert [cut.lost_steps for cut in cuts] == [1, 0, 6]
    assert [cut.life.step for cut in cuts] == [24, 50, 70]
    assert [cut.life.source for cut in cuts] == ["memory", "memory", "disk"]
    assert [cut.recovery_s for cut in cuts] == pytest.approx([recovery_s] * 3)
    assert [cut.life.load_s for cut in cuts] == pytest.approx([made_up.LOAD_S] * 3)


def test_it_is_level_again_when_the_step_after_the_last_finished_one_is_done(summary):
    first = summary.run.interruptions[0]
    assert first.caught_up == pytest.approx(first.life.training + 2 * made_up.STEP_S)


def test_saves_and_flushes_are_read(summary):
    assert summary.stalls_s() == [made_up.STALL_S] * len(summary.run.saves)
    assert [f.flush_s for f in summary.run.flushes] == pytest.approx([made_up.FLUSH_S] * len(summary.run.flushes))
    assert summary.reference.step_s() == pytest.approx(made_up.STEP_S)


def test_equal_runs_are_equal(summary):
    assert summary.verdict.equal
    assert summary.good
    assert summary.verdict.compared == sum(p.end is not None for p in summary.run.passes) > 2 * SCRIPT.steps


def test_one_bit_in_one_loss_of_a_step_trained_again_is_seen(summary):
    events = made_up.killed(SCRIPT)
    again = [e for e in events if e["what"] == "step" and e["step"] == 25 and e["rank"] == 1][-1]
    again["loss"] = math.nextafter(float.fromhex(again["loss"]), 9).hex()
    verdict = compare(summary.reference, read(events))
    assert verdict.different == ((1, 25),)
    assert not verdict.equal


def test_a_step_that_was_never_trained_is_missing(summary):
    events = [e for e in made_up.killed(SCRIPT) if e["what"] != "step" or e["step"] != 90]
    assert compare(summary.reference, read(events)).missing == ((0, 90), (1, 90))


def test_other_weights_are_not_equal(summary):
    events = [{**e, "sha256": "cd"} if e["what"] == "trained" else e for e in made_up.killed(SCRIPT)]
    assert not compare(summary.reference, read(events)).equal


def test_a_restart_from_elsewhere_and_a_flush_that_was_over_are_surprises(summary):
    events = made_up.killed(SCRIPT)
    for e in events:
        if e["what"] == "loaded" and e["step"] == 24:
            e["sources"] = ["disk"]
        elif e["what"] == "kill":
            e["unfinished"] = False
    told = Summary(SCRIPT, summary.reference, read(events))
    assert told.verdict.equal
    assert not told.good
    assert len(told.surprises) == 2


def test_a_restart_that_no_kill_caused_is_a_surprise(summary):
    events = [e for e in made_up.killed(SCRIPT) if e["what"] != "kill" or e["scene"] != MID_FLUSH]
    told = Summary(SCRIPT, summary.reference, read(events))
    assert any("killed 2 times and started 4 times" in surprise for surprise in told.surprises)


def test_a_run_that_was_not_killed_is_a_surprise(summary):
    assert Summary(SCRIPT, summary.reference, summary.reference).surprises


@pytest.mark.parametrize("steps", [LEAST_STEPS, 25, 37, 60, 100, 333, 1000])
def test_the_plot_holds_for_any_number_of_steps(steps):
    script = Script(steps=steps)
    assert 0 < script.mid_step < script.mid_flush < script.node_lost < steps
    assert script.mid_flush % script.disk_every == 0
    assert script.node_lost % script.disk_every != 0
    assert script.mid_step % script.memory_every == 0
    summary = Summary(script, read(made_up.undisturbed(script)), read(made_up.killed(script)))
    assert summary.good


def test_the_page_stands_alone_and_carries_its_events(summary):
    events = {"undisturbed": made_up.undisturbed(SCRIPT), "killed": made_up.killed(SCRIPT)}
    text = page.render(summary, events, command="holdfast demo", machine=(("torch", "<2>"),))
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert "&lt;2&gt;" in text
    embedded = re.search(r'<script type="application/json" id="events">(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    again = json.loads(embedded[1])
    assert Summary(SCRIPT, read(again["undisturbed"]), read(again["killed"])).to_dict() == summary.to_dict()


def test_the_parts_of_a_recovery_add_up(summary):
    for cut in summary.run.interruptions:
        parts = drawings.recovery_parts(cut)
        assert sum(end - start for _, start, end in parts) == pytest.approx(cut.recovery_s)


def test_the_terminal_tells_the_same_story(summary):
    console = Console(record=True, width=120, file=io.StringIO())
    with Screen(console, SCRIPT) as screen:
        screen.act("killed", "")
        for event in sorted(made_up.killed(SCRIPT), key=lambda e: e["t"]):
            screen.tell(event)
    print_summary(console, summary)
    text = console.export_text()
    assert text.count(" KILL ") == 3
    assert "step 24 from memory" in text
    assert "6 finished steps lost" in text
    assert "214 of 214 losses equal" in text


def test_a_line_that_is_not_yet_whole_is_left_for_later(tmp_path):
    log, tail = EventLog(tmp_path / "a.jsonl", who="x"), Tail(tmp_path)
    log("one")
    with (tmp_path / "b.jsonl").open("w") as other:
        other.write('{"t": 0.5, "wh')
        other.flush()
        assert [e["what"] for e in tail.new()] == ["one"]
        other.write('at": "two"}\n')
    assert [e["what"] for e in tail.new()] == ["two"]
    assert tail.new() == []
    log.close()


def test_a_flush_that_no_cadence_called_for_was_promoted(summary):
    events = made_up.killed(SCRIPT)
    kill = next(e for e in events if e["what"] == "kill")
    events.append({"t": kill["t"] + 0.3, "what": "committed", "attempt": 1, "step": 24, "bytes": 1})
    run = read(events)
    assert [f.step for f in run.flushes if not f.due] == [24]
    assert len(Summary(SCRIPT, summary.reference, run).due_flushes()) == len(summary.run.flushes)
