"""What is known of one job, as a value, and the reader that learns it from the job's files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORK = frozenset({"pull", "push", "update"})


@dataclass(frozen=True, slots=True)
class Job:
    """A job at one moment.

    Attributes:
        name: Name of its folder; names sort by the time of asking.
        words: The command line without ``lorahub``.
        title: What a user calls it.
        state: ``waiting``, ``running``, ``paused``, ``finished``, ``failed`` or ``interrupted``.
        pid: Its process, or None before it starts.
        submitted: When it was asked for, in seconds since 1970; likewise started and ended.
        phase: The phase it is in, with its steps: ``done`` of ``total`` ``unit``.
        item: The latest step.
        rate: Steps a second in this phase.
        warnings: What it warned of, and below it what to do.
        result: What it came to, once it ended well.
        error: Why it failed, and what to do.
    """

    name: str
    words: tuple[str, ...]
    title: str
    state: str
    pid: int | None
    submitted: float
    started: float | None
    ended: float | None
    phase: str
    done: int
    total: int
    unit: str
    item: str
    rate: float
    warnings: tuple[str, ...]
    result: Mapping[str, Any] | None
    error: str | None
    hint: str | None

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in {"waiting", "running", "paused"}

    @property
    def verb(self) -> str:
        """Which command it is."""
        return self.words[0] if self.words else ""

    @property
    def lane(self) -> str:
        """Jobs of one lane run one after the other: what computes, and what transfers."""
        return "network" if self.verb in NETWORK else "compute"

    @property
    def share(self) -> float:
        """How much of its phase is done, 0..1."""
        return self.done / self.total if self.total else 0.0


class Progress:
    """Reads a job's events as they are written."""

    def __init__(self) -> None:
        self._over = False
        self._offset = 0
        self._rest = b""
        self._phase, self._unit, self._item = "", "", ""
        self._done = self._total = 0
        self._since = 0.0
        self._latest = 0.0
        self._warnings: list[str] = []
        self._result: Mapping[str, Any] | None = None
        self._error: tuple[str, str, str | None] | None = None
        self._ended: float | None = None

    def read(self, file: Path) -> None:
        """Take in what was written since the last time."""
        try:
            with file.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line of JSON that is not on one line is read at the end
            if isinstance(event, dict) and "event" in event:
                self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        now = time.time()
        match event["event"]:
            case "phase":
                self._phase, self._unit = str(event["phase"]), str(event["unit"])
                self._total, self._done, self._item = int(event["total"]), 0, ""
                self._since = self._latest = now
            case "advance":
                if event["phase"] == self._phase:
                    self._done = int(event["done"])
                self._item, self._latest = str(event["item"]), now
            case "warning":
                hint = f"\n{event['hint']}" if event.get("hint") else ""
                self._warnings.append(f"{event['message']}{hint}")
            case "finished":
                self._result = event["result"]
            case "failed":
                self._error = str(event["code"]), str(event["message"]), event.get("hint")

    def close(self, folder: Path) -> None:
        """The process is gone: what it wrote now tells how it ended."""
        self._over = True
        files = [folder / "events.jsonl", folder / "log.txt"]
        self._ended = max((f.stat().st_mtime for f in files if f.is_file()), default=time.time())
        if self._result is None and self._error is None:
            self._envelope(folder / "events.jsonl")
        if self._result is None and self._error is None:
            self._error = "interrupted", "the process ended without a word", "start it again"

    def _envelope(self, file: Path) -> None:
        """The one JSON value of a command that has no events."""
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if not isinstance(body, dict) or "status" not in body:
            return
        if body["status"] == "ok":
            result = body.get("result")
            self._result = result if isinstance(result, dict) else {"result": result}
        elif isinstance(body.get("error"), dict):
            error = body["error"]
            self._error = str(error["code"]), str(error["message"]), error.get("hint")
        else:
            self._error = "partial", "some of it failed", "see the log"

    def job(self, name: str, body: Mapping[str, Any], *, alive: bool) -> Job:
        """What is known, as a value."""
        spent = self._latest - self._since
        error = self._error
        if not body.get("words"):
            error = "damaged", "what was asked cannot be read: job.json is damaged", "forget it (d)"
        return Job(
            name=name,
            words=tuple(str(w) for w in body.get("words", ())),
            title=str(body.get("title", name)),
            state=self._state(body, alive=alive),
            pid=body.get("pid"),
            submitted=float(body.get("submitted", 0)),
            started=body.get("started"),
            ended=self._ended,
            phase=self._phase,
            done=self._done,
            total=self._total,
            unit=self._unit,
            item=self._item,
            rate=self._done / spent if spent > 0 else 0.0,
            warnings=tuple(self._warnings),
            result=self._result,
            error=error[1] if error else None,
            hint=error[2] if error else None,
        )

    def _state(self, body: Mapping[str, Any], *, alive: bool) -> str:
        if not body.get("words"):
            return "failed"
        if "pid" not in body:
            return "waiting"
        if not self._over:
            return "paused" if body.get("paused") and alive else "running"
        if self._error is not None:
            return "interrupted" if self._error[0] == "interrupted" else "failed"
        return "finished"
