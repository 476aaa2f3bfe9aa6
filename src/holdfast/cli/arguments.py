"""Arguments that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from holdfast.cli.completing import complete_step, complete_url
from holdfast.config import Config, normalise_url

_CONFIG = "holdfast.config of "
_STEP = click.IntRange(min=0)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _url(value: str) -> str:
    if not (value.endswith(".toml") and os.path.isfile(value)):
        return normalise_url(value)
    config = Config.from_file(value)
    home = config.resolve().home
    click.get_current_context().meta[_CONFIG + home] = config
    return home


def config_in_file(url: str) -> Config | None:
    """The configuration of the file that this command was given for the URL; None where it was given a URL."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_CONFIG + url)


def config_of(url: str) -> Config:
    """What the user said by this URL: a file's configuration, or what a bare URL means."""
    return config_in_file(url) or Config.from_url(url)


def url_argument(*, required: bool = True) -> Decorator:
    """The home of a run, or the holdfast.toml that names it.

    A plain path becomes a file:// URL; an unknown scheme is a ConfigError.
    """
    return click.argument("url", type=_url, required=required, shell_complete=complete_url)


def urls_argument() -> Decorator:
    """One or two of what `url_argument` takes, as `urls`."""
    return click.argument(
        "urls",
        type=_url,
        nargs=-1,
        required=True,
        callback=_two_at_most,
        metavar="URL [URL]",
        shell_complete=complete_url,
    )


def _two_at_most(context: click.Context, parameter: click.Parameter, urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(urls) > 2:
        raise click.BadParameter("two at most", context, parameter)
    return urls


def step_option(help_text: str) -> Decorator:
    """One step, on the lineage."""
    return click.option("--step", type=_STEP, metavar="N", help=help_text, shell_complete=complete_step)


def steps_option(help_text: str) -> Decorator:
    """Several steps, on the lineage: `--step 10 --step 20`."""
    return click.option(
        "--step", "steps", type=_STEP, metavar="N", multiple=True, help=help_text, shell_complete=complete_step
    )


def tier_option() -> Decorator:
    """Another tier than the one the URL names."""
    words = "Look there: memory (this node's), or another tier of the run. [default: the one the URL names]"
    return click.option("--tier", metavar="NAME", help=words)


def json_option() -> Decorator:
    """One JSON document on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/cli.md has the keys).")


def yes_option(what: str) -> Decorator:
    """Destroying is a dry run until this is said."""
    return click.option("--yes", is_flag=True, help=f"{what} Without it this is a dry run.")
