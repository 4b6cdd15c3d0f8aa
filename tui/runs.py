"""Runs of the catalog in words: one of them, and the difference between two."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from store import Run
from tui import text


def record_of(run: Run) -> Mapping[str, Any]:
    """The record of the result, as plain data; empty where the run has none."""
    try:
        body = json.loads(run.record) if run.record else {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def described(run: Run) -> str:
    """What was run, what came of it and how well it was verified."""
    return "\n".join(
        [
            *(f"{key:12} {value}" for key, value in _facts(run) if value),
            "",
            "Recipe",
            run.recipe.rstrip() or "(not kept: the result was found finished)",
        ]
    )


def difference(one: Run, other: Run) -> str:
    """The lines by which two runs differ: older first."""
    older, newer = sorted((one, other), key=lambda run: run.id)
    lines = difflib.unified_diff(
        described(older).splitlines(),
        described(newer).splitlines(),
        f"run {older.id}",
        f"run {newer.id}",
        lineterm="",
        n=30,
    )
    return "\n".join(lines) or f"Runs {older.id} and {newer.id} are the same but for their number."


def _facts(run: Run) -> tuple[tuple[str, str], ...]:
    record = record_of(run)
    check = record.get("verification") or {}
    return (
        ("state", run.state),
        ("error", run.error or ""),
        ("started", run.started_at[:19].replace("T", " ")),
        ("took", span_of(run)),
        ("folder", run.target),
        ("method", run.method),
        ("scale", text.number(record["scale"]) if "scale" in record else ""),
        ("modules", str(record.get("modules", ""))),
        ("rank", str(record.get("rank", ""))),
        ("dtype", str(record.get("dtype", ""))),
        *(("parent", f"{p['reference']} weight {text.number(p['weight'])}")
          for p in record.get("parents", ())),
        ("off by", f"{check['worst_error']:.1e} in {check['worst_module']}, "
                     f"{check['tolerance']:.0e} is allowed" if check else ""),
        ("truncation", f"{check['truncation']:.2%}" if check else ""),
        ("kept", ", ".join(f"{k:.1%}" for k in check.get("retained", ()))),
        *(("note", str(note)) for note in record.get("notes", ())),
    )  # fmt: skip


def span_of(run: Run) -> str:
    """How long it took; empty while it runs."""
    if run.ended_at is None:
        return ""
    spent = datetime.fromisoformat(run.ended_at) - datetime.fromisoformat(run.started_at)
    return text.span(spent.total_seconds())
