"""The recipe that is being composed: every change gives a new value, so undoing is going back."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import InvalidRecipeError

if TYPE_CHECKING:
    from lorahub.recipe import Recipe

DEFAULT_METHOD = "svd"
# Keys of a recipe that `lorahub merge` has an option for, in the order they are written.
OPTIONS = ("scale", "normalize", "allocate", "budget", "pack", "dtype", "seed", "base")


@dataclass(frozen=True, slots=True)
class Input:
    """One source as the recipe has it, or would have if it were not muted."""

    source: Mapping[str, Any]
    muted: bool = False

    @property
    def adapter(self) -> str:
        """The reference."""
        return str(self.source["adapter"])

    @property
    def weight(self) -> float:
        """The weight, 1 unless given."""
        return float(self.source.get("weight", 1.0))

    def weighted(self, weight: float) -> Input:
        """The same with another weight."""
        return replace(self, source={**self.source, "weight": round(weight, 6)})


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe in the making.

    Attributes:
        inputs: Sources in order, muted ones in their places.
        rest: All else the recipe says, as plain data.
    """

    inputs: tuple[Input, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=lambda: {"method": DEFAULT_METHOD})

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.rest.get("method", DEFAULT_METHOD))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The method's parameters that are given."""
        given = self.rest.get("parameters", {})
        return given if isinstance(given, Mapping) else {}

    @property
    def name(self) -> str:
        """Catalog name of the result; empty while there is none."""
        output = self.rest.get("output", {})
        return str(output.get("name") or "") if isinstance(output, Mapping) else ""

    @property
    def body(self) -> dict[str, Any]:
        """The recipe as plain data: method, parameters, sources, the rest."""
        sources = [dict(i.source) for i in self.inputs if not i.muted]
        first = {k: self.rest[k] for k in ("method", "parameters") if k in self.rest}
        return {**first, "sources": sources, **self.rest}

    def to_yaml(self) -> str:
        """The recipe as its file would be."""
        import yaml  # the first screen does not need it

        return yaml.safe_dump(self.body, sort_keys=False, allow_unicode=True)

    def recipe(self) -> Recipe:
        """The recipe, checked.

        Raises:
            InvalidRecipeError: It is none (yet).
        """
        if not any(not i.muted for i in self.inputs):
            raise InvalidRecipeError("the recipe has no inputs", hint="pick adapters in Browse")
        from lorahub.recipe import make_recipe

        return make_recipe(self.body)

    def command(self) -> str:
        """The command line that runs the same; through a file where options do not say it all."""
        if not any(not i.muted for i in self.inputs):
            return "lorahub merge --help"
        known = {"method", "parameters", "output", *OPTIONS}
        plain = all(set(i.source) <= {"adapter", "weight"} for i in self.inputs)
        output = self.rest.get("output", {})
        if not plain or set(self.rest) - known or set(output) - {"name"}:
            return "lorahub merge recipe.yaml"
        parts = ["lorahub", "merge"]
        parts += [
            i.adapter if i.weight == 1 else f"{i.adapter}:{i.weight:g}"
            for i in self.inputs
            if not i.muted
        ]
        parts += ["--method", self.method]
        for name, value in self.parameters.items():
            parts += [f"--{name}", str(value)] if name in {"rank", "energy"} else [
                "-p", f"{name}={_scalar(value)}"
            ]  # fmt: skip
        for name in OPTIONS:
            if name == "normalize" and name in self.rest:
                parts.append("--normalize" if self.rest[name] else "--no-normalize")
            elif name in self.rest:
                parts += [f"--{name}", str(self.rest[name])]
        if self.name:
            parts += ["--name", self.name]
        return shlex.join(parts)

    def anchored(self, folder: Path) -> Draft:
        """The same with folders that are relative to ``folder`` made absolute."""

        def absolute(reference: str) -> str:
            relative = reference.startswith(("./", "../")) or reference in {".", ".."}
            return str((folder / reference).absolute()) if relative else reference

        inputs = tuple(
            replace(i, source={**i.source, "adapter": absolute(i.adapter)}) for i in self.inputs
        )
        output = self.rest.get("output")
        if not isinstance(output, Mapping) or "folder" not in output:
            return replace(self, inputs=inputs)
        target = str((folder / str(output["folder"])).absolute())
        return replace(self, inputs=inputs).with_rest(output={**output, "folder": target})

    # Changes

    def with_adapters(self, names: Iterable[str]) -> Draft:
        """The adapters as inputs: new ones come last, those no longer named leave."""
        wanted = list(names)
        kept = tuple(i for i in self.inputs if i.adapter in wanted)
        here = {i.adapter for i in kept}
        new = tuple(Input({"adapter": name}) for name in wanted if name not in here)
        return replace(self, inputs=kept + new)

    def with_input(self, index: int, changed: Input | None) -> Draft:
        """One input changed, or taken out."""
        new = (changed,) if changed is not None else ()
        return replace(self, inputs=self.inputs[:index] + new + self.inputs[index + 1 :])

    def equalised(self) -> Draft:
        """Every input that counts with the weight 1/n; the muted keep theirs."""
        count = sum(not i.muted for i in self.inputs) or 1
        inputs = tuple(i if i.muted else i.weighted(1 / count) for i in self.inputs)
        return replace(self, inputs=inputs)

    def with_method(self, name: str, takes: Collection[str] = ()) -> Draft:
        """Another method; of the parameters, those that it ``takes`` too carry over."""
        kept = {k: v for k, v in self.parameters.items() if k in takes}
        return self.with_rest(method=name, parameters=kept or None)

    def with_parameter(self, name: str, value: object) -> Draft:
        """One parameter changed; None leaves it to the method."""
        parameters = {k: v for k, v in self.parameters.items() if k != name}
        if value is not None:
            parameters[name] = value
        return self.with_rest(parameters=parameters or None)

    def with_rest(self, **changes: object) -> Draft:
        """Other keys changed; None takes one out."""
        rest = {**self.rest, **changes}
        return replace(self, rest={k: v for k, v in rest.items() if v is not None})

    def with_name(self, name: str) -> Draft:
        """Another name for the result."""
        output = {**dict(self.rest.get("output", {})), "name": name or None}
        return self.with_rest(output={k: v for k, v in output.items() if v is not None} or None)


