"""Base models that are known by several names, with the shapes that tell them apart.

``table.json`` holds one a line: its Hub id; other ids it has, had, or is copied under; how its
modules are named (the dialect), with the number of layers, the hidden size, the width of the MLP
and that of the keys. Null is what does not tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class KnownBase:
    """A base model of the table.

    Attributes:
        id: Its Hub id now.
        also: Other ids of the same weights: former ones, copies, re-uploads.
        dialect: How its modules are named, or None.
        layers: Number of layers, or None.
        hidden: Hidden size, or None.
        mlp: Width of the MLP, or None.
        keys: Width of the keys and values, or None.
    """

    id: str
    also: tuple[str, ...] = ()
    dialect: str | None = None
    layers: int | None = None
    hidden: int | None = None
    mlp: int | None = None
    keys: int | None = None


@cache
def known_bases() -> tuple[KnownBase, ...]:
    """All of them, in the table's order."""
    text = files("lorahub.bases").joinpath("table.json").read_text(encoding="utf-8")
    return tuple(
        KnownBase(row["id"], tuple(row.get("also", ())), row.get("dialect"), *row.get("shape", ()))
        for row in json.loads(text)
    )


def known(name: str) -> KnownBase | None:
    """The base of that Hub id, current or former, in any case."""
    return _by_id().get(name.casefold())


def named(last_part: str) -> KnownBase | None:
    """The one base whose id ends in that name, however it is punctuated; None for several."""
    return _by_last_part().get(squeezed(last_part))


def squeezed(name: str) -> str:
    """A name without case and punctuation, except between digits, where it tells sizes apart.

    ``Llama-3.2_1B`` and ``llama3.2-1b`` are one, ``opt-1.3b`` and ``opt-13b`` are not.
    """
    text = re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", name.casefold())
    return re.sub(r"[\W_]+", lambda between: "." if between[0] == "." else "-", text)


@cache
def _by_id() -> Mapping[str, KnownBase]:
    return {name.casefold(): base for base in known_bases() for name in (base.id, *base.also)}


@cache
def _by_last_part() -> Mapping[str, KnownBase | None]:
    found: dict[str, KnownBase | None] = {}
    for base in known_bases():
        for name in (base.id, *base.also):
            key = squeezed(name.rsplit("/", 1)[-1])
            found[key] = base if found.get(key, base) is base else None
    return found
