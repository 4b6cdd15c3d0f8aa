"""Filters on the catalog as people write them: ranges, sizes and dates in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

from lorahub.adapter import Source
from lorahub.errors import InvalidRecipeError, UsageError
from store import AdapterFilter
from store.values import Span


def parse_filter(
    *,
    base: str | None = None,
    rank: str | None = None,
    alpha: str | None = None,
    targets: Sequence[str] = (),
    tags: Sequence[str] = (),
    dtype: str | None = None,
    size: str | None = None,
    license: str | None = None,  # noqa: A002 - the name of the field
    task: str | None = None,
    source: str | None = None,
    method: str | None = None,
    since: str | None = None,
    until: str | None = None,
    used_in: str | None = None,
) -> AdapterFilter:
    """A filter from texts.

    Ranges are ``8``, ``8..16``, ``..16`` or ``8..``, of sizes with units (``10MB..``); dates are
    ISO 8601, whole (``2026-01-31``) or with a time, in UTC.

    Raises:
        UsageError: A text that cannot be read, by its name.
    """
    if source not in {None, *Source}:
        raise UsageError(
            f"--source '{source}' is not one of {', '.join(Source)}", hint="name one of them"
        )
    return AdapterFilter(
        base=base,
        rank=_span("rank", rank, _whole, "write 8, 8..16, ..16 or 8.."),
        alpha=_span("alpha", alpha, _number, "write 16, 8..16, ..16 or 8.."),
        targets=tuple(targets),
        tags=tuple(tags),
        dtype=dtype,
        size=_span("size", size, _bytes, "write 10MB..50MB, ..1GB or 512KiB.."),
        license=license,
        task=task,
        source=source,
        method=method,
        since=_moment("since", since),
        until=_moment("until", until),
        used_in=used_in,
    )


def parse_size(name: str, text: str | None) -> int | None:
    """Bytes as a user gives them for option ``name``: a number, or one with a unit; or None.

    Raises:
        UsageError: It cannot be read.
    """
    if text is None or re.fullmatch(r"\d{1,18}", text, re.ASCII):
        return None if text is None else int(text)
    try:
        return _bytes(text)
    except InvalidRecipeError as error:
        raise UsageError(
            f"--{name} '{text}' is no size", hint="write 40MB, 512KiB or 9000"
        ) from error


def _span(name: str, text: str | None, number: Callable[[str], float], hint: str) -> Span | None:
    if text is None:
        return None
    low, dots, high = (part.strip() for part in text.partition(".."))
    try:
        if not dots:
            return number(low), number(low)
        least = number(low) if low else None
        most = number(high) if high else None
    except (ValueError, InvalidRecipeError) as error:
        raise UsageError(f"--{name} '{text}' is no range", hint=hint) from error
    if least is not None and most is not None and least > most:
        raise UsageError(f"--{name} '{text}' ends before it begins", hint=hint)
    return least, most


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", text, re.ASCII):
        raise ValueError(text)
    return float(text)


def _bytes(text: str) -> int:
    from lorahub.kernels.allocation import parse_bytes

    return parse_bytes(text)


def _moment(name: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        hint = "write 2026-01-31 or 2026-01-31T18:00 (in UTC)"
        raise UsageError(f"--{name} '{text}' is no date", hint=hint) from error
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d)?)?)?", text, re.ASCII):
        raise UsageError(f"--{name} '{text}' is not in UTC", hint="write it without a time zone")
    return text.replace(" ", "T")
