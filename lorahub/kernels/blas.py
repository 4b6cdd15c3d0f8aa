"""One thread for the BLAS of numpy and scipy, which torch's own setting does not reach.

What is given to them here is small, or stands in one of many worker threads: more threads spin at
barriers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import threadpool_limits

_lock = Lock()
_users = 0
_limits: list[threadpool_limits] = []
_with_scipy = False


@contextmanager
def one_thread() -> Iterator[None]:
    """Give every BLAS loaded so far one thread while anyone is inside, in any thread.

    The last to leave gives them back what they had. Within another it costs next to nothing,
    else about a millisecond, in which the process's libraries are looked through. A caller of
    scipy imports it first.
    """
    global _users, _with_scipy
    with _lock:
        _users += 1
        scipy = "scipy.linalg" in sys.modules
        if _users == 1 or scipy != _with_scipy:
            _limits.append(threadpool_limits(1, user_api="blas"))
            _with_scipy = scipy
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            while not _users and _limits:
                _limits.pop().restore_original_limits()
