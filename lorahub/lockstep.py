"""Tasks that go on step by step beside each other, each of which ends in its own way.

A task is a generator: it yields when it has come to where something is done for all tasks
together, and is sent what was made for it. Its ``with`` blocks stay open meanwhile, and close as
they would if it ran alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from lorahub.errors import LorahubError

Y = TypeVar("Y")
S = TypeVar("S")
R = TypeVar("R")


class Lockstep(Generic[Y, S, R]):
    """Begun tasks. Used as a context manager, which closes those that did not come to their end.

    Attributes:
        waiting: What each task that is not done yielded last, by its number.
        done: What each other task returned, or the LorahubError that it raised.
    """

    def __init__(self, tasks: Iterable[Generator[Y, S, R]]) -> None:
        """Take the tasks; `start` begins them."""
        self._tasks = list(tasks)
        self.waiting: dict[int, Y] = {}
        self.done: dict[int, R | LorahubError] = {}

    @property
    def outcomes(self) -> list[R | LorahubError]:
        """What became of the tasks, in order, once all are done."""
        return [self.done[i] for i in range(len(self._tasks))]

    def start(self) -> None:
        """Run every task to its first step."""
        for i, task in enumerate(self._tasks):
            try:
                self.waiting[i] = next(task)
            except StopIteration as end:
                self.done[i] = end.value
            except LorahubError as error:
                self.done[i] = error

    def step(self, i: int, given: S | LorahubError) -> None:
        """Send a waiting task what was made for it, or raise an error where it waits."""
        task = self._tasks[i]
        del self.waiting[i]
        try:
            self.waiting[i] = (
                task.throw(given) if isinstance(given, LorahubError) else task.send(given)
            )
        except StopIteration as end:
            self.done[i] = end.value
        except LorahubError as error:
            self.done[i] = error

    def __enter__(self) -> Lockstep[Y, S, R]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for i in self.waiting:
            if error is None:
                self._tasks[i].close()
                continue
            # What ends all of them is what each of them ends by, in its own way.
            with suppress(type(error), LorahubError, StopIteration):
                self._tasks[i].throw(error)
