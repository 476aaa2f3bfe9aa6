"""Arguments that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from holdfast.config import normalise_url

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def url_argument(*, required: bool = True) -> Decorator:
    """The home of a run. A plain path becomes a file:// URL; an unknown scheme is a ConfigError."""
    return click.argument("url", type=normalise_url, required=required)


def step_option(help_text: str) -> Decorator:
    """One step, on the lineage."""
    return click.option("--step", type=click.IntRange(min=0), metavar="N", help=help_text)


def steps_option(help_text: str) -> Decorator:
    """Several steps, on the lineage: `--step 10 --step 20`."""
    return click.option("--step", "steps", type=click.IntRange(min=0), metavar="N", multiple=True, help=help_text)


def json_option() -> Decorator:
    """One JSON document on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/cli.md has the keys).")


def yes_option(what: str) -> Decorator:
    """Destroying is a dry run until this is said."""
    return click.option("--yes", is_flag=True, help=f"{what} Without it this is a dry run.")
