"""A method's parameters as fields of a form, from its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lorahub.methods.registry import Method

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
# Keys of a recipe beside the method's own parameters, with what they take.
OPTIONS: Mapping[str, str] = {
    "scale": "factor on the merged delta",
    "normalize": "true or false",
    "budget": "40MB, 30%, rank 8, 2M params",
    "allocate": "relative, energy, welore, prune, uniform",
    "pack": "8 times smaller, or 40MB",
    "dtype": "F32, F16, BF16",
    "seed": "0",
    "base": "owner/name of the result's base",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter.

    Attributes:
        name: Its name.
        hint: Its default and bounds, in few words.
        choices: The values it can have, where they are few.
    """

    name: str
    hint: str
    choices: tuple[str, ...] = ()


def fields_of(method: Method) -> tuple[Field, ...]:
    """The fields of a method's form, in the order of its signature."""
    properties = method.schema.model_json_schema().get("properties", {})
    return tuple(_field(name, schema) for name, schema in properties.items())


def _field(name: str, schema: Mapping[str, Any]) -> Field:
    options = schema.get("anyOf", [schema])
    default = schema.get("default")
    if len(options) == 1 and "enum" in options[0]:
        return Field(name, f"{default}", tuple(str(v) for v in options[0]["enum"]))
    if options[0].get("type") == "boolean":
        return Field(name, _spelled(default), ("true", "false"))
    words = [f"default {_spelled(default)}" if default is not None else "unset"]
    for option in options:
        if "const" in option:
            words.append(f"or {option['const']}")
        words += [f"{sign} {option[key]:g}" for key, sign in BOUNDS.items() if key in option]
    return Field(name, ", ".join(words))


def value_of(text: str) -> object:
    """What a field's text means: a number, a word, or None for nothing."""
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value


def text_of(value: object) -> str:
    """How a value stands in its field."""
    return "" if value is None else _spelled(value)


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
