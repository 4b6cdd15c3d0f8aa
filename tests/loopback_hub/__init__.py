"""A Hub on loopback for tests: real sockets, the real client, faults on demand."""

from .faults import (
    CutBody,
    Drop,
    Entry,
    Fault,
    FlipByte,
    Gate,
    NotJson,
    Rule,
    Stall,
    Status,
    WithoutHeaders,
    WrongLength,
    after,
    always,
    chance,
    every,
    first,
    nth,
)
from .server import LoopbackHub
from .state import Commit, Repo

__all__ = [
    "Commit",
    "CutBody",
    "Drop",
    "Entry",
    "Fault",
    "FlipByte",
    "Gate",
    "LoopbackHub",
    "NotJson",
    "Repo",
    "Rule",
    "Stall",
    "Status",
    "WithoutHeaders",
    "WrongLength",
    "after",
    "always",
    "chance",
    "every",
    "first",
    "nth",
]
