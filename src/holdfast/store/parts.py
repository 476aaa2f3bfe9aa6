"""Work by parts on a pool that others use too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Executor, wait


def run_parts(pool: Executor, part: Callable[[int], None], begins: Iterable[int]) -> None:
    """`part(begin)` for each, on the pool.

    Raises: the first error, once no part runs any more: the buffer underneath is the caller's again.
    """
    futures = [pool.submit(part, begin) for begin in begins]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
    errors = [future.exception() for future in futures if not future.cancelled()]
    for error in errors:
        if error is not None:
            raise error
