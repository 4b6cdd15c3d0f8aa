"""A method in words, for the terminal and for the document: defaults, cost, example, parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorahub.methods.registry import Method, Space

_COSTS: Mapping[Space, str] = {
    "factors": "O((d_in + d_out) R)",
    "core": "O((d_in + d_out) R^2), and R x R matrices",
    "delta": "O(d_in d_out R) for each of a few passes over the deltas, by blocks of rows",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method: its name, the values it takes, its default, what it means."""

    name: str
    values: str
    default: str
    meaning: str


def defaults(method: Method) -> str:
    """What holds where nothing is asked for."""
    scales = ", ".join(f"{method.default_scale(n):.2f} for {n}" for n in (2, 4, 8))
    facts = [f"Scale where none is given: {scales} adapters."]
    if method.normalize:
        facts.append("Adapters get one norm first.")
    elif method.normalize is None:
        facts.append("Where norms or ranks differ much, adapters get one norm first.")
    if method.equal_ranks:
        facts.append("All adapters must have the same rank.")
    return " ".join(facts)


def cost(method: Method) -> str:
    """How its work grows with a module's size."""
    return f"Cost for each module, R being the sum of the input ranks: {_COSTS[method.space]}."


def example(method: Method) -> str:
    """A command that merges two adapters by this method."""
    words = ["lorahub merge law medicine --method", method.name]
    fields = method.schema.model_fields
    if "rank" in fields:
        words.append("--rank 16")
    elif method.allocation:
        words.append('--budget "rank 16"')
    words += [f"-p {n}=0.5" for n, field in fields.items() if field.is_required()]
    return " ".join([*words, "--name skills"])


def parameters(method: Method) -> Iterator[Parameter]:
    """Its parameters, with their constraints in words."""
    properties = method.schema.model_json_schema().get("properties", {})
    for name, body in properties.items():
        default = body.get("default")
        shown = "" if default is None else str(default)
        yield Parameter(
            name,
            _values(body),
            shown.lower() if isinstance(default, bool) else shown,
            body.get("description", ""),
        )


def _values(body: Mapping[str, Any]) -> str:
    """The values a JSON Schema property takes."""
    kinds = [k for k in body.get("anyOf", [body]) if k.get("type") != "null"]
    return " or ".join(filter(None, (_kind(k) for k in kinds)))


def _kind(body: Mapping[str, Any]) -> str:
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
