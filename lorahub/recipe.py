r"""Recipes: what to merge and how, as YAML.

method: svd
parameters: {rank: 16}
sources:
  - adapter: owner/name@revision
    weight: 0.7
  - adapter: ./my-adapter
    weights: {'layers\.(0|1)\.': 0.2}
scale: 1.0
dtype: BF16
output: {name: my-merge}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from lorahub.errors import InvalidRecipeError, UsageError
from lorahub.urls import canonical
from lorahub.wording import did_you_mean, first_wrong

AUTO = "auto"
"""Method of a recipe that leaves method, scale and rank to the adapters' figures."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _common_spelling(value: object) -> object:
    names = {"FLOAT32": "F32", "FP32": "F32", "FLOAT16": "F16", "FP16": "F16"}
    names["BFLOAT16"] = "BF16"
    return names.get(value.upper(), value.upper()) if isinstance(value, str) else value


Dtype = Annotated[Literal["F32", "F16", "BF16"], BeforeValidator(_common_spelling)]
"""A floating dtype, in the common spellings."""

Url = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+-]*://")]
Weight = Annotated[float, Field(allow_inf_nan=False)]
_ByPattern = dict[Annotated[str, Field(min_length=1)], Weight]


class SourceSpec(_Strict):
    """One source: a reference, its weights, and optionally the content it must have.

    ``weights`` gives weights by pattern, a regular expression that is looked for in module
    names; there they replace ``weight``. The first pattern that matches decides.
    """

    adapter: Annotated[str, Field(min_length=1)]
    weight: Weight = 1.0
    weights: _ByPattern = Field(default_factory=dict)
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None


class ExportSpec(_Strict):
    """A copy of the result in a folder of its own, on this machine or at a storage URL."""

    folder: Annotated[Url | Path, Field(union_mode="left_to_right")]
    format: Literal["peft", "equal-ranks"] = "peft"

    @field_validator("folder", mode="before")
    @classmethod
    def _canonical(cls, value: object) -> object:
        if not isinstance(value, str) or "://" not in value:
            return value
        try:
            return canonical(value)
        except UsageError as error:
            raise ValueError(error.message) from error


class PushSpec(_Strict):
    """A repository on the Hub that the result is published in."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    private: bool = False
    remote: str | None = None


class OutputSpec(_Strict):
    """Where the result goes: a catalog name, a folder, or both; copies, and a repository."""

    name: str | None = None
    folder: Path | None = None
    export: tuple[ExportSpec, ...] = ()
    push: PushSpec | None = None

    @field_validator("folder", mode="before")
    @classmethod
    def _local(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError("results are made in a local folder; a URL belongs in 'export'")
        return value


class VerifySpec(_Strict):
    """Bounds on what verification finds, beside the one of the dtype; None is no bound.

    ``error`` holds for the worst module, ``truncation`` for the whole, ``retained`` for every
    source, all as `lorahub.record.Verification` says.
    """

    error: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    truncation: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    retained: Annotated[float | None, Field(ge=0, le=1)] = None


class Recipe(_Strict):
    """A merge as a user writes it; nothing in it is resolved.

    ``weights`` holds for all sources what a source's own ``weights`` do not already decide.
    Relative folders, of sources and of the output, are relative to the recipe's file.
    """

    method: str
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    weights: _ByPattern = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    scale: Annotated[float | None, Field(allow_inf_nan=False)] = None
    normalize: bool | None = None
    allocate: Literal["welore", "energy", "relative", "prune", "uniform"] | None = None
    budget: str | float | None = None
    pack: str | float | None = None
    dtype: Dtype | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    base: str | None = None
    output: OutputSpec = OutputSpec()
    verify: VerifySpec = VerifySpec()

    def to_yaml(self) -> str:
        """The recipe as YAML; what has its default is left out."""
        body = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


LineOf = Callable[[tuple[int | str, ...]], int | None]
"""The line of a recipe's file on which a key stands, where that is known."""

_PARTS: Mapping[tuple[str, ...], type[_Strict]] = {
    (): Recipe,
    ("sources",): SourceSpec,
    ("output",): OutputSpec,
    ("output", "export"): ExportSpec,
    ("output", "push"): PushSpec,
    ("verify",): VerifySpec,
}


def make_recipe(body: object, where: str = "recipe", line_of: LineOf | None = None) -> Recipe:
    """Validate a recipe given as plain data.

    Raises:
        InvalidRecipeError: It is no recipe; the message names ``where``, the line and the key.
    """
    if not isinstance(body, dict):
        raise InvalidRecipeError(
            f"{where}: a recipe is a map with 'method' and 'sources', not {type(body).__name__}",
            hint="see the example in the documentation of recipes",
        )
    try:
        return Recipe.model_validate(body)
    except ValidationError as error:
        first = first_wrong(error)
        line = line_of(first["loc"]) if line_of else None
        place = where if line is None else f"{where}, line {line}"
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        raise InvalidRecipeError(
            f"{place}, key '{key}': {first['msg']}",
            hint=f"correct the key and try again{_meant(first)}",
        ) from error


def _meant(error: Any) -> str:  # noqa: ANN401 - pydantic's own map
    """What an unknown key was probably meant to be."""
    if error["type"] != "extra_forbidden":
        return ""
    *parts, key = error["loc"]
    part = _PARTS.get(tuple(p for p in parts if isinstance(p, str)))
    return did_you_mean(str(key), part.model_fields) if part else ""


def check_method(recipe: Recipe) -> None:
    """Raise InvalidRecipeError unless the recipe's method takes its parameters."""
    from lorahub.methods.registry import get

    if recipe.method == AUTO:
        check_auto(recipe)
    else:
        get(recipe.method).parameters(recipe.parameters)


def check_auto(recipe: Recipe) -> None:
    """Refuse what a recipe of method ``auto`` cannot say.

    Raises:
        InvalidRecipeError: A parameter other than a rank, or a weight that is not positive.
        UsageError: Fewer than two sources.
    """
    for name in recipe.parameters:
        if name != "rank":
            raise InvalidRecipeError(
                f"method '{AUTO}' has no parameter '{name}'",
                hint="it takes rank; name a method to set its parameters",
                key=("parameters", name),
            )
    rank = recipe.parameters.get("rank", 1)
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise InvalidRecipeError(
            f"method '{AUTO}', parameter 'rank': {rank!r} is no whole number",
            hint="give a number, or leave the rank to the figures",
            key=("parameters", "rank"),
        )
    for i, source in enumerate(recipe.sources):
        if source.weight <= 0:
            raise InvalidRecipeError(
                f"method '{AUTO}' adds adapters, but '{source.adapter}' has weight "
                f"{source.weight:g}",
                hint="leave it out, or name a method: 'svd' subtracts",
                key=("sources", i, "weight"),
            )
    own = [(("sources", i, "weights"), s.weights) for i, s in enumerate(recipe.sources)]
    for at, some in [(("weights",), recipe.weights), *own]:
        for pattern, weight in some.items():
            if weight < 0:
                raise InvalidRecipeError(
                    f"method '{AUTO}' adds adapters, but '{pattern}' has weight {weight:g}",
                    hint="give 0 to leave modules out, or name a method: 'svd' subtracts",
                    key=(*at, pattern),
                )
    if len(recipe.sources) < 2:
        raise UsageError(
            f"method '{AUTO}' chooses how to merge at least two adapters",
            hint="name another, or a method: 'cat' keeps one as it is, 'svd' gives it a rank",
        )
