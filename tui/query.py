"""The filter line: ``rank:8..16 base:llama law`` as conditions, words and a command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from store import AdapterFilter

SOURCES = ("hub", "folder", "merge")


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
        if self.words:
            return f"lorahub search {shlex.join(self.words.split())}"
        parts = ["lorahub", "ls"]
        for key, value in pairs(self.text):
            if key in KEYS:
                parts += [f"--{key}", value]
        if sort != "name":
            parts += ["--sort", sort]
        if descending:
            parts.append("--reverse")
        return shlex.join(parts)


def parse(text: str) -> Query:
    """Read a filter line; never fails, for it is read while it is typed."""
    where, words, problem = AdapterFilter(), [], None
    for key, value in pairs(text):
        if not key:
            words.append(value)
        elif key not in KEYS:
            problem = f"no filter '{key}:'; there are {', '.join(KEYS)}"
        elif value:
            try:
                where = KEYS[key](where, value)
            except ValueError as error:
                problem = str(error)
    return Query(text, where, " ".join(words), problem)


def pairs(text: str) -> list[tuple[str, str]]:
    """The line's parts as key and value; a word has no key. Quotes keep spaces together."""
    found = re.findall(r'(?:([a-z]+):)?(?:"([^"]*)"?|(\S+))|([a-z]+):(?=\s|$)', text)
    return [(key or bare, quoted or plain) for key, quoted, plain, bare in found]


def toggled(text: str, key: str, value: str) -> str:
    """The line with ``key:value`` put in, in place of another value; or taken out."""
    parts = pairs(text)
    without = [(k, v) for k, v in parts if k != key]
    if (key, value) not in parts:
        without.append((key, value))
    return " ".join(_written(k, v) for k, v in without)


def _written(key: str, value: str) -> str:
    text = f'"{value}"' if re.search(r"\s", value) else value
    return f"{key}:{text}" if key else text


def _rank(where: AdapterFilter, text: str) -> AdapterFilter:
    match = re.fullmatch(r"(\d+)|(\d*)\.\.(\d*)", text)
    if match is None:
        raise ValueError(f"rank:{text} is no range; write 8, 8..16, ..16 or 8..")
    if match[1]:
        return replace(where, rank=(int(match[1]), int(match[1])))
    bounds = int(match[2]) if match[2] else None, int(match[3]) if match[3] else None
    return replace(where, rank=bounds)


def _source(where: AdapterFilter, text: str) -> AdapterFilter:
    if text not in SOURCES:
        raise ValueError(f"source:{text} is not {', '.join(SOURCES)}")
    return replace(where, source=text)


KEYS: dict[str, Callable[[AdapterFilter, str], AdapterFilter]] = {
    "base": lambda where, text: replace(where, base=text),
    "rank": _rank,
    "method": lambda where, text: replace(where, method=text),
    "source": _source,
}
