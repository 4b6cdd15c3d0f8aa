"""What was wrong with plain data, and what was probably meant, in the words of errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_LISTS = frozenset({"list_type", "tuple_type"})
_MAPS = frozenset({"dict_type", "model_type", "dataclass_type", "model_attributes_type"})
_ALIKE = 0.6
"""Share of a word that has to stay for another to be what was meant."""


def first_wrong(error: ValidationError) -> ErrorDetails:
    """The first thing that pydantic found wrong, with a message for who wrote the data.

    A key that is unknown comes before one that is missing beside it: it may be that one, misspelt.
    """
    found = error.errors()
    first = found[0]
    if first["type"] == "missing":
        parent = first["loc"][:-1]
        unknown = (e for e in found if e["type"] == "extra_forbidden" and e["loc"][:-1] == parent)
        first = next(unknown, first)
    return {**first, "msg": _plain(first)}


def _plain(error: ErrorDetails) -> str:
    kind, given = error["type"], error["input"]
    if kind in _LISTS:
        return "has to be a list"
    if kind in _MAPS:
        return "has to be a map"
    if kind == "too_short":
        return f"needs at least {error['ctx']['min_length']} of them"
    if kind == "extra_forbidden":
        return "there is no such key"
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f"has to be text, not {str(given).lower()}: write it in quotes"
    text = error["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a hint: what a misspelt name was probably meant to be, or nothing."""
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    scorer = OSA.normalized_similarity
    close = process.extractOne(
        name, list(known), scorer=scorer, processor=str.lower, score_cutoff=_ALIKE
    )
    return f"; did you mean '{close[0]}'?" if close else ""
