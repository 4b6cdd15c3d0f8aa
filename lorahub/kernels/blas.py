"""One thread for the BLAS of numpy and scipy, which torch's own setting does not reach.

What is given to them here is small, or stands in one of many worker threads: more threads spin at
barriers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from threading import Lock

from threadpoolctl import ThreadpoolController

_lock = Lock()
_users = 0
_limited: set[str] = set()
_limits = ExitStack()


@contextmanager
def one_thread(user: str = "numpy") -> Iterator[None]:
    """Give the BLAS of ``user`` one thread while anyone is inside, in any thread.

    The last to leave gives every BLAS back the threads that it had.

    Args:
        user: The module whose BLAS it is: ``numpy`` or ``scipy.linalg``.
    """
    global _users
    libraries = _libraries(user)
    with _lock:
        _users += 1
        if user not in _limited:
            _limits.enter_context(libraries.limit(limits=1, user_api="blas"))
            _limited.add(user)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limits.close()
                _limited.clear()


@cache
def _libraries(user: str) -> ThreadpoolController:
    """Those of the process once ``user`` is loaded; to look through them takes a millisecond."""
    import_module(user)
    return ThreadpoolController()
