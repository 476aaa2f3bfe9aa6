"""The story: train undisturbed; train again and be killed three times; compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.demo.events import Event
from holdfast.demo.job import RANKS, new_memory
from holdfast.demo.run import Run
from holdfast.demo.script import Script

MID_STEP, MID_FLUSH, NODE_LOST = "mid step", "mid flush", "node lost"
_ALL = set(range(RANKS))
_RESTARTS = 4
"""One for the mid step, up to three for the mid flush."""


def train_undisturbed(folder: Path, script: Script, tell: Callable[[Event], None]) -> list[Event]:
    """The run that everything is compared with: the same script, never interrupted, without Holdfast."""
    run = Run(folder, script, memory=new_memory(0), durable=False, tell=tell)
    try:
        run.launch()
        run.finish()
    finally:
        run.close()
    return run.events


def train_and_be_killed(folder: Path, script: Script, tell: Callable[[Event], None]) -> list[Event]:
    """The run that suffers: a rank dies in mid step, all ranks in mid flush, at last the whole node."""
    run = Run(folder, script, memory=new_memory(script.memory_bytes), durable=True, tell=tell)
    try:
        run.launch(restarts=_RESTARTS)
        kill_in_mid_step(run, script)
        kill_in_mid_flush(run, script)
        lose_the_node(run, script)
        run.launch()
        run.finish()
    finally:
        run.close()
    return run.events


def kill_in_mid_step(run: Run, script: Script) -> None:
    """The last rank is killed between its forward and its backward pass."""
    last = RANKS - 1
    run.until(
        f"the middle of step {script.mid_step}",
        lambda e: e["what"] == "backward" and (e["rank"], e["step"]) == (last, script.mid_step),
    )
    run.kill_ranks({last}, scene=MID_STEP, step=script.mid_step)


def kill_in_mid_flush(run: Run, script: Script) -> None:
    """All trainers are killed while their checkpoint is being written to disk.

    Where the disk is so fast that the checkpoint stood there before the signal came, the next flush is tried.
    """
    for step in range(script.mid_flush, script.node_lost, script.disk_every):
        _until_saved(run, step)
        if run.writing(step) and run.kill_ranks(_ALL, scene=MID_FLUSH, step=step):
            return


def lose_the_node(run: Run, script: Script) -> None:
    """Nothing is left of the node, in mid step: neither processes nor memory."""
    run.until(
        f"the middle of step {script.node_lost}",
        lambda e: e["what"] == "backward" and e["step"] == script.node_lost,
    )
    run.lose_node(scene=NODE_LOST, step=script.node_lost)


def _until_saved(run: Run, step: int) -> None:
    """Until the last rank has saved the step: from then on the agent has all that it will write."""
    waiting = set(_ALL)

    def last_save(event: Event) -> bool:
        if event["what"] == "save" and event["step"] == step:
            waiting.discard(event["rank"])
        return not waiting

    run.until(f"the save of step {step}", last_save)
