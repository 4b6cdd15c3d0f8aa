"""Make the pictures of docs/tui.md from the application itself: `python -m docs.make_screenshots`.

They show a catalog, a run and a job that are made up, so that the same pictures come out on every
machine; a test compares them.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import insert
from textual.pilot import Pilot
from textual.worker import WorkerState

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.workspace import Workspace
from store.models import run_table
from tui.app import LorahubApp
from tui.screens.inspect import InspectScreen
from tui.themes import THEMES

FOLDER = Path(__file__).parent / "tui"
EXAMPLES = Path(__file__).parent.parent / "examples" / "adapters"
SIZE = (110, 32)
NOW = "2026-01-02T03:04:05.000+00:00"
# What each picture is of: the keys that lead there.
SCENES = {
    "browse": ("space", "j", "space"),
    "compose": ("2",),
    "run": ("3",),
    "history": ("4",),
    "inspect": ("5",),
    "remote": ("6",),
}


def pictures() -> Iterator[tuple[str, str]]:
    """(name, SVG) of every screen in every theme."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"TZ": "UTC"}):
        time.tzset()
        home = Path(folder) / "home"
        _fill(home)
        for theme in THEMES:
            yield from asyncio.run(_draw(home, theme.name))
    time.tzset()


async def _draw(home: Path, theme: str) -> list[tuple[str, str]]:
    found = []
    (home / "tui.json").write_text(json.dumps({"theme": theme}))
    with (
        Workspace.open(home) as workspace,
        patch("tui.screens.inspect.ask", _asked),
        patch("tui.planning.usable_cpus", lambda: 4),
    ):
        app = LorahubApp(workspace)
        async with app.run_test(size=SIZE) as pilot:
            await _idle(pilot)
            for name, keys in SCENES.items():
                for key in keys:
                    await pilot.press(key)
                    await _idle(pilot)
                if name == "inspect":
                    assert isinstance(app.screen, InspectScreen)
                title = f"lorahub: {name}"
                found.append((f"{name}-{theme.removeprefix('lorahub-')}",
                              app.export_screenshot(title=title)))  # fmt: skip
    return found


async def _idle(pilot: Pilot[None]) -> None:
    """Wait until no worker but the watch over jobs runs."""
    while True:
        await pilot.pause()
        states = [w.state for w in pilot.app.workers if w.name != "_watch_jobs"]
        if not {WorkerState.PENDING, WorkerState.RUNNING} & set(states):
            break
        await asyncio.sleep(0.01)
    await pilot.pause()


def _fill(home: Path) -> None:
    """A catalog of twelve adapters, a run, and an ended job."""
    with Workspace.open(home) as workspace, patch("store.adapters.now", lambda: NOW):
        for number in range(12):
            example = sorted(EXAMPLES.iterdir())[number % 3]
            info = replace(formats.inspect(example), license=("mit", "apache-2.0")[number % 2])
            repo = f"{('ann', 'bob', 'carol')[number // 4]}/{example.name}-{number % 4 + 1}"
            origin = Origin(Source.HUB, example, repo, f"{number:040x}", None, None)
            workspace.catalog.add(Adapter(repo, origin, info))
        with workspace.catalog._write() as connection:
            connection.execute(insert(run_table), [_run(1, "failed"), _run(2, "finished")])
    _job(home)


def _run(number: int, state: str) -> dict[str, Any]:
    recipe = (
        "method: svd\nparameters:\n  rank: 8\nsources:\n- adapter: ann/languages-1\n"
        f"  weight: 0.6\n- adapter: ann/manuals-2\noutput:\n  name: both-{number}\n"
    )
    done = state == "finished"
    return {
        "id": number, "digest": "0" * 64, "state": state, "recipe": recipe, "method": "svd",
        "target": f"/home/ann/.local/share/lorahub/adapters/both-{number}", "host": "here",
        "pid": 1, "started_at": NOW, "ended_at": NOW.replace("05.000", "11.000"),
        "error": None if done else "the disk is full: free some space",
        "record": json.dumps(_record()) if done else None, "adapter_id": None,
    }  # fmt: skip


def _record() -> dict[str, Any]:
    return {
        "scale": 1.0, "modules": 36, "rank": 8, "dtype": "F32", "notes": [],
        "parents": [{"reference": "ann/languages-1", "weight": 0.6},
                    {"reference": "ann/manuals-2", "weight": 1.0}],
        "verification": {"worst_error": 1.2e-7, "worst_module": "encoder.layer.3.output.dense",
                         "tolerance": 1e-5, "truncation": 0.021, "retained": [0.97, 0.93]},
    }  # fmt: skip


def _job(home: Path) -> None:
    folder = home / "jobs" / "01767323045000-0000"
    folder.mkdir(parents=True)
    words = ["merge", "recipe.yaml", "--events", "jsonl"]
    asked = 1767323045.0
    body = {"words": words, "title": "merge both-2", "submitted": asked, "pid": 1, "started": asked}
    (folder / "job.json").write_text(json.dumps(body))
    result = {"name": "both-2", "folder": "/home/ann/.local/share/lorahub/adapters/both-2",
              "record": _record()}  # fmt: skip
    events = [
        {"event": "phase", "phase": "merge", "total": 36, "unit": "modules"},
        {"event": "finished", "result": result},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(text)
    os.utime(folder / "events.jsonl", (asked + 6, asked + 6))


async def _asked(home: Path, words: list[str]) -> dict[str, Any]:
    """Figures of a comparison: what a child process would compute, made up."""
    names, modules = words[1:], []
    for layer in range(6):
        for place, kind in enumerate(("attention.self.query", "attention.self.value", "output")):
            norms = [
                {"adapter": name, "norm": 0.5 + 0.1 * ((layer + place + n) % 5),
                 "effective_rank": 3.0 + (layer * (place + 1) + n) % 5,
                 "sigma": [1 / (k + 1 + n) for k in range(8)]}
                for n, name in enumerate(names)
            ]  # fmt: skip
            pair = {"one": names[0], "other": names[-1], "sign_conflict": 0.4 + 0.02 * layer}
            modules.append({"module": f"encoder.layer.{layer}.{kind}", "layer": str(layer),
                            "type": kind, "norms": norms, "pairs": [pair]})  # fmt: skip
    pair = {"one": names[0], "other": names[-1], "sign_conflict": 0.47, "cosine": 0.12,
            "overlap_a": 0.31}  # fmt: skip
    norms = [{"adapter": n, "norm": 6.1 + i, "effective_rank": 6.2} for i, n in enumerate(names)]
    return {"norms": norms, "pairs": [pair], "modules": modules}


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, svg in pictures():
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
