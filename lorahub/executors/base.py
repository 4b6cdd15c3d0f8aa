"""What an executor is.

A batch is handed over as groups: merges that share their sources and so share the reading of
them. A group is one unit of work. It is begun once what it needs is made, it may be begun again
when the process that had it is lost, and what of it is there by then is not made twice, since
a merge that finds its own result leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Protocol

from lorahub.batch import Item, Outcome
from lorahub.events import Listener

Group = tuple[Item, ...]
"""Merges with the same sources, at least one."""

Worker = Callable[[Group], Iterable[Outcome]]
"""Makes a group: one outcome per item, each as soon as it is known."""

Start = Callable[[Listener], Worker]
"""Makes a worker in the process that is to work. What its listener raises ends the work."""

Hindered = Callable[[Item], Outcome | None]
"""The outcome of an item that cannot or may not be begun any more, or None."""


class Executor(Protocol):
    """Makes the groups of a batch."""

    @property
    def jobs(self) -> int:
        """How many groups are made at a time."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the machines where they are made."""

    @property
    def elsewhere(self) -> bool:
        """Whether workers are other processes, to which ``start`` is pickled."""

    def run(
        self, groups: Sequence[Group], hindered: Hindered, start: Start
    ) -> Generator[Outcome, None, None]:
        """Yield one outcome per item of ``groups``, which are ordered by what they need.

        Closing the generator interrupts what is under way, and returns when that has ended.

        Raises:
            LorahubError: Nobody can work.
        """
