"""The `holdfast` command: one file per command, thin. Here: how it starts and how it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from holdfast.errors import HoldfastError, UsageError

INTERRUPTED = 130
BROKEN_PIPE = 141
COMPLETE = "_HOLDFAST_COMPLETE"
"""Set by the shell's script: what stands in COMP_WORDS is to be completed, not run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: that of the error's kind (docs/reference.md) when one was raised."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _answer(args)
        sys.stdout.flush()  # here, where a reader that has gone can still be answered quietly
        return code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader; without this the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _answer(args: list[str]) -> int:
    """The exit code; an error is told, which may meet a reader that has gone, too."""
    try:
        return _run(args or ["--help"])
    except HoldfastError as e:
        return _fail(e, as_json="--json" in args)
    except click.ClickException as e:
        return _fail(_usage(e), as_json="--json" in args)


def _run(args: list[str]) -> int:
    # Not click's own `main`: it would answer a broken pipe and an interrupt its way.
    from holdfast.cli.group import holdfast

    if COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(holdfast, {}, "holdfast", COMPLETE, os.environ[COMPLETE])
    try:
        with holdfast.make_context("holdfast", args) as context:
            holdfast.invoke(context)
    except click.exceptions.Exit as e:
        return e.exit_code
    return 0


def _usage(e: click.ClickException) -> HoldfastError:
    context = getattr(e, "ctx", None)
    command = context.command_path if context is not None else "holdfast"
    return UsageError(e.format_message(), hint=f"`{command} --help` shows what it takes, with examples")


def _fail(error: HoldfastError, *, as_json: bool) -> int:
    """Say it to the person on stderr; with `--json` to the program on stdout, too."""
    from holdfast.cli.output import note, write_json

    note(str(error))
    if as_json:
        write_json(error.to_dict())
    return error.exit_code
