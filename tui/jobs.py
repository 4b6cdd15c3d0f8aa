"""The only place that starts work: child processes of the ``lorahub`` command.

A job is a folder under ``jobs`` in the data folder: what was asked (``job.json``), the child's
stdout (``events.jsonl``) and stderr (``log.txt``), and a file that the child holds locked while it
lives. So a job outlives the application, and the next start finds it again.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, RLock
from typing import Any

from lorahub.errors import LorahubError
from tui.job import Job, Progress
from tui.job_files import folders, held, load, storing, write

FOR_US = ("--events", "jsonl", "--json")
"""Words that only make a command's output easy to read for a program."""

NICENESS = 5
"""How far behind the application its jobs stand when both want the processor."""

RECIPE = "RECIPE"
"""Stands in a job's words for the path of its recipe file."""


class Jobs:
    """The jobs of one data folder. Methods may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "jobs"
        self.changed = Event()
        self.closed = False
        self._lock = RLock()
        self._progress: dict[str, Progress] = {}
        self._ended: dict[str, Job] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def close(self) -> None:
        """End the watching; the jobs go on."""
        self.closed = True
        with self._lock:
            for child in self._children.values():
                if child.poll() is None:
                    child.returncode = 0  # it is nobody's child from here on, and meant to be
            self._children.clear()
        self.changed.set()

    def submit(self, words: Sequence[str], title: str, recipe: str | None = None) -> str:
        """Ask for ``lorahub WORDS``; it starts when no other of its kind runs.

        Args:
            words: The command line without ``lorahub``.
            title: What a user calls it.
            recipe: Text of a recipe file, for which the word ``RECIPE`` stands.

        Raises:
            StorageError: The data folder cannot be written.
        """
        with self._lock:
            now = time.time()
            name = f"{int(now * 1000):014d}-{secrets.token_hex(2)}"
            folder = self.folder / name
            with storing(folder):
                folder.mkdir(parents=True)
                if recipe is not None:
                    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
                write(folder, {"words": list(words), "title": title, "submitted": now})
        self.changed.set()
        return name

    def poll(self) -> tuple[Job, ...]:
        """What is known of every job now, newest first; starts those whose turn it is.

        Raises:
            StorageError: A job cannot be started, for the data folder cannot be written.
        """
        with self._lock:
            names = sorted((p.name for p in folders(self.folder)), reverse=True)
            for gone in set(self._ended) - set(names):
                del self._ended[gone]
            jobs = [self._read(name) for name in names]
            busy = {job.lane for job in jobs if job.active and job.state != "waiting"}
            for position in reversed(range(len(jobs))):
                job = jobs[position]
                if job.state == "waiting" and job.lane not in busy:
                    busy.add(job.lane)
                    with storing(self.folder / job.name):
                        self._start(job)
                    jobs[position] = self._read(job.name)
            return tuple(jobs)

    def cancel(self, job: Job) -> None:
        """Stop a job as Ctrl-C does; a second time, kill it. One that waits is taken off.

        Raises:
            StorageError: As `submit`.
        """
        with self._lock, storing(self.folder / job.name):
            now = self._read(job.name)
            if now.state == "waiting":
                self.forget(now)
            elif now.active:
                body = load(self.folder / job.name)
                again = bool(body.get("cancelled"))
                write(self.folder / job.name, {**body, "cancelled": True})
                self._signal(now, signal.SIGKILL if again else signal.SIGINT)
                self._signal(now, signal.SIGCONT)
        self.changed.set()

    def pause(self, job: Job) -> None:
        """Hold a running job, or let a held one go on.

        Raises:
            StorageError: As `submit`.
        """
        with self._lock, storing(self.folder / job.name):
            now = self._read(job.name)
            if now.state in {"running", "paused"}:
                body = load(self.folder / job.name)
                goes_on = now.state == "paused"
                self._signal(now, signal.SIGCONT if goes_on else signal.SIGSTOP)
                write(self.folder / job.name, {**body, "paused": not goes_on})
        self.changed.set()

    def again(self, job: Job) -> str:
        """Submit the same once more.

        Raises:
            StorageError: As `submit`.
        """
        file = self.folder / job.name / "recipe.yaml"
        with storing(file):
            recipe = file.read_text(encoding="utf-8") if file.is_file() else None
        return self.submit(job.words, job.title, recipe)

    def forget(self, job: Job) -> None:
        """Take an ended or waiting job off the list."""
        with self._lock:
            if not held(self.folder / job.name):
                shutil.rmtree(self.folder / job.name, ignore_errors=True)
        self.changed.set()

    def stop_all(self) -> None:
        """Stop what runs and take off what waits."""
        for job in self.poll():
            if job.active and job.state != "waiting":
                self.cancel(job)
        for job in self.poll():
            if job.state == "waiting":
                self.forget(job)

    def line(self, job: Job) -> str:
        """The command line that does the same in a shell."""
        recipe = str(self.folder / job.name / "recipe.yaml")
        words = [recipe if word == RECIPE else word for word in job.words]
        return shlex.join(["lorahub", *(w for w in words if w not in FOR_US)])

    def log(self, job: Job, limit: int = 20_000) -> str:
        """The end of what the job wrote to stderr."""
        try:
            with (self.folder / job.name / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    # Processes

    def _start(self, job: Job) -> None:
        folder = self.folder / job.name
        with (folder / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another lorahub has just started it
            body = load(folder)
            if "pid" in body:
                return
            words = [str(folder / "recipe.yaml") if w == RECIPE else w for w in job.words]
            with (
                (folder / "events.jsonl").open("wb") as out,
                (folder / "log.txt").open("wb") as log,
            ):
                child = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    command(words),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    env=environment(self.home),
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
            _yield_to_the_screen(child.pid)
            write(folder, {**body, "pid": child.pid, "started": time.time()})
            self._children[job.name] = child

    def _signal(self, job: Job, number: signal.Signals) -> None:
        if job.pid is not None and held(self.folder / job.name):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, number)

    def _read(self, name: str) -> Job:
        if name in self._ended:
            return self._ended[name]
        folder = self.folder / name
        body = load(folder)
        progress = self._progress.setdefault(name, Progress())
        child = self._children.get(name)
        # Looked at before the output: what a process wrote before it ended is all read then.
        alive = "pid" in body and held(folder)
        if child is not None and child.poll() is not None:
            del self._children[name]
        progress.read(folder / "events.jsonl")
        if "pid" in body and not alive:
            progress.close(folder)
            self._ended[name] = progress.job(name, body, alive=False)
            del self._progress[name]
            return self._ended[name]
        return progress.job(name, body, alive=alive)


def _yield_to_the_screen(pid: int) -> None:
    """Let a process that has just started, and all that it starts, run at a lower priority."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


def command(words: Sequence[str]) -> list[str]:
    """The command line of a child process."""
    return [sys.executable, "-P", "-m", "lorahub", *words]


def environment(home: Path) -> dict[str, str]:
    """The environment of a child process: the same data folder, output as it comes."""
    return {**os.environ, "LORAHUB_HOME": str(home), "PYTHONUNBUFFERED": "1"}


async def ask(home: Path, words: Sequence[str]) -> Any:  # noqa: ANN401 - whatever JSON it prints
    """What ``lorahub WORDS --json`` prints. Cancelling the caller ends the child.

    Raises:
        LorahubError: It failed; with the child's own message and hint.
    """
    child = await asyncio.create_subprocess_exec(
        *command([*words, "--json"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
        start_new_session=True,
    )
    try:
        out, errors = await child.communicate()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    try:
        body = json.loads(out)
    except ValueError:
        body = None
    if child.returncode == 0 and body is not None:
        return body["result"] if isinstance(body, dict) and "result" in body else body
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        raise LorahubError(str(error.get("message")), hint=error.get("hint"))
    lines = errors.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
    raise LorahubError(lines[-1], hint=f"run `lorahub {' '.join(words)}` to see all of it")
