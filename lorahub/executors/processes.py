"""Merging in processes of this machine, each on one core."""

from __future__ import annotations

import signal
import socket
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Generic

from lorahub.events import Listener
from lorahub.executors.base import Group, Hindered, R, Start, T, Worker
from lorahub.executors.spreading import LostError, spread

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event


class Processes:
    """The executor for the cores of one machine."""

    hosts = (socket.gethostname(),)
    elsewhere = True

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(
        self, groups: Sequence[Group[T]], hindered: Hindered[T, R], start: Start[T, R]
    ) -> Generator[R, None, None]:
        """See `lorahub.executors.base.Executor.run`."""
        yield from spread(groups, hindered, _Pool(self.jobs, start))


class _Pool(Generic[T, R]):
    """Processes, which are begun anew when one of them is killed."""

    def __init__(self, jobs: int, start: Start[T, R]) -> None:
        self.jobs = jobs
        self._start = start
        self._context = get_context("spawn")
        self._stop = self._context.Event()
        self._pool = self._begun()

    def _begun(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.jobs, self._context, _begin, (self._start, self._stop))

    def submit(self, group: Group[T]) -> Future[list[R]]:
        with suppress(BrokenProcessPool), _deaf():
            return self._pool.submit(_make, group)
        # The others are being killed: they must let go of what they were writing first.
        self._pool.shutdown(wait=True)
        self._pool = self._begun()
        with _deaf():
            return self._pool.submit(_make, group)

    def wait(self, handles: Collection[Future[list[R]]]) -> set[Future[list[R]]]:
        return wait(handles, return_when=FIRST_COMPLETED).done

    def result(self, handle: Future[list[R]]) -> list[R]:
        try:
            return handle.result()
        except BrokenProcessPool as error:
            raise LostError("killed") from error

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits, and never reaches processes that are begun meanwhile, even at their start."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Worker[Any, Any] | None = None


def _begin(start: Start[Any, Any], stop: Event) -> None:
    """Make a process ready to merge until ``stop`` is set."""
    global _worker
    # Ctrl-C reaches every process of a terminal; the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = start(_until(stop))


def _make(group: Group[Any]) -> list[Any]:
    assert _worker is not None
    return list(_worker(group))


def _until(stop: Event) -> Listener:
    """A listener that interrupts the work once ``stop`` is set."""

    def listen(_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    return listen
