"""What no optimizer owns is written once, and every change of it is noticed, however it is made."""

import os
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402
from tests.integration.place import due, until  # noqa: E402
from torch import nn  # noqa: E402

import holdfast  # noqa: E402
from holdfast.format import names  # noqa: E402
from holdfast.model.identity import CheckpointId  # noqa: E402
from holdfast.store.catalog import read_catalog, read_manifest  # noqa: E402
from holdfast.store.verify import find_damage  # noqa: E402
from holdfast.tiers import open_tier  # noqa: E402
from holdfast.trainer.stage import Stager  # noqa: E402

pytestmark = pytest.mark.torch

WIDTH = 768


class Adapted(nn.Module):
    """A frozen layer with a trained correction of low rank, and statistics nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.base.requires_grad_(False)
        self.down = nn.Linear(WIDTH, 3, bias=False)
        self.up = nn.Linear(3, WIDTH, bias=False)
        self.register_buffer("table", torch.arange(WIDTH * 8.0))

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def state_of(seed: int = 0, depth: int = 2) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(*(Adapted() for _ in range(depth)))
    trained = [p for p in model.parameters() if p.requires_grad]
    return {"model": model, "optim": torch.optim.AdamW(trained, lr=1e-2), "step": 0}


def train(state):
    state["optim"].zero_grad()
    state["model"](torch.randn(4, WIDTH)).square().mean().backward()
    state["optim"].step()
    state["step"] += 1


def tensors(state):
    return {k: v.detach().clone() for k, v in state["model"].state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def files(place):
    root = place.home / "images"
    return {str(p.relative_to(root)): p.stat().st_size for p in sorted(root.rglob("*.safetensors"))}


def home(place):
    return open_tier(place.url, name="home", owner="test")


def run(ckpt, state, steps, first=1, act=lambda step: None):
    """Train and save; what the model was at each step."""
    seen = {}
    for step in range(first, first + steps):
        train(state)
        act(step)
        due(ckpt.save(step, state)).wait("durable", timeout_s=60)
        seen[step] = tensors(state)
    return seen


def test_frozen_bytes_are_flushed_once(place):
    state = state_of()
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        sizes = []
        for step in range(1, 7):
            before = set(files(place))
            run(ckpt, state, 1, step)
            sizes.append(sum(size for name, size in files(place).items() if name not in before))
        assert place.status()["errors"] == 0
    whole = sizes[0]
    assert max(sizes[1:]) <= 0.05 * whole, sizes
    tier = home(place)
    for entry in read_catalog(tier):
        assert entry.loadable
        assert entry.manifest is not None
        assert [r.id.step for r in entry.manifest.images] == [entry.id.step, 1]
        assert entry.size_bytes == pytest.approx(whole, rel=0.01)
        assert find_damage(tier, read_manifest(tier, entry.id)) is None
    tier.close()
    other = state_of(1)
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(other) == 6
    assert same(tensors(other), tensors(state))
    assert other["step"] == 6
    third = state_of(2)
    holdfast.load(place.url, third, step=3, only=("model", "optim"))
    assert torch.equal(third["model"][1].base.weight, state["model"][1].base.weight)
    assert torch.equal(holdfast.read(place.url, "model.0.base.weight", step=5), state["model"][0].base.weight)


def hidden(tensor, fill):
    """A write that leaves the version counter as it was."""
    with torch.autograd._unsafe_preserve_version_counter(tensor), torch.no_grad():
        tensor[0] = fill


CHANGES = {
    "in place": lambda m: m[0].base.weight.requires_grad_(False).mul_(2),
    "by data": lambda m: setattr(m[2].base.weight, "data", m[2].base.weight.data.clone().add_(1)),
    "one element through data": lambda m: m[1].base.weight.data.view(-1)[-1].fill_(float("nan")),
    "set_": lambda m: m[0].table.set_(torch.randn(WIDTH * 8)),
    "hidden from the counter": lambda m: hidden(m[1].base.bias, 7.0),
    "another parameter": lambda m: setattr(m[3].base, "weight", nn.Parameter(torch.randn(WIDTH, WIDTH), False)),
    "strided": lambda m: setattr(m[4].base.weight, "data", torch.randn(WIDTH, WIDTH).t()),
}


def test_every_change_of_frozen_bytes_is_noticed_and_saved_right(place):
    state = state_of(depth=5)
    changes = dict(enumerate(CHANGES.values(), 2))
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        seen = run(ckpt, state, 9, act=lambda step: changes.get(step, lambda m: None)(state["model"]))
        for step, expected in seen.items():
            other = state_of(1, depth=5)
            holdfast.load(place.url, other, step=step, only=None)
            found = tensors(other)
            assert all(torch.equal(found[k].nan_to_num(9), expected[k].nan_to_num(9)) for k in expected), step
        assert place.status()["errors"] == 0


def test_what_changes_again_and_again_moves_to_every_step(place):
    state = state_of()

    def statistics(step):
        state["model"][0].table.add_(1)

    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        run(ckpt, state, 4, act=statistics)
    tier = home(place)
    named = [[r.id.step for r in read_manifest(tier, CheckpointId(1, step)).images] for step in (1, 2, 3, 4)]
    tier.close()
    assert named == [[1, 1], [2, 2], [3, 2], [4, 2]], "once, and then it is known"
    other = state_of(1)
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(other) == 4
    assert same(tensors(other), tensors(state))


def test_plain_values_may_grow_beside_frozen_bytes(place):
    """What a save relies on changes its header, not its layout, although the plain values are longer by then."""
    state = state_of() | {"losses": []}
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        run(ckpt, state, 3, act=lambda step: state["losses"].extend([0.25] * 40))
        sizes = [sum(p.stat().st_size for p in place.images(1, step)) for step in (1, 2, 3)]
    assert max(sizes[1:]) <= 0.05 * sizes[0], sizes
    other = state_of(1) | {"losses": []}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(other) == 3
    assert other["losses"] == state["losses"]
    assert same(tensors(other), tensors(state))


def test_retention_keeps_what_is_named_and_removes_it_with_the_last_name(place):
    state = state_of()
    with holdfast.Checkpointer(place.url, keep_last=2) as ckpt:
        ckpt.load(state)
        run(ckpt, state, 5)
        until(lambda: place.committed() == [(1, 4), (1, 5)], "what is older to be pruned")
        shared = names.image_key(next(r.id for r in _manifest(place, 1, 5).images if r.id.image))
        assert (place.home / shared).exists()
        state["model"][0].base.weight.data.add_(1)
        run(ckpt, state, 4, first=6)
    until(lambda: place.committed() == [(1, 8), (1, 9)], "what is older to be pruned")
    with holdfast.Checkpointer(place.url, keep_last=2) as ckpt:
        assert ckpt.load(state) == 9
        run(ckpt, state, 1, first=10)
    until(lambda: not (place.home / shared).exists(), "what nobody names any more to go")
    until(lambda: not list((place.home / "tombstones").glob("*")), "tombstones to go last")


def _manifest(place, attempt, step):
    tier = home(place)
    try:
        return read_manifest(tier, CheckpointId(attempt, step))
    finally:
        tier.close()


def test_a_restart_loads_from_memory_and_stages_anew(place):
    state = state_of()
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        run(ckpt, state, 3)
        ckpt._detach()
    os.kill(place.status()["pid"], 9)
    other = state_of(1)
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(other) == 3
        assert ckpt.last_load is not None
        assert set(ckpt.last_load.bytes_by_tier) == {"memory"}
        assert same(tensors(other), tensors(state))
        run(ckpt, other, 2, first=4)
        assert [r.id for r in _manifest(place, 2, 5).images][1].attempt == 2
        assert ckpt.load(other, step=2) == 2
        run(ckpt, other, 1, first=3)
        assert [r.id.step for r in _manifest(place, 3, 3).images] == [3, 3]
        assert place.status()["errors"] == 0


def test_nothing_frozen_is_one_image(place):
    model = nn.Linear(WIDTH, WIDTH)
    state = {"model": model, "optim": torch.optim.SGD(model.parameters(), lr=0.1)}
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        due(ckpt.save(1, state)).wait("durable", timeout_s=60)
    assert [r.id.image for r in _manifest(place, 1, 1).images] == [0]


def test_each_rank_shares_its_share(place, forker):
    first = processes.start(forker, 2, jobs.adapted, place.url, steps=4, change_at=2).values()
    images = [(r.id.rank, r.id.image, r.id.step) for r in _manifest(place, 1, 3).images]
    # The row that changed is in the share of one rank alone: the other goes on with what it has.
    assert images == [(0, 0, 3), (0, 1, 0), (1, 0, 3), (1, 1, 2)]
    again = processes.start(forker, 2, jobs.adapted, place.url, steps=1).values()
    for before, after in zip(first, again, strict=True):
        assert (after["start"], after["loaded"]) == (3, before["digest"])


@pytest.mark.filterwarnings("ignore:.*dropped on all ranks:RuntimeWarning")
def test_a_save_interrupted_between_its_images_holds_up_none_after_it(place, monkeypatch):
    """Frozen bytes change again and again: each later save needs room for them beside what memory keeps."""
    state = state_of(depth=4)
    real = Stager.stage
    interrupts: list[BaseException] = []

    def stage(self, buffer, captured, payload, **more):
        if interrupts and payload:  # the first image; what steps share was handed over before
            raise interrupts.pop()
        return real(self, buffer, captured, payload, **more)

    monkeypatch.setattr(Stager, "stage", stage)
    with holdfast.Checkpointer(place.url) as ckpt:
        ckpt.load(state)
        seen = run(ckpt, state, 1)
        change(state, 1)
        interrupts.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            ckpt.save(2, state)
        # Once with what the interrupted save staged, then with other bytes each time.
        seen |= run(ckpt, state, 1, first=3)
        for step in (4, 6):
            change(state, step)
            interrupts.append(KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                ckpt.save(step, state)
            change(state, step + 1)
            seen |= run(ckpt, state, 1, first=step + 1)
        named = [r.id.step for r in _manifest(place, 1, 3).images]
        assert named == [3, 2], "it was staged whole"
        for step, expected in seen.items():
            other = state_of(1, depth=4)
            holdfast.load(place.url, other, step=step, only=None)
            assert same(tensors(other), expected), step
        assert sorted(seen) == [1, 3, 5, 7]
        assert place.committed() == [(1, step) for step in sorted(seen)]


def change(state, number):
    """Of one frozen tensor, another each time, so that none moves to the image of every step."""
    frozen = [p for layer in state["model"] for p in layer.base.parameters()]
    with torch.no_grad():
        frozen[number % len(frozen)].add_(1)
