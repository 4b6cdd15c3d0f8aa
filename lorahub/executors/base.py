"""What an executor is.

A batch is handed over as groups: merges that share their sources and so share the reading of
them. A large merge is handed over as parts, each a group of its own. A group is one unit of work.
It is begun once what it needs is made, and it may be begun again when the process that had it is
lost. What of a batch is there by then is not made twice, since a merge that finds its own result
leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from lorahub.errors import LorahubError
from lorahub.events import Listener


class Named(Protocol):
    """What became of an item, by the item's name."""

    @property
    def name(self) -> str:
        """Name of the item."""


class Task(Protocol):
    """What is made: a merge of a batch, or a part of one merge."""

    @property
    def name(self) -> str:
        """What no other item of the same run is called."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the items that must have an outcome before this one is begun."""

    def failed(self, error: LorahubError) -> Any:  # noqa: ANN401 - a bound cannot name the R of a run
        """The outcome of the item when nobody could make it."""


T = TypeVar("T", bound=Task)
R = TypeVar("R", bound=Named)

Group = tuple[T, ...]
"""Items that are made together, at least one."""

Worker = Callable[[Group[T]], Iterable[R]]
"""Makes a group: one outcome per item, each as soon as it is known."""

Start = Callable[[Listener], Worker[T, R]]
"""Makes a worker in the process that is to work. What its listener raises ends the work."""

Hindered = Callable[[T], R | None]
"""The outcome of an item that cannot or may not be begun any more, or None."""


class Executor(Protocol):
    """Makes groups of items."""

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
        self, groups: Sequence[Group[T]], hindered: Hindered[T, R], start: Start[T, R]
    ) -> Generator[R, None, None]:
        """Yield one outcome per item of ``groups``, which are ordered by what they need.

        Closing the generator interrupts what is under way, and returns when that has ended.

        Raises:
            LorahubError: Nobody can work.
        """
