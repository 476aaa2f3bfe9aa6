"""Work by parts on a pool that others use too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Executor, Future, wait


def run_parts(pool: Executor, part: Callable[[int], None], begins: Iterable[int]) -> None:
    """`part(begin)` for each, on the pool.

    Raises: the first error, once no part runs any more: the buffer underneath is the caller's again. RuntimeError when
        the pool was shut down meanwhile.
    """
    futures: list[Future[None]] = []
    try:
        for begin in begins:
            futures.append(pool.submit(part, begin))
        for future in futures:
            future.result()
    except CancelledError:
        raise RuntimeError("the pool was shut down before every part was done") from None
    finally:
        # Only for those that run: of what a pool dropped as it was shut down, `wait` would never hear.
        wait([future for future in futures if not future.cancel()])
