"""README.md of an adapter: the metadata block and the text below it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lorahub.formats.text import printable

MAX_BYTES = 1 << 20
MAX_METADATA = 1 << 16

# All control characters but tab and newline: a card is shown in terminals.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class CardMetadata:
    """What a card states; everything is optional and nothing in it is trusted."""

    license: str | None = None
    base_model: str | None = None
    tags: tuple[str, ...] = ()
    text: str = ""


def read_card(folder: Path) -> CardMetadata:
    """Read ``README.md``; a missing, unreadable or malformed card states nothing."""
    path = folder / "README.md"
    try:
        if not path.is_file():
            return CardMetadata()
        with path.open("rb") as file:
            text = _CONTROL.sub("", file.read(MAX_BYTES).decode("utf-8-sig", "replace"))
    except OSError:
        return CardMetadata()
    if not text.startswith("---"):
        return CardMetadata(text=text)
    _, _, rest = text.partition("\n")
    block, mark, body = f"\n{rest}".partition("\n---")
    if not mark:
        return CardMetadata(text=text)
    data = _metadata(block)
    tags = data.get("tags")
    return CardMetadata(
        license=_text(data.get("license")),
        base_model=_text(data.get("base_model")),
        tags=tuple(t for t in tags if printable(t)) if isinstance(tags, list) else (),
        text=body.strip(),
    )


def _metadata(block: str) -> dict[object, object]:
    if len(block) > MAX_METADATA:  # parsing YAML is slow, and metadata is short
        return {}
    import yaml

    try:
        data = yaml.safe_load(block)
    except (
        yaml.YAMLError, RecursionError,
        # What the constructors of ints, dates and flags raise for odd text.
        ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    ):  # fmt: skip
        return {}
    return data if isinstance(data, dict) else {}


def _text(value: object) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return printable(value)
