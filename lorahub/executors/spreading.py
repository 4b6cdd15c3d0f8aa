"""Groups handed to workers that may be lost, each after what it needs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Generator, Sequence
from typing import Protocol, TypeVar

from lorahub.errors import ResourceError
from lorahub.executors.base import Group, Hindered, Named, R, T, Task

H = TypeVar("H")
T_contra = TypeVar("T_contra", bound=Task, contravariant=True)
R_co = TypeVar("R_co", bound=Named, covariant=True)


class LostError(Exception):
    """The process that made a group is gone, and nobody knows how far it came."""


class Pool(Protocol[H, T_contra, R_co]):
    """Workers that take groups; ``H`` stands for one that is under way."""

    jobs: int

    def submit(self, group: Group[T_contra]) -> H:
        """Hand over a group."""

    def wait(self, handles: Collection[H]) -> Collection[H]:
        """Wait until at least one of ``handles`` has ended; return those that have."""

    def result(self, handle: H) -> Sequence[R_co]:
        """The outcomes of a group that has ended.

        Raises:
            LostError: Its process was.
        """

    def close(self) -> None:
        """Interrupt what is under way, and wait for it."""


def spread(
    groups: Sequence[Group[T]], hindered: Hindered[T, R], pool: Pool[H, T, R]
) -> Generator[R, None, None]:
    """Outcomes of ``groups``, made by ``pool``, which is closed in the end.

    What was lost begins again item by item, so that one that is its own process's end takes no
    other with it; what is lost so twice has failed.
    """
    waiting = deque(groups)
    running: dict[H, Group[T]] = {}
    done: set[str] = set()
    lost: Counter[str] = Counter()
    try:
        while waiting or running:
            blocked: list[Group[T]] = []
            while waiting and len(running) < 2 * pool.jobs:
                group = waiting.popleft()
                free: Group[T] = ()
                for item in group:
                    outcome = hindered(item)
                    if outcome is None:
                        free += (item,)
                    else:
                        done.add(item.name)
                        yield outcome
                if not all(item.needs <= done for item in free):
                    blocked.append(free)
                elif free:
                    running[pool.submit(free)] = free
            waiting.extendleft(reversed(blocked))
            ended = pool.wait(running) if running else ()
            for handle in [handle for handle in running if handle in ended]:
                group = running.pop(handle)
                try:
                    outcomes: Sequence[R] = pool.result(handle)
                except LostError as error:
                    lost.update(item.name for item in group)
                    outcomes = [item.failed(_twice(error)) for item in group if lost[item.name] > 1]
                    waiting.extendleft((item,) for item in group if lost[item.name] == 1)
                done.update(outcome.name for outcome in outcomes)
                yield from outcomes
    finally:
        pool.close()


def _twice(error: LostError) -> ResourceError:
    return ResourceError(
        f"its process was lost, twice ({error})",
        hint="repeat it with fewer --jobs: memory may have run out",
    )
