"""How values are written: sizes, weights, bars, and figures that fit a cell."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from lorahub.errors import LorahubError

BLOCKS = " ▏▎▍▌▋▊▉█"
STEPS = "▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"


def size(count: int) -> str:
    """Bytes for a reader: 1.3 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def ranks(low: float, high: float) -> str:
    """A rank or alpha, or the span of several."""
    return f"{high:g}" if low == high else f"{low:g}..{high:g}"


def number(value: float) -> str:
    """A weight or parameter, in few digits."""
    return f"{value:.4g}"


def bar(share: float, width: int) -> str:
    """A bar of ``width`` cells, filled to a share in 0..1."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BLOCKS[rest] if rest else "")).ljust(width)


def spark(values: Sequence[float], width: int) -> str:
    """The values as columns, the largest in each stretch where there are more than cells."""
    if not values or max(values) <= 0:
        return ""
    cells = min(width, len(values))
    stretches = [
        max(values[i * len(values) // cells : max(1, (i + 1) * len(values) // cells)] or [0.0])
        for i in range(cells)
    ]
    top = max(stretches)
    return "".join(STEPS[min(7, int(v / top * 7.999))] if v > 0 else " " for v in stretches)


def shade(share: float) -> str:
    """A block whose density stands for a share in 0..1."""
    return SHADES[min(4, int(max(0.0, min(1.0, share)) * 4.999))]


def span(seconds: float) -> str:
    """A time for a reader: 8 s, 3:20 min, 1:05 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def plural(count: int, word: str) -> str:
    """``1 module``, ``2 modules``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def clipped(words: str, width: int) -> str:
    """The text in at most that many characters, cut with an ellipsis."""
    return words if len(words) <= width else f"{words[: width - 1]}…"


def clean(words: str) -> str:
    """Words from anywhere without control characters, which stand as question marks."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in words)


def shown(words: str, *, wrap: bool = True) -> Text:
    """Words from anywhere, as a widget may show them: no markup, no control characters."""
    return Text(clean(words), no_wrap=not wrap, overflow=None if wrap else "ellipsis")


def ending(words: str, width: int) -> str:
    """The end of the text in at most that many characters: of paths, what tells them apart."""
    return words if len(words) <= width else f"…{words[1 - width :]}"


def spoken(error: LorahubError) -> str:
    """What was wrong, and below it what to do."""
    return f"{error.message}\n{error.hint}" if error.hint else error.message
