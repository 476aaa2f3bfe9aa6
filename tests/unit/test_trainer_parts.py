"""Tensors that are stored as several: sparse, quantized, subclasses that torch can take apart, registered ones."""

from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of
from tests.subclasses import Codes, Momentum8bit, aten

import holdfast
from holdfast.errors import CorruptError, StructureError, UnsupportedValueError, UsageError
from holdfast.trainer import encoders
from holdfast.trainer.capture import Capture
from holdfast.trainer.forms import parse

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*[Qq]uantiz"),
    pytest.mark.filterwarnings("ignore:Sparse C"),
    pytest.mark.filterwarnings("ignore:Sparse B"),
]


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(encoders, "_by_type", {})
    monkeypatch.setattr(encoders, "_by_name", {})


def names(images):
    return [e.piece.fqn for e in images[0].header.layout.entries]


def same(a, b):
    """Bit by bit, parts and all."""
    assert type(a) is type(b)
    assert a.layout == b.layout
    if isinstance(a, Codes):
        assert a.signed == b.signed
        return all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.tensor_attrs)
    if a.layout is torch.sparse_coo:
        assert a.is_coalesced() == b.is_coalesced()
        return torch.equal(a._indices(), b._indices()) and torch.equal(a._values(), b._values())
    if a.layout is not torch.strided:
        return torch.equal(a.to_dense(), b.to_dense()) and torch.equal(a.values(), b.values())
    if a.is_quantized:
        return torch.equal(a.int_repr(), b.int_repr()) and torch.equal(a.dequantize(), b.dequantize())
    return torch.equal(a, b)


def coded(seed, shape=(4, 4), signed=True):
    return Codes.zeros(shape, signed).quantize_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def sparse(seed, density):
    return (torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) + density).floor()


def quantized(seed):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    scales, zeros = torch.rand(4).double() + seed, torch.full((4,), seed)
    per_channel = [torch.quantize_per_channel(x, scales, zeros, 0, d) for d in (torch.qint8, torch.quint8)]
    per_tensor = [torch.quantize_per_tensor(x, 0.1 + seed, seed, d) for d in (torch.qint8, torch.quint8, torch.qint32)]
    return [*per_channel, *per_tensor]


def coo(indices, items, shape):
    return torch.sparse_coo_tensor(torch.tensor(indices), items, shape, check_invariants=True)


