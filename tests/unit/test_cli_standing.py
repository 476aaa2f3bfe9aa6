"""How `holdfast status` shows what is wrong, from statuses made by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.cli import INTERRUPTED, main
from holdfast.cli import status as command
from holdfast.cli.agents import NONE, SERVING, SILENT, Seen
from holdfast.cli.arenas import Arena, SlotImage
from holdfast.cli.output import write_parts
from holdfast.cli.standing import parts_of, sparks
from holdfast.errors import AgentError, DeadlineError
from holdfast.model.identity import ImageId
from holdfast.wire.status import BAD, Flush, History, Problem, Slot, Stall, Status, Tier, Trainer


def arena(name: str, *images: SlotImage) -> Arena:
    return Arena(Path(f"/dev/shm/{name}"), None, True, (), 4096, images)


FULL: dict[str, Any] = {"message": "no room", "tier": "nvme", "at_s": 97.0}
FAILING = Status(
    run="run7",
    level=BAD,
    headline="The tier nvme fails: no room",
    summary="2 ranks of 2 train at step 40",
    problems=[Problem(BAD, "The tier nvme fails: no room", "free some"), Problem("warn", "Rank 1 is gone", "restart")],
    errors=9,
    trainers=[Trainer(0, alive=True, step=40, waiting_step=41, saves=4, stall_last_s=0.5), Trainer(1, step=39)],
    tiers=[
        Tier("nvme", every_steps=1, degraded=FULL, newest_committed=10),
        Tier("s3", every_steps=1000, every_s=600.0, lagging=True, running=1, waiting=2, oldest_s=190.0),
    ],
    slots=[Slot(0, 0, "held", step=40, flushes={"s3": "running"}), Slot(1, 0, "filling"), Slot(2, None, "free")],
    last_errors=[{**FULL, "at_s": 90.0}, FULL],
)
HISTORY = History(100.0, {0: [Stall(1.0, 1, 0.1), Stall(2.0, 2, 0.4)]}, {"s3": [Flush(1.0, 1, 1, 0, 0, 1 << 20, 2.0)]})


@pytest.fixture
def shown(capsys):
    def call(*agents: Seen) -> list[str]:
        write_parts(parts_of(agents))
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return call


def test_one_agent_is_shown_in_full_what_matters_first(shown):
    lines = shown(Seen(arena("run7"), SERVING, FAILING, HISTORY))
    assert lines[:4] == [
        "run7: The tier nvme fails: no room",
        "2 ranks of 2 train at step 40",
        "free some",
        "Rank 1 is gone: restart",
    ]
    wanted = [
        "nvme fails 10 none step",
        "s3 cannot keep up - 1 run, 2 wait 3 min 10 s 512 KiB/s 1000 steps or 600 s █",
        "3 s ago nvme no room",
        "and 7 errors before",
        "0 waits for a slot 40 4 500 ms 250 ms 400 ms ▃█",
        "1 gone 39 0",
        "slots of 0 [40 -> s3] [filling]",
        "slots of none [free]",
    ]
    assert [line for line in lines if line in wanted] == wanted


def test_several_are_a_row_each_with_what_to_do_below(shown):
    image = SlotImage(ImageId(1, 7, 0), 4096, world_size=1, image_count=1, committed=False)
    lines = shown(
        Seen(arena("run7"), SERVING, FAILING, HISTORY),
        Seen(arena("stuck"), SILENT, error=DeadlineError("did not answer within 3 s")),
        Seen(arena("left", image), NONE),
    )
    assert lines[1:4] == [
        "run7 40 10 0 B The tier nvme fails: no room",
        "stuck 4 KiB does not answer",
        "left 4 KiB no agent",
    ]
    assert "run7: The tier nvme fails: no room" in lines
    assert "stuck: did not answer within 3 s; look into /dev/shm/stuck/agent.log" in lines
    assert any(line.startswith("left: memory alone holds step 7 (attempt 1)") for line in lines)


def test_an_agent_alone_that_does_not_answer(shown):
    lines = shown(Seen(arena("stuck"), SILENT, error=DeadlineError("did not answer within 3 s")))
    assert lines[0] == "stuck: the agent does not answer"


def test_a_page_is_written_on_when_an_agent_that_ended_is_back(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    answers: list[Any] = [
        b"one", b"two", AgentError("no agent answers"), DeadlineError("no answer"), b"three", AgentError("gone again"),
        KeyboardInterrupt(),
    ]  # fmt: skip
    written = []

    def read_page(path: Path) -> bytes:
        written.append(page.read_bytes() if page.exists() else None)
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return bytes(answer)

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(command, "see", lambda url: Seen(arena("run7"), SERVING, FAILING, HISTORY))
    monkeypatch.setattr(command, "read_page", read_page)
    assert main(["status", "/data/run7", "--page", str(page), "--watch-s", "1"]) == INTERRUPTED
    assert written == [None, b"one", b"two", b"two", b"two", b"three", b"three"]
    noted = [line for line in capsys.readouterr().err.splitlines() if "stays as it is" in line]
    assert [line.partition(";")[0] for line in noted] == ["holdfast: no agent answers", "holdfast: gone again"]


def test_sparks_are_as_high_as_the_largest(monkeypatch):
    assert sparks([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparks([0.0, 0.0]) == "▁▁"
    assert len(sparks([1.0] * 99)) == 16
