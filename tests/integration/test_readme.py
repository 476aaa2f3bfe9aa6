"""What the README shows is run as it stands there, but for the places."""

import re
import shlex
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import holdfast  # noqa: E402
from holdfast.cli import main  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.started_agents]

README = Path(__file__).parents[2] / "README.md"
ELSEWHERE = ("demo", "bench")
"""Commands with tests of their own, that take long."""


def blocks(language, text):
    """The fenced blocks of a language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for its, body in found if its == language]


@pytest.fixture
def text(place):
    """The README, with the places of this test in it."""
    there = {"file:///data/run7": place.url, "file:///mnt/nvme/run7": f"file://{place.home.parent}/nvme"}
    found = README.read_text()
    for shown, here in there.items():
        assert shown in found
        found = found.replace(shown, here)
    return found


def test_every_example_runs(place, text, capsys):
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(64, 16)})
    optimizer = torch.optim.AdamW(model.parameters())

    def train_one_step():
        model["embed"].weight.grad = torch.ones(64, 16)
        optimizer.step()

    state = {"model": model, "optimizer": optimizer}
    names = {"holdfast": holdfast, "torch": torch, "state": state, "model": model, "n": 501, "loss": 0.5}
    names["train_one_step"] = train_one_step
    loop, tiers, handle, outside = blocks("python", text)
    exec(compile(loop, "README.md", "exec"), names)
    assert names["step"] == 500
    assert names["start"] is None
    names["step"] = 600
    exec(compile(tiers, "README.md", "exec"), names)
    names["step"] = 1000
    exec(compile(handle, "README.md", "exec"), names)
    assert names["save"].error is None
    names["ckpt"].close()
    exec(compile(outside, "README.md", "exec"), names)
    assert torch.equal(names["weight"], model["embed"].weight)
    lines = [line.partition("#")[0].split() for block in blocks("", text) for line in block.splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["holdfast"]]
    assert {c[0] for c in commands} >= {"status", "ls", "show", "diff", "verify", "prune", "doctor", "bench"}
    for command in commands:
        if command[0] not in ELSEWHERE:
            assert main(command) == 0, shlex.join(command)
    assert "embed" in capsys.readouterr().out
