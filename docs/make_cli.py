"""Make docs/cli.md from the commands themselves: `python -m docs.make_cli`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import typer

from lorahub.cli.main import app
from lorahub.errors import ExitCode

MEANING = {
    ExitCode.OK: "it worked",
    ExitCode.FAILURE: "it failed (disk, integrity, catalog, verification)",
    ExitCode.USAGE: "the command line makes no sense: an unknown option, a word where a number "
    "belongs, a value out of the option's own bounds, options that exclude each other",
    ExitCode.NOT_FOUND: "a reference, file or folder is not there",
    ExitCode.AUTH: "a token is missing or not allowed, or the repository is gated",
    ExitCode.INVALID: "an adapter, recipe or combination is invalid or unsupported; method, "
    "weights, rank, energy, budget, scale, dtype and seed are a recipe on the command line too",
    ExitCode.CONFLICT: "something is already there",
    ExitCode.NETWORK: "the Hub does not answer, or badly",
    ExitCode.PARTIAL: "some of several failed",
    ExitCode.INTERRUPTED: "Ctrl-C",
}


def commands(root: typer.Typer, prefix: str = "lorahub") -> list[tuple[str, object]]:
    """(full name, function) of every command."""
    found: list[tuple[str, object]] = []
    for info in root.registered_commands:
        assert info.callback is not None
        found.append((f"{prefix} {info.name or info.callback.__name__}", info.callback))
    for group in root.registered_groups:
        inner = group.typer_instance
        assert inner is not None
        if inner.registered_callback is not None and inner.registered_callback.callback:
            found.append((f"{prefix} {group.name}", inner.registered_callback.callback))
        found += commands(inner, f"{prefix} {group.name}")
    return found


def render() -> str:
    """The text of docs/cli.md."""
    lines = ["# Commands", "", "Made by `python -m docs.make_cli`.", ""]
    lines += [
        "Results go to stdout, everything else to stderr. With `--json`, reads print a bare value,",
        "acts an envelope with `version`, `command`, `status` and `result` or `error`.",
        "",
    ]
    for name, function in commands(app):
        lines += [f"## {name}", "", inspect.getdoc(function) or "", ""]
        rows = _parameters(function)
        if rows:
            lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code.value} | {MEANING[code]} |" for code in ExitCode]
    return "\n".join(lines) + "\n"


def _parameters(function: object) -> list[str]:
    rows = []
    hints = get_type_hints(function, include_extras=True)
    for name, hint in hints.items():
        if get_origin(hint) is not Annotated:
            continue
        info = next(a for a in get_args(hint)[1:] if hasattr(a, "param_decls"))
        # Inside Annotated, typer takes the first spelling of an option as its default.
        first = [info.default] if isinstance(info.default, str) else []
        spelled = ", ".join([*first, *(info.param_decls or ())]) or info.metavar or name.upper()
        rows.append(f"| `{spelled}` | {info.help or ''} |")
    return rows


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(render(), encoding="utf-8")
