"""What licences of several works leave for a work made of them.

The table (``licenses.toml``) says of each licence what it asks, coarsely; it is made for warnings
before a merge and before a push, and is no legal advice.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

_UNTOLD = {"other", "unknown", ""}
"""What the Hub writes for licences it has no name for: two of them need not be the same."""


@dataclass(frozen=True, slots=True)
class License:
    """What a licence asks of whoever hands the work on.

    Attributes:
        id: Its id on the Hub.
        asks: Among ``notice``, ``changes`` and ``noncommercial``.
        own: ``share-alike`` where results must have this licence and nothing else, ``terms``
            where its terms of use must be passed on, or None.
        into: Ids of licences that results may have all the same.
        refuses: Ids of licences whose works may not become part of a result under this one.
        unchanged: Whether no changed version may be handed on.
    """

    id: str
    asks: frozenset[str]
    own: Literal["share-alike", "terms"] | None = None
    into: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Combined:
    """What may be stated of a work made of several.

    Attributes:
        license: The licence under which all of them may be handed on together, or None where
            there is none or it is not known.
        conflicts: Which of them cannot go together, in words.
        notices: What else to know or to do.
    """

    license: str | None
    conflicts: tuple[str, ...]
    notices: tuple[str, ...]


@cache
def known() -> dict[str, License]:
    """All licences of the table by id, the stricter later."""
    body = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        key: License(
            key,
            frozenset(about["asks"]),
            about.get("own"),
            frozenset(about.get("into", ())),
            frozenset(about.get("refuses", ())),
            about.get("unchanged", False),
        )
        for key, about in body.items()
    }


def find(stated: str | None) -> License | None:
    """The licence a card means, or None for what is not in the table."""
    if stated is None:
        return None
    name = "-".join(stated.lower().split())
    for suffix in ("", "-only", "-or-later", "-license"):
        found = known().get(name.removesuffix(suffix))
        if found is not None:
            return found
    return None


def allows(one: License, other: License) -> bool:
    """Whether a work under ``one`` may become part of a result under ``other``."""
    if one.unchanged or other.unchanged:
        return False
    if one.id == other.id or other.id in one.into:
        return True
    return one.own is None and one.asks <= other.asks and one.id not in other.refuses


def combine(parents: Sequence[tuple[str, str | None]]) -> Combined:
    """The licence of a work made of ``parents``, given as (name, licence its card states)."""
    stated = {text for _, text in parents}
    only = next(iter(stated)) if len(stated) == 1 else None
    silent = [name for name, text in parents if text is None]
    notices = []
    if silent:
        notices.append(f"no licence is stated by {_names(silent)}: nobody knows what it allows")
    strange = [(n, t) for n, t in parents if t is not None and find(t) is None]
    if strange and (only is None or only.lower() in _UNTOLD):
        which = ", ".join(f"'{name}' ({text})" for name, text in strange)
        notices.append(f"the licences of {which} are not known here: read them")
    found = [(name, one) for name, text in parents if (one := find(text))]
    common = _common(found)
    conflicts = _conflicts(found) if common is None else ()
    if conflicts:
        return Combined(None, conflicts, tuple(notices))
    if len(found) < len(parents):
        stays = only is not None and only.lower() not in _UNTOLD
        return Combined(
            only if stays else None, (), (*notices, *_duties(found, None, len(parents)))
        )
    chosen = common.id if common else None
    return Combined(chosen, (), (*notices, *_duties(found, common, len(parents))))


def forbidding(stated: str, parents: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """Why a work made of ``parents`` may not be handed on under ``stated``; empty if it may.

    What is not in the table forbids nothing, since nobody here has read it.
    """
    wanted = find(stated)
    if wanted is None:
        return ()
    return tuple(
        f"'{name}' is {one.id}, {_why(one, wanted)}"
        for name, text in parents
        if (one := find(text)) and not allows(one, wanted)
    )


def _why(one: License, wanted: License) -> str:
    if one.unchanged:
        return "which lets no changed version be handed on"
    if one.own == "share-alike":
        return "which results must keep"
    if one.own == "terms":
        return "whose terms of use results must pass on"
    if "noncommercial" in one.asks - wanted.asks:
        return "which allows no commercial use"
    if one.id in wanted.refuses:
        return f"which {wanted.id} refuses"
    return f"which asks for more than {wanted.id}"


def _conflicts(found: Sequence[tuple[str, License]]) -> tuple[str, ...]:
    lines = [
        f"'{name}' is {one.id}, which lets no changed version be handed on"
        for name, one in found
        if one.unchanged
    ]
    pairs = {
        (one.id, other.id): (name, other_name)
        for name, one in found
        for other_name, other in found
        # Share-alike tolerates nothing beside it, unless either may become the other.
        if one.own == "share-alike"
        and not (one.unchanged or other.unchanged)
        and not (allows(other, one) or allows(one, other))
    }
    seen: set[frozenset[str]] = set()
    for (one_id, other_id), (name, other_name) in pairs.items():
        if frozenset((one_id, other_id)) not in seen:
            seen.add(frozenset((one_id, other_id)))
            lines.append(
                f"'{name}' ({one_id}) and '{other_name}' ({other_id}) cannot be handed on "
                f"together: {one_id} allows no other terms beside its own"
            )
    return tuple(lines)


def _common(found: Sequence[tuple[str, License]]) -> License | None:
    """The licence among them under which all may be handed on, the strictest one of several."""
    among = {one.id for _, one in found}
    fits = [
        whole
        for key, whole in reversed(known().items())
        if key in among and all(allows(one, whole) for _, one in found)
    ]
    return max(fits, key=lambda whole: len(whole.asks), default=None)


def _duties(
    found: Sequence[tuple[str, License]], chosen: License | None, count: int
) -> tuple[str, ...]:
    lines = []
    ids = list(dict.fromkeys(x.id for _, x in found))
    if chosen is None and len(ids) > 1:
        lines.append(f"no one licence covers {', '.join(ids)}: the conditions of all hold together")
    bound = [f"'{n}' ({x.id})" for n, x in found if "noncommercial" in x.asks]
    if bound and len(bound) < count:
        lines.append(f"{', '.join(bound)}: no commercial use of the result")
    terms = list(dict.fromkeys(x.id for _, x in found if x.own == "terms"))
    if terms:
        lines.append(f"the terms of use of {', '.join(terms)} go with the result")
    kept = [x for x in ids if chosen is not None and x != chosen.id and "notice" in known()[x].asks]
    if kept:
        lines.append(f"the result is {chosen and chosen.id}; keep the notices of {', '.join(kept)}")
    return tuple(lines)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
