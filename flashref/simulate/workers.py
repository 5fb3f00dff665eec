"""Processes that share the work of a sweep."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from flashref.types import DomainError

PARTS = 4  # tasks for each worker, so that progress shows and no worker waits long for the others


@contextmanager
def worker_processes(count: int) -> Iterator[Executor | None]:
    """Start processes, which end with the block, also when it is interrupted.

    Args:
        count: number of processes.

    Returns:
        A context manager that gives the executor, or None if one process is enough.

    Raises:
        DomainError: a process ended before its work was done.
    """
    if count == 1:
        yield None
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_leave_interrupts_to_parent)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise DomainError(
            "a worker ended before its work was done, perhaps because memory ran out; use fewer workers "
            "(--workers)"
        ) from error
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    executor.shutdown()


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
