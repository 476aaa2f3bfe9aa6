"""Names as people give them: spaces, quotes, signs and any script, in paths, runs, tiers, tensors and plain values."""

import json

import pytest

torch = pytest.importorskip("torch")

from tests.integration.place import Place, due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.cli import main  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = ['größer & "besser" (neu)', "実験 7 ' %20 #? שלום", "-rf e\u0301 \u00e9"]


def state(value):
    return {
        "модель 1": {"weight / слой": torch.full((999,), float(value))},
        "x y": torch.full((7,), value, dtype=torch.int64),
        "план": {"ключ и дверь": value, "\n\t\0": "🚀"},
        "step": value,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_any_name(place, name, capsys):
    """One life, a restart from the tier, and the commands a person types."""
    home = Place(place.home.parent / name, place.arena_dir)
    second = Place(place.home.parent / f"{name} zwei", place.arena_dir)
    tiers = (
        holdfast.TierConfig("memory:", keep_last=2),
        holdfast.TierConfig(str(home.home), name="Größe 1"),
        holdfast.TierConfig(str(second.home)),
    )
    config = holdfast.Config(tiers=tiers)
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(state(0))
        saved = due(ckpt.save(1, state(1)))
        for tier in saved.due:
            saved.wait(tier, timeout_s=30)
        assert main(["ls", str(home.home), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["steps"][0]["step"] == 1
        assert main(["agent", str(home.home), "--status"]) == 0
        assert name in capsys.readouterr().out
    until(lambda: not home.arena.exists(), "memory is freed")
    for command in (["ls"], ["verify"], ["show"], ["show", "--tensor", "модель 1.weight / слой"], ["show", "--plain"]):
        assert main([command[0], str(home.home), *command[1:]]) == 0
    assert "🚀" in capsys.readouterr().out
    found = state(-1)
    with holdfast.Checkpointer(str(second.home)) as ckpt:
        assert ckpt.load(found) == 1
    assert found["план"] == state(1)["план"]
    assert (found["модель 1"]["weight / слой"] == 1).all()
    assert (found["x y"] == 1).all()
