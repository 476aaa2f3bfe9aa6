"""Who is in the table: every way to save with its setting, and which of them each state is measured with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaySpec:
    """A row. `program` is module:class under `benchmarks.table.ways`."""

    key: str
    label: str
    program: str
    setting: str = "default"


OURS = WaySpec("holdfast", "Holdfast", "holdfast:Holdfast")

WAYS = {
    way.key: way
    for way in (
        WaySpec("torch-save", "torch.save", "plain:TorchSave"),
        WaySpec("torch-save-best", "torch.save, loaded with mmap", "plain:TorchSave", "best"),
        WaySpec("safetensors", "safetensors save_file", "plain:Safetensors"),
        WaySpec("dcp", "DCP save", "dcp:DcpSave"),
        WaySpec("dcp-best", "DCP save, 2 writer threads", "dcp:DcpSave", "best"),
        WaySpec("dcp-thread", "DCP async, thread", "dcp:DcpThread"),
        WaySpec("dcp-thread-best", "DCP async, thread, stager kept, 2 writers", "dcp:DcpThread", "best"),
        WaySpec("dcp-process", "DCP async, process", "dcp:DcpProcess"),
        WaySpec("dcp-process-best", "DCP async, process, stager kept, 2 writers", "dcp:DcpProcess", "best"),
        WaySpec("torchsnapshot", "torchsnapshot async_take", "snapshot:Torchsnapshot"),
        WaySpec("tc-plain", "torch_checkpointing as it comes", "meta:TorchCheckpointing", "plain"),
        WaySpec("tc", "torch_checkpointing, O_DIRECT off", "meta:TorchCheckpointing"),
        WaySpec(
            "tc-best", "torch_checkpointing, O_DIRECT off, 2 writers, prewarmed", "meta:TorchCheckpointing", "best"
        ),
        WaySpec("orbax", "Orbax async, numpy", "orbax:Orbax"),
        WaySpec("orbax-best", "Orbax async, numpy, without OCDBT, zarr3", "orbax:Orbax", "best"),
    )
}

_ALL = tuple(key for key in WAYS if key != "torch-save-best")
_BEST = ("torch-save", "safetensors", "dcp-best", "dcp-thread-best", "dcp-process-best", "torchsnapshot", "tc-best",
         "orbax-best")  # fmt: skip
_ASYNC_BEST = ("dcp-thread-best", "dcp-process-best", "torchsnapshot", "tc-best", "orbax-best")
_RANKS = ("torch-save", "dcp-best", "dcp-thread", "dcp-thread-best", "dcp-process-best", "tc-best")
_LOADS = ("torch-save-best", "safetensors", "dcp-best", "torchsnapshot", "tc-best", "orbax-best")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a state is measured with: (torch threads, way) for saving, ways for loading.

    `beside`: how many peers live beside ours at once, so that memory stays below 16 GB.
    """

    saves: tuple[tuple[int, str], ...]
    loads: tuple[str, ...]
    beside: int


ENTRIES = {
    "transformer": Entry((*((1, w) for w in _ALL), *((2, w) for w in _ASYNC_BEST)), _LOADS, beside=1),
    "tensors": Entry(tuple((1, w) for w in _BEST), _LOADS, beside=4),
    "fsdp2": Entry(tuple((1, w) for w in _RANKS), ("torch-save", "dcp-best", "tc-best"), beside=2),
    "ddp": Entry(tuple((1, w) for w in _RANKS), ("torch-save-best", "dcp-best", "tc-best"), beside=1),
}
