"""The floors: Holdfast beside what the hardware allows. `make bench-floors`, or `python benchmarks/run.py --only NAME`.

All of it takes about 25 minutes; `--quick` shows that it runs.

Docs: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # so that the file can be named, and everything else is the package

from benchmarks import record, report  # noqa: E402
from benchmarks.cases import first, loading, memory, saving, worst_step  # noqa: E402
from benchmarks.channel import VariantError  # noqa: E402
from benchmarks.files import places  # noqa: E402
from benchmarks.plan import FULL, QUICK, Bench, Say  # noqa: E402

Case = Callable[[Bench], Sequence[record.Result]]
CASES: dict[str, Case] = {
    "save": saving.saving,
    "first": first.first,
    "step": worst_step.worst_step,
    "load": loading.from_memory,
    "cold": loading.from_disk,
    "memory": memory.memory,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cases once, show the tables, write the record.

    A goal that is missed is a result, not an error. A case that fails costs its own numbers only.
    """
    args = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gigabytes of shared memory go then too
    console = Console() if sys.stdout.isatty() else Console(width=110)
    args.on.mkdir(parents=True, exist_ok=True)
    facts, began = record.machine(args.on), time.monotonic()
    results: list[record.Result] = []
    took_s: dict[str, float] = {}
    failed: dict[str, str] = {}
    with console.status("starting") as status:
        for name in args.only:
            case_began = time.monotonic()
            try:
                results += _run(CASES[name], args, status.update)
            except VariantError as e:
                failed[name] = str(e)
            took_s[name] = round(time.monotonic() - case_began, 1)
            console.print(f"{name}: {took_s[name]:.0f} s", style="dim")
            record.write(args.json, _record(args, facts, took_s, failed) | {"results": _results(results, args.quick)})
    report.show(console, results, facts, args.quick)
    for name, error in failed.items():
        console.print(f"case {name} failed: {error}", style="red", markup=False)
    console.print(f"{time.monotonic() - began:.0f} s; every sample is in {args.json}", style="dim")
    return 1 if failed else 0


def _run(case: Case, args: argparse.Namespace, say: Say) -> list[record.Result]:
    """Each case in directories of its own, so that none sees what another left."""
    with places(args.on) as found:
        return list(case(Bench(QUICK if args.quick else FULL, found, say)))


def _record(
    args: argparse.Namespace, facts: dict[str, Any], took_s: dict[str, float], failed: dict[str, str]
) -> dict[str, Any]:
    chosen = [] if args.only == list(CASES) else ["--only", *args.only]
    return {
        "command": " ".join(["python benchmarks/run.py", "--quick" if args.quick else "--full", *chosen]),
        "is_measurement": not args.quick,
        "machine": facts,
        "took_s": took_s,
        "failed": failed,
        "floors": record.FLOORS,
    }


def _results(results: list[record.Result], quick: bool) -> list[dict[str, Any]]:
    """Without verdicts after a quick run: it judges nothing."""
    return [r.to_dict() | ({"verdict": ""} if quick else {}) for r in results]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="2 GB, 15 pairs per number (the default)")
    size.add_argument("--quick", action="store_true", help="small state, 3 pairs: no measurement")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="some of the cases")
    parser.add_argument("--on", type=Path, default=ROOT / "out", help="directory on the disk to measure")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench.json", help="where the record goes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
