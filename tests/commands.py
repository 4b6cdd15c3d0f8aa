"""The command line as tests call it: as a process of its own, or in theirs.

A process takes one to two seconds of CPU to import what it needs. It is for where the process is
the point: signals, limits, what is imported, what its user sees. Elsewhere the same code is
called here, with stdout and stderr apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.cli.main import app
from tests.conftest import ROOT
from tests.waiting import PATIENCE

LORAHUB = [sys.executable, "-c", "from lorahub.__main__ import run; run()"]


def call(*words: object, env: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Run a command as a process."""
    return process(*LORAHUB, *words, env=env, **options)


def process(*words: object, env: Mapping[str, str] | None = None, **options: Any) -> Any:
    """Run a program in the project's folder, its stdout and stderr apart."""
    return subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        timeout=PATIENCE,
        check=False,
        **options,
    )


needs_peak = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see what memory is taken"
)

# Not ru_maxrss, which a child of a larger process begins with.
_PEAK = r"""
import re, sys
with open("/proc/self/status") as status:
    print(re.search(r"VmHWM:\s*(\d+) kB", status.read())[1], file=sys.stderr)
"""


def peak_of(code: str, *words: object) -> int:
    """The most bytes of memory that a Python program took, one that must succeed."""
    done = process(sys.executable, "-c", code + _PEAK, *words)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stderr.split()[-1])


def call_here(*words: object, env: Mapping[str, str] | None = None) -> Any:
    """Run a command in this process; exit code, stdout and stderr as `call` gives them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def ok(*words: object, env: Mapping[str, str] | None = None) -> str:
    """The stdout of a process that must succeed."""
    return _stdout(call(*words, env=env))


def ok_here(*words: object, env: Mapping[str, str] | None = None) -> str:
    """The stdout of a command in this process that must succeed."""
    return _stdout(call_here(*words, env=env))


def entries(folder: Path) -> set[str]:
    """Names of what is in a folder; none where there is no folder."""
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def _stdout(done: Any) -> str:
    assert done.returncode == 0, done.stderr
    return str(done.stdout)