def from_body(body: Mapping[str, Any], muted: Iterable[Mapping[str, Any]] = ()) -> Draft:
    """A draft from a recipe as plain data, and inputs that it leaves out.

    Raises:
        InvalidRecipeError: It has not the form of a recipe.
    """
    sources = body.get("sources") or []
    if not isinstance(sources, list) or not all(
        isinstance(s, Mapping) and isinstance(s.get("adapter"), str) for s in sources
    ):
        raise InvalidRecipeError(
            "recipe, key 'sources': not a list of maps with 'adapter'",
            hint="write one '- adapter: NAME' a line",
        )
    if sources:
        from lorahub.recipe import make_recipe  # the first screen does not need pydantic

        make_recipe(dict(body))
    inputs = [Input(dict(s)) for s in sources] + [Input(dict(s), muted=True) for s in muted]
    return Draft(tuple(inputs), {k: v for k, v in body.items() if k != "sources"})


def from_yaml(text: str, before: Draft) -> Draft:
    """A draft from a recipe's text; inputs muted before stay so unless the text names them.

    Raises:
        InvalidRecipeError: It is not YAML, or no recipe.
    """
    import yaml

    try:
        body = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRecipeError(
            f"recipe: is not YAML ({' '.join(str(error).split())})", hint="correct the text"
        ) from error
    if not isinstance(body, dict):
        raise InvalidRecipeError("recipe: is no map with 'method' and 'sources'")
    draft = from_body(body)
    named = {i.adapter for i in draft.inputs}
    muted = tuple(i for i in before.inputs if i.muted and i.adapter not in named)
    return replace(draft, inputs=draft.inputs + muted)


def _scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Edits:
    """The drafts so far: the present one, those before it and those that were undone."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.past: list[Draft] = []
        self.future: list[Draft] = []
        self._typing = False

    def change(self, draft: Draft, *, typing: bool = False) -> bool:
        """Take a new draft as the present one; False if it is the same.

        What is typed in one go is undone in one go.
        """
        if draft == self.draft:
            return False
        if not (typing and self._typing):
            self.past.append(self.draft)
        self._typing = typing
        self.future.clear()
        self.draft = draft
        return True

    def undo(self) -> None:
        """Go back by one, if there is one."""
        if self.past:
            self.future.append(self.draft)
            self.draft = self.past.pop()
            self._typing = False

    def redo(self) -> None:
        """Go forward by one, if there is one."""
        if self.future:
            self.past.append(self.draft)
            self.draft = self.future.pop()
            self._typing = False
