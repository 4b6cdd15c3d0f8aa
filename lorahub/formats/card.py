"""README.md of an adapter: the metadata block and the text below it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CardMetadata:
    """What a card states; everything is optional and nothing in it is trusted."""

    license: str | None = None
    base_model: str | None = None
    tags: tuple[str, ...] = ()
    text: str = ""


def read_card(folder: Path) -> CardMetadata:
    """Read ``README.md``; a missing, unreadable or malformed card states nothing."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return CardMetadata()
    if not text.startswith("---"):
        return CardMetadata(text=text)
    _, _, rest = text.partition("\n")
    block, mark, body = rest.partition("\n---")
    if not mark:
        return CardMetadata(text=text)
    try:
        data = yaml.safe_load(block)
    except (yaml.YAMLError, RecursionError, ValueError):
        data = None
    if not isinstance(data, dict):
        return CardMetadata(text=body.strip())
    tags = data.get("tags")
    return CardMetadata(
        license=_text(data.get("license")),
        base_model=_text(data.get("base_model")),
        tags=tuple(t for t in tags if isinstance(t, str)) if isinstance(tags, list) else (),
        text=body.strip(),
    )


def _text(value: object) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value else None
