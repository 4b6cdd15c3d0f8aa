"""What helps to write a recipe file: a first one, and the JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorahub.errors import ConflictError, UsageError
from lorahub.methods.registry import Method, get
from lorahub.output import check_name, write_text
from lorahub.recipe import Recipe, make_recipe

_EXAMPLE = ({"adapter": "owner/one", "weight": 0.5}, {"adapter": "./two", "weight": 0.5})

_REST = """\
# The rest is optional; what is not given here is the default.
# scale: 1.0            # factor on the merged delta
# normalize: true       # give all adapters the same norm first
# budget: 40MB          # size of the result; also '30%' less, 'rank 8', '2M params'
# dtype: BF16           # F32, F16 or BF16; the sources' own
# seed: 0
# base: owner/model     # where the sources disagree or do not say
# verify:               # bounds on what verification finds
#   truncation: 0.1
#   retained: 0.5
"""


def write_new(path: Path, method: str, sources: Sequence[Mapping[str, Any]]) -> None:
    """Write a recipe file with every key explained.

    Raises:
        ConflictError: The file is there already.
        InvalidRecipeError: No such method, or sources that are none.
        UsageError: The file's name does not end in .yaml or .yml, or cannot be the result's.
        StorageError: It cannot be written.
    """
    if path.suffix not in {".yaml", ".yml"}:
        raise UsageError(
            f"'{path}' is no name for a recipe file", hint="end it in .yaml; adapters follow it"
        )
    if path.exists():
        raise ConflictError(f"{path}: already exists", hint="choose another file")
    known = get(method)
    body = {
        "method": method,
        "sources": [dict(s) for s in sources or _EXAMPLE],
        "output": {"name": check_name(path.stem)},
    }
    make_recipe(body, str(path))
    text = f"# {known.title}: {known.summary}\n" + yaml.safe_dump(body, sort_keys=False)
    write_text(path.absolute(), text + _parameters(known) + _REST)


def _parameters(method: Method) -> str:
    from lorahub.methods.describe import parameters

    found = [f"#   {p.name}: {p.default}  # {p.meaning}" for p in parameters(method)]
    return "\n".join(["# parameters:", *found]) + "\n" if found else ""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of recipe files, sweeps included."""
    schema = Recipe.model_json_schema()
    schema["title"] = "lorahub recipe"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"] |= {
        "matrix": {
            "type": "object",
            "minProperties": 1,
            "description": "By key of the recipe, the values that a sweep gives it.",
            "additionalProperties": {"type": "array", "minItems": 1},
        },
        "search": {
            "type": "object",
            "minProperties": 1,
            "description": "By key of the recipe, [low, high] or {choices: [...]} to search.",
        },
        "exclude": {
            "type": "array",
            "description": "Combinations of the matrix that are left out.",
            "items": {"type": "object", "minProperties": 1},
        },
    }
    # A sweep may leave to its axes what a single recipe has to say.
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["matrix"]}]
    return schema
