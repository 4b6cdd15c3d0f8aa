"""How many threads there is room for, and work on such as an interrupted caller leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus() -> int:
    """CPUs this process may use; where the system does not tell (macOS), those it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[T], R], items: Sequence[T], workers: int) -> tuple[R, ...]:
    """``work`` of every item, at most ``workers`` at a time, in the order of the items.

    An exception of ``work``, when its result is due, or one that reaches the waiting caller, such
    as KeyboardInterrupt, ends it: what was not begun is not begun any more, and what is under way
    is left to its thread. The threads are daemons, so that neither the caller nor the end of the
    process waits for a connection that hangs, as both would with a pool of concurrent.futures.
    """
    futures: list[Future[R]] = [Future() for _ in items]
    todo: SimpleQueue[tuple[Future[R], T]] = SimpleQueue()
    for pair in zip(futures, items, strict=True):
        todo.put(pair)

    def run() -> None:
        while True:
            try:
                future, item = todo.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(item))
                except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                    future.set_exception(error)

    for _ in range(min(workers, len(items))):
        Thread(target=run, name=work.__name__, daemon=True).start()
    try:
        return tuple(future.result() for future in futures)
    finally:
        for future in futures:
            future.cancel()
