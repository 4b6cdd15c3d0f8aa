"""Make docs/methods.md from the methods themselves: `python -m docs.make_methods`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorahub.methods.registry import Method, methods

COUNTS = (2, 4, 8)


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


def example(method: Method) -> str:
    """A command that merges two adapters by this method."""
    words = ["lorahub merge law medicine --method", method.name]
    fields = method.schema.model_fields
    if "rank" in fields and not method.allocation:
        words.append("--rank 16")
    if method.allocation and "rank" not in fields:
        words.append('--budget "rank 16"')
    elif method.allocation:
        words.append("--rank 16")
    words += [f"-p {n}=0.5" for n, field in fields.items() if field.is_required()]
    return " ".join([*words, "--name skills"])


def _section(method: Method) -> list[str]:
    scales = ", ".join(f"{method.default_scale(n):.2f} for {n}" for n in COUNTS)
    facts = [f"Scale where none is given: {scales} adapters."]
    if method.normalize is not False:
        when = (
            "Adapters get" if method.normalize else "Where norms or ranks differ much, adapters get"
        )
        facts.append(f"{when} one norm first.")
    if method.equal_ranks:
        facts.append("All adapters must have the same rank.")
    lines = [
        f"## {method.name}", "", f"{method.title}. {method.paper}.", "",
        method.doc.replace("``", "`"), "", " ".join(facts), "",
        "```", example(method), "```", "",
    ]  # fmt: skip
    properties = method.schema.model_json_schema().get("properties", {})
    if properties:
        rows = [_row(name, body) for name, body in properties.items()]
        lines += ["| parameter | values | default | meaning |", "|---|---|---|---|", *rows, ""]
    return lines


def _row(name: str, body: dict[str, Any]) -> str:
    default = body.get("default")
    shown = (
        ""
        if default is None
        else f"`{str(default).lower() if default in (True, False) else default}`"
    )
    return f"| `{name}` | {_values(body)} | {shown} | {body.get('description', '')} |"


def _values(body: dict[str, Any]) -> str:
    """The values a JSON Schema property takes, in words."""
    kinds = [k for k in body.get("anyOf", [body]) if k.get("type") != "null"]
    return " or ".join(filter(None, (_kind(k) for k in kinds)))


def _kind(body: dict[str, Any]) -> str:
    if "enum" in body or "const" in body:
        return ", ".join(f"`{v}`" for v in body.get("enum", [body.get("const")]))
    names = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    words = [names.get(body.get("type", ""), body.get("type", ""))]
    for key, word in (
        ("minimum", "from"), ("exclusiveMinimum", "over"),
        ("maximum", "to"), ("exclusiveMaximum", "under"),
    ):  # fmt: skip
        if key in body:
            words.append(f"{word} {body[key]:g}")
    return " ".join(words)


if __name__ == "__main__":
    (Path(__file__).parent / "methods.md").write_text(render(), encoding="utf-8")
