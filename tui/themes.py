"""The themes: dark, light, and high contrast. Colour alone never means anything."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="lorahub-dark",
    primary="#7aa2f7",
    secondary="#9ece6a",
    accent="#e0af68",
    foreground="#c8d0e8",
    background="#14161f",
    surface="#1a1d28",
    panel="#232736",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    dark=True,
)
LIGHT = Theme(
    name="lorahub-light",
    primary="#2456c4",
    secondary="#2f7d32",
    accent="#9a5b00",
    foreground="#1d2433",
    background="#fbfbfd",
    surface="#f1f3f8",
    panel="#e2e6f0",
    success="#2f7d32",
    warning="#8a5a00",
    error="#b3202c",
    dark=False,
)
CONTRAST = Theme(
    name="lorahub-contrast",
    primary="#ffff00",
    secondary="#00ffff",
    accent="#ffffff",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#303030",
    success="#00ff00",
    warning="#ffff00",
    error="#ff8080",
    dark=True,
)

THEMES: tuple[Theme, ...] = (DARK, LIGHT, CONTRAST)


def following(name: str) -> str:
    """The theme after that one, in a circle."""
    names = [theme.name for theme in THEMES]
    return names[(names.index(name) + 1) % len(names)] if name in names else names[0]
