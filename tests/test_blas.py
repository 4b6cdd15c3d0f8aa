"""One thread for the BLAS of numpy and scipy, for as long as anyone asks for it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from lorahub.kernels.blas import one_thread


def threads() -> set[int]:
    """Threads of the BLAS libraries that are loaded."""
    assert np.__version__  # numpy's is
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_the_last_to_leave_gives_the_threads_back() -> None:
    with threadpool_limits(2, user_api="blas"), ExitStack() as first, ExitStack() as second:
        first.enter_context(one_thread())
        second.enter_context(one_thread())
        assert threads() == {1}
        first.close()
        assert threads() == {1}
        second.close()
        assert threads() == {2}


def test_a_library_that_comes_later_has_one_thread_too() -> None:
    code = """
import sys
from threadpoolctl import threadpool_info
import numpy
from lorahub.kernels.blas import one_thread
def threads():
    return [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]
before = threads()
assert "scipy.linalg" not in sys.modules
with one_thread():
    from scipy.linalg import eigh
    several = threads()
    with one_thread():
        inside = threads()
    within = threads()
assert set(inside) == set(within) == {1}, (inside, within)
after = threads()
assert len(after) == len(several) and set(after) <= {*several, *before}, (before, several, after)
assert not before or max(after) == max(before), (before, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
