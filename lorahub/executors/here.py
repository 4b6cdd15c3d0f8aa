"""Merging in this process, one group after the other."""

from __future__ import annotations

import socket
from collections.abc import Generator, Sequence

from lorahub.events import ignore
from lorahub.executors.base import Group, Hindered, R, Start, T


class Here:
    """The executor that needs nobody else."""

    jobs = 1
    hosts = (socket.gethostname(),)
    elsewhere = False

    def run(
        self, groups: Sequence[Group[T]], hindered: Hindered[T, R], start: Start[T, R]
    ) -> Generator[R, None, None]:
        """See `lorahub.executors.base.Executor.run`."""
        worker = start(ignore)
        for group in groups:
            outcomes = [hindered(item) for item in group]
            yield from (outcome for outcome in outcomes if outcome is not None)
            pairs = zip(group, outcomes, strict=True)
            if free := tuple(item for item, outcome in pairs if outcome is None):
                yield from worker(free)