CASES: dict[str, Any] = {
    "flatten": coded,
    "flatten parameter": lambda seed: torch.nn.Parameter(coded(seed), requires_grad=False),
    "coo": lambda seed: sparse(seed, 0.1 * (seed + 1)).to_sparse(),
    "coo, empty here": lambda seed: (sparse(seed, 0.3) * (1 - seed)).to_sparse(),
    "coo, empty there": lambda seed: (sparse(seed, 0.3) * seed).to_sparse(),
    "coo, not coalesced": lambda seed: coo([[0, 0, 1]], torch.tensor([1.0, 2.0, seed]), (5,)),
    "coo, dense inside": lambda seed: coo([[1, seed * 3]], torch.rand(2, 3), (5, 3)).coalesce(),
    "coo parameter": lambda seed: torch.nn.Parameter(sparse(seed, 0.1 * (seed + 1)).to_sparse()),
    "csr": lambda seed: sparse(seed, 0.1 * (seed + 1)).to_sparse_csr(),
    "csc": lambda seed: sparse(seed, 0.1 * (seed + 1)).to_sparse_csc(),
    "bsr": lambda seed: sparse(seed, 0.1 * (seed + 1)).to_sparse_bsr((2, 2)),
    "bsc": lambda seed: sparse(seed, 0.1 * (seed + 1)).to_sparse_bsc((2, 2)),
    **{f"quantized {i}": partial(lambda i, seed: quantized(seed)[i], i) for i in range(5)},
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_it_comes_back_bit_by_bit_in_place(make):
    saved = {"t": make(0), "in": [make(0)]}
    live = {"t": make(1), "in": [make(1)]}
    objects = live["t"], live["in"][0]
    fill(live, images_of(saved))
    assert live["t"] is objects[0]
    assert live["in"][0] is objects[1]
    assert same(live["t"], saved["t"])
    assert same(live["in"][0], saved["in"][0])


@pytest.mark.parametrize("make", [CASES[k] for k in CASES if not k.startswith("flatten")])
def test_what_torch_makes_itself_needs_no_live_one(make):
    saved = make(0).detach()
    live: dict[str, Any] = {"x": {}}
    fill(live, images_of({"x": {"t": saved}}))
    assert same(live["x"]["t"], saved)


def test_the_parts_have_names_anyone_can_read():
    images = images_of({"w": coded(0), "s": torch.eye(2).to_sparse()})
    assert names(images) == ["w.codes", "w.scale", "w.qmap", "s.indices", "s.values"]


def test_a_module_with_such_parameters_and_buffers():
    def make(seed):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(coded(seed), requires_grad=False)
        module.tied = module.weight
        module.register_buffer("mask", sparse(seed, 0.2 + seed / 4).to_sparse())
        module.plain = torch.nn.Linear(2, 2)
        return {"model": torch.nn.Sequential(module)}

    saved, live = make(0), make(1)
    weight = live["model"][0].weight
    images = images_of(saved)
    fill(live, images)
    assert dict(images[0].header.layout.aliases)["model.0.tied.codes"] == "model.0.weight.codes"
    assert live["model"][0].weight is weight
    assert same(weight, saved["model"][0].weight)
    assert same(live["model"][0].mask, saved["model"][0].mask)
    assert torch.equal(live["model"][0].plain.weight, saved["model"][0].plain.weight)


def training(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(4, 2))
    return {"model": model, "optimizer": Momentum8bit(model.parameters())}


def train(state, steps):
    found = []
    for step in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = state["model"](x).square().mean()
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        found.append(loss.item())
    return found


def test_an_optimizer_of_eight_bits_goes_on_from_nothing():
    state = training(0)
    train(state, 3)
    images = images_of(state)
    uninterrupted = train(state, 4)
    fresh = training(1)
    fill(fresh, images)
    assert train(fresh, 4) == uninterrupted
    for a, b in zip(state["model"].parameters(), fresh["model"].parameters(), strict=True):
        assert torch.equal(a, b)
        assert same(state["optimizer"].state[a]["momentum"], fresh["optimizer"].state[b]["momentum"])


def test_an_optimizer_of_eight_bits_is_foretold():
    state = training(0)
    capture = Capture()
    foretold = capture.forecast(state)
    train(state, 1)
    assert capture.refresh(state).structure.digest == foretold.digest


class Unforetold(Momentum8bit):
    def __init__(self, params):
        super().__init__(params)
        self.mine: list[Any] = []  # a twin might reach it


def test_without_a_likeness_a_registered_type_is_made():
    def make(seed):
        state = training(seed)
        return state | {"optimizer": Unforetold(state["model"].parameters())}

    state = make(0)
    train(state, 2)
    images = images_of(state)
    with pytest.raises(StructureError, match=r"a Codes .*holdfast.register\(Codes, name='Codes', "):
        fill(make(1), images)
    holdfast.register(Codes, name="Codes")
    fresh = fill(make(1), images)
    assert train(fresh, 3) == train(state, 3)


def test_what_differs_is_named():
    images = images_of({"t": coded(0)})
    for other, message in (
        (coded(0, signed=False), r"t \(Codes \[4, 4\] here, Codes \[4, 4\] in the checkpoint\)"),
        (coded(0, shape=(2, 8)), r"t \(Codes \[2, 8\] here"),
        (torch.eye(4).to_sparse(), r"t \(sparse_coo \[4, 4\] here, Codes"),
        (torch.zeros(4, 4), r"t \(float32 \[4, 4\] here, Codes"),
    ):
        with pytest.raises(StructureError, match=message):
            fill({"t": other}, images)
    with pytest.raises(StructureError, match=r"t \(Codes \[4, 4\] here, float32 \[4, 4\] in the checkpoint\)"):
        fill({"t": coded(0)}, images_of({"t": torch.zeros(4, 4)}))


def test_parts_that_are_replaced_are_seen():
    t = coded(0)
    state, capture = {"t": t}, Capture()
    first = capture.refresh(state)
    assert capture.refresh(state).tensors is first.tensors
    t.scale = t.scale.clone()
    assert capture.refresh(state).tensors["t.scale"] is t.scale
    t.signed = False
    assert capture.refresh(state).structure.digest != first.structure.digest


def test_parts_made_at_every_look_do_not_have_all_laid_out_anew():
    module = torch.nn.Linear(3, 3)
    mask = torch.eye(3).to_sparse()
    module.register_buffer("mask", mask)
    state = {"m": module, "o": torch.optim.SGD(module.parameters(), momentum=0.9)}
    capture = Capture()
    first = capture.refresh(state)
    blocks = capture._modules
    second = capture.refresh(state)
    assert second.structure is first.structure
    assert list(capture._modules.values()) == list(blocks.values()), "the module was not read anew"
    with torch.no_grad():
        mask.copy_(torch.ones(3, 3).to_sparse())
    grown = capture.refresh(state)
    assert grown.structure.shared["m.mask.values"].shape == (9,)
    assert torch.equal(fill({"t": {}}, images_of({"t": {"x": mask}}))["t"]["x"].to_dense(), torch.ones(3, 3))


def test_a_plain_tensor_may_share_the_memory_of_a_part():
    t = coded(0)
    images = images_of({"a": t.codes, "t": t, "z": t.scale})
    assert dict(images[0].header.layout.aliases) == {"a": "t.codes", "z": "t.scale"}
    other = coded(1)
    fill({"a": other.codes, "t": other, "z": other.scale}, images)
    assert same(other, t)
    with pytest.raises(UnsupportedValueError, match=r"'u\.codes' and 't\.codes' are parts of two different tensors"):
        images_of({"t": t, "u": Codes(t.codes, t.scale, t.qmap, False)})


def test_what_does_not_fit_is_left_alone_where_that_is_asked_for():
    images = images_of({"t": coded(0), "x": torch.ones(1), "s": torch.eye(3).to_sparse()})
    live = {"t": coded(1, shape=(2, 8)), "x": torch.zeros(1), "s": torch.eye(4).to_sparse()}
    fill(live, images, strict=False)
    assert live["x"].item() == 1
    assert same(live["t"], coded(1, shape=(2, 8)))
    assert same(live["s"], torch.eye(4).to_sparse())
    uneven = Codes(torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(8), torch.zeros(256), True)
    fill({"t": uneven, "x": torch.zeros(1)}, images, strict=False)
    assert not uneven.codes.any(), "all of its parts or none"


def test_each_rank_may_have_its_own():
    def state(seed):
        return {"own": holdfast.per_rank({"t": coded(seed), "s": sparse(seed, 0.2).to_sparse()})}

    images = images_of(state(0), state(1))
    for rank in (0, 1):
        live = state(5)
        fill(live, images, rank=rank, world_size=2)
        assert same(live["own"].value["t"], coded(rank))
        assert same(live["own"].value["s"], sparse(rank, 0.2).to_sparse())


def test_a_sparse_tensor_may_grow():
    capture = Capture()
    for density in (0.1, 0.5, 0.5):
        state = {"t": sparse(0, density).to_sparse()}
        captured = capture.refresh(state)
        assert torch.equal(captured.tensors["t.values"], state["t"]._values())


class Strange(Codes):
    def __tensor_flatten__(self):
        return list(self.tensor_attrs), [object()]


class Bare(Codes):
    __tensor_flatten__ = None  # type: ignore[assignment]

    def __getattribute__(self, name):
        if name == "__tensor_flatten__":
            raise AttributeError(name)
        return super().__getattribute__(name)


def strange(seed, kind=Strange):
    t = coded(seed)
    return kind(t.codes, t.scale, t.qmap, t.signed)


def test_what_cannot_be_taken_apart_is_refused_by_name():
    with pytest.raises(
        UnsupportedValueError, match=r"'m\.w' is a .*Strange, and its context\[0\] is a builtins.object"
    ) as e:
        images_of({"m": {"w": strange(0)}})
    assert "holdfast.register" in e.value.hint
    with pytest.raises(UnsupportedValueError, match=r"'w' is a .*Bare, whose bytes are not all there is") as e:
        images_of({"w": strange(0, Bare)})
    assert "holdfast.register(Bare, name=" in e.value.hint


def test_a_registered_tensor_says_itself_what_it_is():
    def decode(content):
        return Opened(content["codes"], content["scale"], content["qmap"], content["signed"])

    class Opened(Strange):
        @classmethod
        def __torch_dispatch__(cls, func: Any, types, args=(), kwargs=None):  # type: ignore[override]
            if func is aten.copy_.default:
                to, of = args
                for name in cls.tensor_attrs:
                    getattr(to, name).copy_(getattr(of, name))
                to.signed = of.signed
                return to
            return super().__torch_dispatch__(func, types, args, kwargs)

    holdfast.register(
        Opened,
        name="opened",
        encode=lambda t: {"signed": t.signed, "codes": t.codes, "scale": t.scale, "qmap": t.qmap},
        decode=decode,
    )
    saved, live = strange(0, Opened), strange(1, Opened)
    images = images_of({"w": saved})
    assert names(images) == ["w.codes", "w.scale", "w.qmap"]
    assert same(fill({"w": live}, images)["w"], saved)
    made: dict[str, Any] = {"w": None}
    assert same(fill(made, images)["w"], saved)
    holdfast.register(Opened, name="opened", encode=lambda t: [t.codes], decode=decode)
    with pytest.raises(UnsupportedValueError, match="gave a list for the tensor 'w'"):
        images_of({"w": saved})


class Layout:
    """Part of what a tensor says of itself."""

    def __init__(self, n):
        self.n = n


class Laid(Codes):
    def __tensor_flatten__(self):
        return list(self.tensor_attrs), [Layout(self.signed)]

    @classmethod
    def __tensor_unflatten__(cls, inner, context, outer_size=None, outer_stride=None):
        make: Any = cls
        return make(*(inner[name] for name in cls.tensor_attrs), context[0].n)


class Around(torch.Tensor):
    """A subclass around a subclass."""

    @staticmethod
    def __new__(cls, impl):
        return torch.Tensor._make_wrapper_subclass(cls, impl.shape, dtype=torch.float32)

    def __init__(self, impl):
        self.impl = impl

    def __tensor_flatten__(self):
        return ["impl"], {}

    @classmethod
    def __tensor_unflatten__(cls, inner, context, outer_size=None, outer_stride=None):
        return cls(inner["impl"])

    __torch_dispatch__ = Codes.__torch_dispatch__  # type: ignore[assignment]


def test_a_context_may_hold_registered_types_and_parts_may_have_parts():
    holdfast.register(Layout, name="layout", encode=lambda x: x.n, decode=Layout)
    holdfast.register(Around, name="around")
    holdfast.register(Laid, name="laid")
    saved, live = Around(strange(0, Laid)), Around(strange(1, Laid))
    images = images_of({"w": saved})
    assert names(images) == ["w.impl.codes", "w.impl.scale", "w.impl.qmap"]
    fill({"w": live}, images)
    assert same(live.impl, saved.impl)
    made: dict[str, Any] = {"w": None}
    assert same(fill(made, images)["w"].impl, saved.impl)
    assert type(made["w"].impl) is Laid
    encoders._by_name.clear()
    encoders._by_type.clear()
    with pytest.raises(StructureError, match="registered type 'layout', which this process does not know"):
        fill({"w": None}, images)


def test_a_form_that_is_none_is_refused():
    for text in ("", "[]", "7", '["flatten","x",[],[],[],null]', '["no","x",[["a",null]],[2],[1],null]'):
        with pytest.raises(CorruptError):
            parse(text)
    with pytest.raises(CorruptError):
        parse('["sparse_coo","",[["indices",null]],[-1],[],null]')


def test_ranks_share_the_parts():
    def make(seed):
        codes = torch.randint(0, 256, (512, 4096), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        weight = Codes(codes, torch.full((8,), seed / 3), torch.arange(256.0), True)
        return {"m": torch.nn.ParameterDict({"w": torch.nn.Parameter(weight, requires_grad=False)})}

    images = images_of(make(0), make(0))
    split = [[e.name for e in image.header.layout.entries] for image in images]
    assert split == [["m.w.codes[0:256,0:4096]"], ["m.w.codes[256:512,0:4096]", "m.w.scale", "m.w.qmap"]]
    live = fill(make(1), images, world_size=2)
    assert same(live["m"]["w"], make(0)["m"]["w"])


def test_a_type_is_registered_under_one_name():
    with pytest.raises(UsageError, match="needs both"):
        holdfast.register(Layout, name="layout", encode=lambda x: x.n)
    with pytest.raises(UsageError, match="cannot be the name"):
        holdfast.register(Layout, name="a name", encode=str, decode=str)
    for kind in (dict, torch.Tensor, torch.nn.Linear, torch.optim.SGD, torch.Size):
        with pytest.raises(UsageError, match="itself"):
            holdfast.register(kind, name="x", encode=str, decode=str)
    holdfast.register(Layout, name="layout", encode=str, decode=str)
    holdfast.register(Layout, name="layout", encode=repr, decode=str)
    with pytest.raises(UsageError, match="already, as 'layout'"):
        holdfast.register(Layout, name="other", encode=str, decode=str)
    with pytest.raises(UsageError, match="another name"):
        holdfast.register(Codes, name="layout", encode=str, decode=str)
    again = type("Layout", (), {"__module__": Layout.__module__, "__qualname__": Layout.__qualname__})
    holdfast.register(again, name="layout", encode=str, decode=str)
    assert encoders.of(Layout) is None
