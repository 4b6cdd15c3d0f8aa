"""Work on several threads: order, bounds, exceptions, and a caller that does not wait."""

from __future__ import annotations

import threading

import pytest

from lorahub.parallel import each
from tests.waiting import PATIENCE


def test_results_come_in_the_order_of_the_items() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(PATIENCE)
        if item == 1:
            second_done.set()
        return item * item

    assert each(work, range(20), 2) == tuple(n * n for n in range(20))
    assert each(work, [], 4) == ()


def test_no_more_workers_than_asked_for() -> None:
    together = threading.Barrier(3)
    running: list[int] = []
    most: list[int] = []

    def work(item: int) -> None:
        running.append(item)
        together.wait(PATIENCE)
        most.append(len(running))
        together.wait(PATIENCE)
        running.remove(item)
        together.wait(PATIENCE)

    each(work, range(9), 3)
    assert set(most) == {3}


def test_an_exception_does_not_wait_for_what_hangs() -> None:
    hanging, release = threading.Event(), threading.Event()
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            assert hanging.wait(PATIENCE)
            raise KeyboardInterrupt
        hanging.set()
        release.wait(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        each(work, range(50), 2)
    # Both threads hang here at the latest, and find nothing more to begin afterwards.
    release.set()
    for thread in threading.enumerate():
        if thread.name == "work":
            thread.join(PATIENCE)
    assert set(begun) <= {0, 1, 2}
