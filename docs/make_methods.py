"""Make docs/methods.md from the methods themselves: `python -m docs.make_methods`."""

from __future__ import annotations

from pathlib import Path

from lorahub.methods.describe import Parameter, cost, defaults, example, parameters
from lorahub.methods.registry import Method, methods


def render() -> str:
    """The text of docs/methods.md."""
    lines = [
        "# Merge methods",
        "",
        "Made by `python -m docs.make_methods` from what `lorahub methods show NAME` shows. Beside",
        "its own parameters every method takes weights (of a source and, with `--weights-for`, of",
        "single modules) unless it says otherwise, `--scale`, `--normalize`, `--budget` with",
        "`--allocate`, and `--pack` (see [recipes.md](recipes.md)).",
        "",
    ]
    for method in methods().values():
        lines += _section(method)
    return "\n".join(lines)


def _section(method: Method) -> list[str]:
    lines = [
        f"## {method.name}", "", f"{method.title}. {method.paper}.", "",
        method.doc.replace("``", "`"), "", defaults(method), cost(method), "",
        "```", example(method), "```", "",
    ]  # fmt: skip
    rows = [_row(p) for p in parameters(method)]
    if rows:
        lines += ["| parameter | values | default | meaning |", "|---|---|---|---|", *rows, ""]
    return lines


def _row(parameter: Parameter) -> str:
    default = f"`{parameter.default}`" if parameter.default else ""
    return f"| `{parameter.name}` | {parameter.values} | {default} | {parameter.meaning} |"


if __name__ == "__main__":
    (Path(__file__).parent / "methods.md").write_text(render(), encoding="utf-8")
