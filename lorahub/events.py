"""The one stream of events that long work emits.

Progress bars, the terminal UI and ``--events jsonl`` are three readers of the same values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase of known size begins: ``total`` steps of ``unit`` (``modules``, ``bytes`` ...)."""

    phase: str
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Advanced:
    """``done`` of the phase's steps are complete; ``item`` names the latest."""

    phase: str
    done: int
    item: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know that does not stop the work, and what to do about it."""

    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The work ended well; ``result`` is what the command prints with ``--json``."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The work ended with an error."""

    code: str
    message: str
    hint: str | None


Event = PhaseStarted | Advanced | Warned | Finished | Failed
Listener = Callable[[Event], None]

_NAMES: Mapping[type[Event], str] = {
    PhaseStarted: "phase",
    Advanced: "advance",
    Warned: "warning",
    Finished: "finished",
    Failed: "failed",
}


def ignore(event: Event) -> None:
    """The listener that listens to nothing."""


def to_json(event: Event) -> str:
    """One JSON line: ``{"event": NAME, ...fields}``."""
    return json.dumps({"event": _NAMES[type(event)], **asdict(event)}, ensure_ascii=False)
