"""Every screen in every theme looks as it did: the pictures of the documentation are made again."""

from __future__ import annotations

from docs.make_screenshots import FOLDER, SCENES, pictures
from tui.themes import THEMES


def test_pictures_are_those_of_the_application() -> None:
    made = dict(pictures())
    assert len(made) == len(SCENES) * len(THEMES)
    differing = [
        name for name, svg in made.items()
        if (FOLDER / f"{name}.svg").read_text(encoding="utf-8") != svg
    ]  # fmt: skip
    assert differing == [], "look at them after `python -m docs.make_screenshots`"
