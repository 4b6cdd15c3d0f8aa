"""The filter line: ``rank:8..16 base:llama law`` as conditions, words and a command line."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from lorahub.errors import UsageError
from lorahub.filters import parse_filter
from store import AdapterFilter

KEYS = (
    "base", "rank", "alpha", "target", "tag", "dtype", "size", "license", "task", "source",
    "method", "since", "until", "used-in",
)  # fmt: skip
LISTS = {"target": "targets", "tag": "tags"}
"""Keys that may be given several times, with the field of the filter that takes them."""


@dataclass(frozen=True, slots=True)
class Query:
    """A filter line, read.

    Attributes:
        text: As it was typed.
        where: Its conditions.
        words: Its words, for full-text search.
        problem: What could not be read, in words; the rest still holds.
    """

    text: str = ""
    where: AdapterFilter = field(default_factory=AdapterFilter)
    words: str = ""
    problem: str | None = None

    def command(self, sort: str, *, descending: bool) -> str:
        """The command line that lists the same."""
        conditions = [w for k, v in pairs(self.text) if k in KEYS and v for w in (f"--{k}", v)]
        if self.words and not conditions:
            return f"lorahub search {shlex.join(self.words.split())}"
        parts = ["lorahub", "ls", *conditions]
        if self.words:
            return shlex.join([*parts, "--search", self.words])
        if sort != "name":
            parts += ["--sort", sort]
        if descending:
            parts.append("--reverse")
        return shlex.join(parts)


def parse(text: str) -> Query:
    """Read a filter line; never fails, for it is read while it is typed."""
    where, words, problem = AdapterFilter(), [], None
    given: dict[str, Any] = {}
    for key, value in pairs(text):
        if not key:
            words.append(value)
        elif key not in KEYS:
            problem = f"no filter '{key}:'; there are {', '.join(KEYS)}"
        elif value and key in LISTS:
            given[LISTS[key]] = (*given.get(LISTS[key], ()), value)
        elif value:
            given[key.replace("-", "_")] = value
        try:
            where = parse_filter(**given)
        except UsageError as error:
            problem = f"{error.message.removeprefix('--')}; {error.hint}"
            given.pop(key.replace("-", "_"), None)
    return Query(text, where, " ".join(words), problem)


def pairs(text: str) -> list[tuple[str, str]]:
    """The line's parts as key and value; a word has no key. Quotes keep spaces together."""
    found = re.findall(r'(?:([a-z-]+):)?(?:"([^"]*)"?|(\S+))|([a-z-]+):(?=\s|$)', text)
    return [(key or bare, quoted or plain) for key, quoted, plain, bare in found]


def toggled(text: str, key: str, value: str) -> str:
    """The line with ``key:value`` put in or taken out; targets and tags may have several."""
    parts = pairs(text)
    kept = key in LISTS
    without = [(k, v) for k, v in parts if (k, v) != (key, value) and (k != key or kept)]
    if (key, value) not in parts:
        without.append((key, value))
    return " ".join(_written(k, v) for k, v in without)


def _written(key: str, value: str) -> str:
    text = f'"{value}"' if re.search(r"\s", value) else value
    return f"{key}:{text}" if key else text
