"""The table: Holdfast beside its peers. `make bench`, or `python benchmarks/compare.py --state NAME` for a piece.

Docs: docs/benchmarks.md. Needs the environment that `make bench` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # so that the file can be named, and everything else is the package

from benchmarks.channel import LOG_VARIABLE  # noqa: E402
from benchmarks.files import places  # noqa: E402
from benchmarks.table.bench import FULL, QUICK, Cell, Table  # noqa: E402
from benchmarks.table.book import Book, BookError  # noqa: E402
from benchmarks.table.columns import COLUMNS, LOADING, SAVING  # noqa: E402
from benchmarks.table.loading import Loading  # noqa: E402
from benchmarks.table.page import write_page  # noqa: E402
from benchmarks.table.pieces import Piece, pieces  # noqa: E402
from benchmarks.table.roster import ENTRIES, WAYS  # noqa: E402
from benchmarks.table.saving import Saving  # noqa: E402
from benchmarks.table.show import markdown, show  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for and not in the record yet, piece by piece; then show the whole record.

    A way that fails, and a goal that is missed, are results; the command ends with 0.
    """
    args = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gigabytes of shared memory go then too
    console = Console() if sys.stdout.isatty() else Console(width=140)
    if not args.show:
        try:
            _measure(args, console)
        except BookError as e:
            console.print(str(e), style="red", markup=False)
            return 2
    if not args.json.exists():
        console.print("no state is measured with what was asked for; --help lists columns and peers", style="red")
        return 2
    record = json.loads(args.json.read_text())
    if args.markdown:
        print("\n".join(markdown(record)))
        return 0
    show(console, record)
    html = args.json.with_suffix(".html")
    write_page(html, record)
    console.print(f"every sample is in {args.json}, plots in {html}", style="dim")
    return 0


def _measure(args: argparse.Namespace, console: Console) -> None:
    args.on.mkdir(parents=True, exist_ok=True)
    book = Book(args.json, args.on, command=_command(args), quick=args.quick)
    os.environ[LOG_VARIABLE] = str(args.json.with_suffix(".log").resolve())
    with console.status("starting") as status:
        for piece in pieces(args.state, args.only, quick=args.quick):
            left = piece.without([] if args.again else [k for k in piece.keys if book.has(piece.cell(k))])
            if not left.keys:
                console.print(f"{piece.name}: in the record already", style="dim")
                continue
            began = time.monotonic()
            cells = _run(left, args, status.update)
            took_s = time.monotonic() - began
            book.add(cells, piece=left.name, took_s=took_s)
            failed = ", ".join(c.key.rpartition("/")[2] for c in cells if c.failed)
            console.print(f"{left.name}: {took_s:.0f} s{f'; failed: {failed}' if failed else ''}", style="dim")


def _run(piece: Piece, args: argparse.Namespace, say: object) -> list[Cell]:
    """Each piece in directories of its own, so that none sees what another left."""
    assert callable(say)
    with places(args.on) as found:
        table = Table(piece.state, QUICK if args.quick else FULL, found, say)
        peers = [WAYS[key] for key in piece.keys]
        return Saving(table, piece.threads, peers).run() if piece.kind == "save" else Loading(table, peers).run()


def _command(args: argparse.Namespace) -> str:
    parts = ["python benchmarks/compare.py", *(["--quick"] if args.quick else [])]
    for name in ("state", "only"):
        if getattr(args, name):
            parts += [f"--{name}", *getattr(args, name)]
    return " ".join([*parts, *(["--again"] if args.again else [])])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="\n".join(_names()), formatter_class=_Raw)
    parser.add_argument("--quick", action="store_true", help="small states, few rounds: does it run? Measures nothing")
    parser.add_argument("--state", nargs="+", choices=ENTRIES, default=[], help="some of the states")
    parser.add_argument("--only", nargs="+", default=[], metavar="COLUMN/PEER", help="a column, a peer, or both")
    parser.add_argument("--again", action="store_true", help="measure what is in the record already, too")
    parser.add_argument("--on", type=Path, default=ROOT / "out", help="directory on the disk to measure")
    parser.add_argument("--json", type=Path, help="the record, which is extended (out/table.json)")
    parser.add_argument("--show", action="store_true", help="measure nothing, show the record")
    parser.add_argument("--markdown", action="store_true", help="show it as Markdown")
    args = parser.parse_args(arguments)
    args.json = args.json or ROOT / "out" / ("table-quick.json" if args.quick else "table.json")
    for only in args.only:
        for part in only.split("/"):
            if part not in (*COLUMNS, *WAYS, "save", "load"):
                parser.error(f"--only {only}: {part!r} is neither a column nor a peer; --help lists them")
    if args.show and not args.json.exists():
        parser.error(f"no record is at {args.json}")
    return args


class _Raw(argparse.RawDescriptionHelpFormatter):
    """The lists below are lines."""


def _names() -> Iterator[str]:
    yield "columns measured while saving: " + " ".join(c.key for c in SAVING)
    yield "columns measured while loading: " + " ".join(c.key for c in LOADING)
    yield "peers: " + " ".join(WAYS)


if __name__ == "__main__":
    sys.exit(main())
