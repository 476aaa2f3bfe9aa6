"""Whether a change is noticed, byte by byte here and by fingerprint elsewhere; and which tensors are thought frozen."""

import pytest

torch = pytest.importorskip("torch")

from holdfast.trainer import unchanged  # noqa: E402
from holdfast.trainer.capture import Capture  # noqa: E402
from holdfast.trainer.grouping import MIN_SHARED_BYTES, Grouping  # noqa: E402
from holdfast.trainer.shares import assign  # noqa: E402
from holdfast.trainer.unchanged import different, fingerprints  # noqa: E402

pytestmark = pytest.mark.torch


def pair(tensor):
    return tensor, tensor.detach().clone(memory_format=torch.contiguous_format)


TENSORS = {
    "nan": torch.tensor([1.0, float("nan"), -0.0]),
    "large": torch.arange(5 << 20, dtype=torch.int32),
    "bytes": torch.arange(13, dtype=torch.uint8),
    "half": torch.randn(7, 3).to(torch.bfloat16),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "strided": torch.randn(33, 21).t(),
    "conjugate": torch.randn(5, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_bytes_are_no_change_and_one_bit_is(threads):
    live, staged = zip(*(pair(t.clone() if n != "strided" else t) for n, t in TENSORS.items()), strict=True)
    staged = tuple(s.resolve_conj() for s in staged)
    assert different(live, staged, threads) == []
    for i, kept in enumerate(staged):
        if kept.numel():
            data = kept.view(-1).view(torch.uint8)
            for at in {0, len(data) // 2, len(data) - 1}:
                data[at] ^= 1
                assert different(live, staged, threads) == [i]
                data[at] ^= 1
    assert different([torch.tensor([0.0])], [torch.tensor([-0.0])], threads) == [0], "bytes, not values"


@pytest.mark.parametrize("n_bytes", [1, 7, 8, 4096, 3 * 8 * 512 + 13])
def test_a_fingerprint_sees_every_byte_and_its_place(n_bytes, monkeypatch):
    monkeypatch.setattr(unchanged, "_CHUNK_WORDS", 512)
    data = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n_bytes))
    [before] = fingerprints([data])
    assert fingerprints([data.clone()]) == [before]
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), data])[3:]
    assert fingerprints([shifted]) == [before], "wherever in memory it begins"
    seen = {before}
    for at in {0, n_bytes // 3, n_bytes // 2, n_bytes - 1}:
        for bit in (1, 128):
            other = data.clone()
            other[at] ^= bit
            seen.add(fingerprints([other])[0])
    assert len(seen) == 1 + 2 * len({0, n_bytes // 3, n_bytes // 2, n_bytes - 1})
    if n_bytes >= 4096:
        assert fingerprints([data.roll(8)]) != [before], "the same words elsewhere"
        swapped = data.clone()
        swapped[0:8], swapped[8:16] = data[8:16], data[0:8]
        assert fingerprints([swapped]) != [before]


def test_a_fingerprint_is_of_what_is_seen_not_of_memory():
    x = torch.randn(64, 32)
    assert fingerprints([x.t()]) == fingerprints([x.t().contiguous()])
    assert fingerprints([x.t()]) != fingerprints([x])


# Groups ---------------------------------------------------------------------------------------------------------------
def adapted():
    base = torch.nn.Linear(600, 600)
    model = torch.nn.ModuleDict({"base": base, "norm": torch.nn.BatchNorm1d(600), "adapter": torch.nn.Linear(4, 4)})
    optimizer = torch.optim.SGD([*model["adapter"].parameters(), *model["norm"].parameters()], lr=0.1)
    return {"model": model, "optim": optimizer, "loose": torch.zeros(1 << 20)}


def split(state, grouping=None):
    captured = Capture().refresh(state)
    shares = assign([captured.structure])
    groups = (grouping or Grouping()).split(captured.structure, captured.owned, shares.pieces(0), shares.aliases(0))
    assert sorted(p.fqn for p in (*groups.pieces, *groups.shared)) == sorted(p.fqn for p in shares.pieces(0))
    return captured.structure, {p.fqn for p in groups.shared}


def test_what_an_optimizer_owns_and_what_stands_loose_is_of_every_step():
    _, shared = split(adapted())
    assert shared == {
        "model.base.weight",
        "model.base.bias",
        "model.norm.running_mean",
        "model.norm.running_var",
        "model.norm.num_batches_tracked",
    }


def test_without_an_optimizer_or_below_the_least_there_is_one_image():
    state = adapted()
    del state["optim"]
    assert split(state)[1] == set()
    small = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    assert split({"model": small, "optim": torch.optim.SGD(small[0].parameters(), lr=0.1)})[1] == set()
    assert MIN_SHARED_BYTES > 8 * 8 * 4


def test_a_tensor_tied_to_an_owned_one_is_owned():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(600, 600), "b": torch.nn.Linear(600, 600)})
    model["b"].weight = model["a"].weight
    assert split({"model": model, "optim": torch.optim.SGD(model["b"].parameters(), lr=0.1)})[1] == set()


def test_buffers_move_when_they_changed_once_and_parameters_when_twice():
    state, grouping = adapted(), Grouping()
    structure, shared = split(state, grouping)
    moving = grouping.note(structure, ["model.norm.running_mean", "model.base.weight"])
    assert moving == {"model.norm.running_mean"}
    before = grouping.move(moving)
    assert split(state, grouping)[1] == shared - moving
    moving = grouping.note(structure, ["model.base.weight"])
    assert moving == {"model.norm.running_mean", "model.base.weight"}
    grouping.put_back(before)
    assert split(state, grouping)[1] == shared
    assert [grouping.may_try() for _ in range(8)] == [True, True, False, True, False, False, False, True]
    grouping.move(moving)
    assert split(state, grouping)[1] == set(), "what is left is too little"
    grouping.forget()
    assert split(state, grouping)[1] == shared
