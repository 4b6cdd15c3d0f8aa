"""Faults on demand, gates that stop a client at an exact point, and the log of what was asked.

A rule says which requests (method, regular expression on the path and query), which of them
(an `Occurrence`), and what goes wrong. Nothing depends on time: a run can be repeated.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.waiting import PATIENCE

from .wire import Reply, Request

Occurrence = Callable[[int], bool]
"""Whether a rule fires at its n-th matching request, counted from 1."""


def always(_: int) -> bool:
    return True


def first(count: int) -> Occurrence:
    return lambda n: n <= count


def after(count: int) -> Occurrence:
    """Let `count` requests through, then fire at every one."""
    return lambda n: n > count


def nth(*numbers: int) -> Occurrence:
    return lambda n: n in numbers


def every(k: int) -> Occurrence:
    return lambda n: n % k == 0


def chance(probability: float, seed: int) -> Occurrence:
    """Fire with a probability, by a draw that depends on the seed and the count alone."""
    return lambda n: random.Random(f"{seed}:{n}").random() < probability


class Fault(Protocol):
    """What goes wrong. Where `lands` is false the request has no effect on the hub."""

    @property
    def lands(self) -> bool: ...

    def spoil(self, reply: Reply) -> Reply | None:
        """The reply that is sent instead; None closes the connection without one."""
        ...


@dataclass(frozen=True)
class Status:
    """Answer with a status; with `lands` the work was done and only the answer is bad."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "fault on demand"
    lands: bool = False

    def spoil(self, reply: Reply) -> Reply:
        json = Reply.json({"error": self.message}, self.status)
        return replace(json, headers={**json.headers, **self.headers})


@dataclass(frozen=True)
class NotJson:
    """Answer 200 with a web page, as a captive portal does."""

    lands: bool = False

    def spoil(self, reply: Reply) -> Reply:
        return Reply(200, b"<html><body>Welcome</body></html>", {"Content-Type": "text/html"})


@dataclass(frozen=True)
class WithoutHeaders:
    """Leave headers out of an otherwise good answer."""

    names: tuple[str, ...]
    lands: bool = True

    def spoil(self, reply: Reply) -> Reply:
        gone = {name.lower() for name in self.names}
        return replace(
            reply, headers={k: v for k, v in reply.headers.items() if k.lower() not in gone}
        )


@dataclass(frozen=True)
class FlipByte:
    """Invert one byte of the body (an offset in this answer, so mind a Range)."""

    offset: int
    lands: bool = True

    def spoil(self, reply: Reply) -> Reply:
        body = bytearray(reply.body)
        if self.offset < len(body):
            body[self.offset] ^= 0xFF
        return replace(reply, body=bytes(body))


@dataclass(frozen=True)
class WrongLength:
    """Declare a Content-Length that is off by `delta`."""

    delta: int
    lands: bool = True

    def spoil(self, reply: Reply) -> Reply:
        return replace(reply, declared=max(0, len(reply.body) + self.delta))


@dataclass(frozen=True)
class CutBody:
    """Close the connection after so many bytes of the body; with a gate, hang there first."""

    size: int
    gate: Gate | None = None
    lands: bool = True

    def spoil(self, reply: Reply) -> Reply:
        return replace(reply, sent=self.size, hold=self.gate.enter if self.gate else None)


@dataclass(frozen=True)
class Drop:
    """Close the connection without an answer; with `lands` after the work was done."""

    lands: bool = False

    def spoil(self, reply: Reply) -> None:
        return None


@dataclass(frozen=True)
class Stall:
    """Say nothing until the gate is released or the hub closes, then close the connection."""

    gate: Gate
    lands: bool = False

    def spoil(self, reply: Reply) -> None:
        self.gate.enter()


class Gate:
    """A point at which a request waits until the test lets it go on."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._released = threading.Event()

    def enter(self) -> None:
        self._arrived.release()
        self._released.wait()

    def wait_arrived(self, timeout: float = PATIENCE) -> None:
        """Return once a request is at the gate (one call per request); else TimeoutError."""
        if not self._arrived.acquire(timeout=timeout):
            raise TimeoutError(f"no request came to the gate in {timeout} s")

    def release(self) -> None:
        """Let go on what waits here and whatever comes later."""
        self._released.set()


@dataclass
class Rule:
    """A fault with what it applies to; `seen` and `fired` count matching requests."""

    method: str  # "*" is any
    path: re.Pattern[str]
    fault: Fault
    when: Occurrence = always
    seen: int = 0
    fired: int = 0

    def matches(self, request: Request) -> bool:
        return self.method in {"*", request.method} and bool(self.path.search(request.target))


class Faults:
    """The rules of a hub, in order; of those that match, the first that fires is applied."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def add(self, method: str, path: str, fault: Fault, when: Occurrence = always) -> Rule:
        rule = Rule(method, re.compile(path), fault, when)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget every rule, and let go what stalls at one."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            gate = getattr(rule.fault, "gate", None)
            if isinstance(gate, Gate):
                gate.release()

    def pick(self, request: Request) -> Fault | None:
        with self._lock:
            for rule in self._rules:
                if rule.matches(request):
                    rule.seen += 1
                    if rule.when(rule.seen):
                        rule.fired += 1
                        return rule.fault
        return None


class Gates:
    """Gates before a request takes effect, or between its effect and its answer."""

    def __init__(self) -> None:
        self._held: list[tuple[bool, str, re.Pattern[str], Gate]] = []
        self._lock = threading.Lock()

    def hold(self, method: str, path: str, *, landed: bool = False) -> Gate:
        """Stop matching requests: before they take effect, or (`landed`) after it."""
        gate = Gate()
        with self._lock:
            self._held.append((landed, method, re.compile(path), gate))
        return gate

    def enter(self, request: Request, *, landed: bool) -> None:
        with self._lock:
            gates = [
                gate
                for when, method, path, gate in self._held
                if when == landed
                and method in {"*", request.method}
                and path.search(request.target)
            ]
        for gate in gates:
            gate.enter()

    def clear(self) -> None:
        with self._lock:
            held, self._held = self._held, []
        for *_, gate in held:
            gate.release()


@dataclass(frozen=True)
class Entry:
    """One request as it was answered; status 0 is a connection closed without an answer."""

    origin: str
    method: str
    target: str
    status: int
    had_token: bool
    user: str | None
    headers: Mapping[str, str]  # names in lower case, without the token

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Log:
    """Every request that was answered, in the order of the answers."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._lock = threading.Lock()

    def add(self, request: Request, status: int, user: str | None) -> None:
        headers = {k: v for k, v in request.headers.items() if k != "authorization"}
        had_token = len(headers) < len(request.headers)
        entry = Entry(
            request.origin, request.method, request.target, status, had_token, user, headers
        )
        with self._lock:
            self._entries.append(entry)

    def find(self, method: str = "*", path: str = "") -> list[Entry]:
        """The entries of a method whose path and query match a regular expression."""
        return [e for e in self if method in {"*", e.method} and re.search(path, e.target)]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            return iter(self._entries.copy())

    def __len__(self) -> int:
        return len(self._entries)
