"""One thread for the BLAS of numpy and scipy, for as long as anyone asks for it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module

import pytest
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from lorahub.kernels import blas
from lorahub.kernels.blas import one_thread


def threads() -> set[int]:
    """Threads of the BLAS libraries that are loaded."""
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_the_last_to_leave_gives_the_threads_back() -> None:
    import_module("scipy.linalg")
    with threadpool_limits(2, user_api="blas"), ExitStack() as first, ExitStack() as second:
        first.enter_context(one_thread())
        second.enter_context(one_thread())
        assert threads() == {1}
        first.close()
        assert threads() == {1}
        second.close()
        assert threads() == {2}


def test_libraries_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[None] = []

    class Counting(ThreadpoolController):
        def __init__(self) -> None:
            looked.append(None)
            super().__init__()

    monkeypatch.setattr(blas, "ThreadpoolController", Counting)
    blas._libraries.cache_clear()
    for _ in range(3):
        with one_thread():
            assert threads() == {1}
    assert len(looked) == 1
    blas._libraries.cache_clear()


def test_a_library_that_comes_later_has_one_thread_too() -> None:
    code = """
import sys
from threadpoolctl import threadpool_info, threadpool_limits
from lorahub.kernels.blas import one_thread
def threads():
    return {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"}
with one_thread():
    assert "scipy.linalg" not in sys.modules
    with one_thread("scipy.linalg"):
        assert threads() == {1}, threads()
    assert threads() == {1}, threads()
with threadpool_limits(2, user_api="blas"):
    with one_thread("scipy.linalg"), one_thread():
        assert threads() == {1}, threads()
    assert threads() == {2}, threads()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
