"""Waiting for what other processes do, which tell nobody when they have."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 240.0
"""Seconds after which something is wrong, however busy the machine is."""


def until(condition: Callable[[], object], what: Callable[[], str] = str) -> None:
    """Look until ``condition`` holds; ``what`` says how things stand if it never does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)  # nothing tells: the file or the process is looked at again
