"""Processes that suites run in: a program of the user's, or a function that is called there.

What is started is the leader of a session of its own, and ends with everything it started: after
a result, a failure, a timeout or an interruption alike.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from lorahub.errors import EvaluationError

_MOST_OUTPUT = 1 << 20

# Answers go through a socket of their own: the function may print what it likes.
_SERVE = """\
import importlib, json, os, socket, sys
os.set_inheritable(int(sys.argv[2]), False)
channel = socket.socket(fileno=int(sys.argv[2])).makefile("rw")
sys.path[:0] = sys.argv[3:]
module, _, name = sys.argv[1].partition(":")
function = getattr(importlib.import_module(module), name)
def plain(value):
    if hasattr(value, "items"):
        return dict(value.items())
    return value.item() if hasattr(value, "item") else repr(value)
for line in channel:
    print(json.dumps(function(*json.loads(line)), default=plain), file=channel, flush=True)
"""


class Process:
    """A process that a suite runs.

    The environment is that of this process; nothing is added to it.
    """

    def __init__(
        self, suite: str, words: Sequence[str], folder: Path, *, channel: int | None = None
    ) -> None:
        """Start it.

        Args:
            suite: Name of the suite, for errors.
            words: Program and arguments.
            folder: Where it runs.
            channel: A file descriptor that it keeps, or None.

        Raises:
            EvaluationError: It cannot be started.
        """
        self._suite = suite
        with ExitStack() as stack:
            self._out: BinaryIO = stack.enter_context(tempfile.TemporaryFile())
            self._err: BinaryIO = stack.enter_context(tempfile.TemporaryFile())
            try:
                self._child = subprocess.Popen(  # noqa: S603 - running it is what the user asks for
                    words,
                    cwd=folder,
                    env=os.environ.copy(),
                    stdin=subprocess.DEVNULL,
                    stdout=self._out,
                    stderr=self._err,
                    start_new_session=True,
                    pass_fds=() if channel is None else (channel,),
                )
            except OSError as error:
                raise EvaluationError(
                    f"suite '{suite}': '{words[0]}' cannot be started ({error.strerror})",
                    hint="correct 'command' in the suite",
                ) from error
            self._files = stack.pop_all()

    def finish(self, timeout: float) -> str:
        """Wait for its end; what it printed.

        Raises:
            EvaluationError: It fails, or is not done after ``timeout`` seconds.
        """
        try:
            code = self._child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self.too_slow(timeout) from error
        if code == 0:
            return _read(self._out)
        last = _read(self._err).strip().rpartition("\n")[2]
        how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise EvaluationError(f"suite '{self._suite}' {how}", hint=last[:300] or None)

    def too_slow(self, timeout: float) -> EvaluationError:
        """The error of a process that is not done in time."""
        return EvaluationError(
            f"suite '{self._suite}' took longer than {timeout:g} s and was ended",
            hint="raise 'timeout' in the suite",
        )

    def end(self) -> None:
        """End it and what it started, whether it is still there or not."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._files.close()


class Server:
    """Calls a function in a process that is kept from one call to the next.

    What a call leaves in memory, such as a base model, is there for the next one; all of it goes
    with the process. A call that fails ends the process, and the next one starts another.
    """

    def __init__(self, suite: str, function: str, folder: Path, *, own: bool) -> None:
        """Start nothing yet.

        Args:
            suite: Name of the suite, for errors.
            function: ``package.module:name``.
            folder: Where it runs.
            own: Whether it is one of lorahub's, which never come from ``folder``.
        """
        self._suite, self._function, self._folder, self._own = suite, function, folder, own
        self._process: Process | None = None
        self._socket: socket.socket | None = None

    def call(self, arguments: Sequence[object], timeout: float) -> str:
        """What the function gives for ``arguments``, in JSON.

        Raises:
            EvaluationError: It cannot be called, fails, or is not done after ``timeout`` seconds.
        """
        if self._process is None or self._socket is None:
            self._process, self._socket = self._started()
        try:
            answer = self._asked(self._process, self._socket, arguments, timeout)
        except BaseException:
            self.end()
            raise
        return answer

    def end(self) -> None:
        """End the process, if there is one."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.end()
        self._process = self._socket = None

    def _started(self) -> tuple[Process, socket.socket]:
        ours, its = socket.socketpair()
        with its:
            words = [sys.executable, "-P", "-c", _SERVE, self._function, str(its.fileno())]
            words += [] if self._own else [str(self._folder)]
            try:
                process = Process(self._suite, words, self._folder, channel=its.fileno())
            except BaseException:
                ours.close()
                raise
        return process, ours

    def _asked(
        self, process: Process, channel: socket.socket, arguments: Sequence[object], timeout: float
    ) -> str:
        channel.settimeout(timeout)
        answer = b""
        try:
            channel.sendall(json.dumps(arguments).encode() + b"\n")
            while not answer.endswith(b"\n"):
                part = channel.recv(1 << 16)
                if not part:
                    break
                answer += part
        except TimeoutError as error:
            raise process.too_slow(timeout) from error
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            process.finish(timeout)
            raise EvaluationError(f"suite '{self._suite}' ended without figures")
        return answer.decode()


def _read(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST_OUTPUT))
    return file.read().decode(errors="replace")
