"""Text from strangers: what of it may be kept, and how it is shown in a message."""

from __future__ import annotations

_SHOWN = 80


def printable(value: object) -> str | None:
    """``value`` if it is a non-empty string without control characters, else None."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def shown(value: object) -> str:
    """``value`` for a message: one short line that cannot steer a terminal."""
    text = value if isinstance(value, str) else repr(value)
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
