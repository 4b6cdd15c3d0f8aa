"""A recipe from the words of a command line."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import InvalidRecipeError, UsageError
from lorahub.urls import seems_url

if TYPE_CHECKING:
    from lorahub.recipe import Recipe


def parse_rank(text: str | None) -> int | str | None:
    """The rank of a result: a whole number, or ``auto``.

    Raises:
        UsageError: Neither.
    """
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f"--rank '{text}' is not a whole number", hint="give a number, or auto (lego)"
        ) from error


def parse_parameters(texts: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, values read as YAML scalars.

    Raises:
        UsageError: A text without ``=``.
    """
    import yaml

    parsed: dict[str, Any] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise UsageError(
                f"-p '{text}' is not NAME=VALUE", hint="see `lorahub methods show METHOD`"
            )
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(
                f"-p '{text}': the value cannot be read", hint="write it as in YAML"
            ) from error
    return parsed


def parse_source(text: str) -> dict[str, Any]:
    """``REF[:WEIGHT]`` as a source of a recipe.

    Raises:
        InvalidRecipeError: What follows the last colon is no number.
    """
    reference, mark, weight = text.rpartition(":")
    if not mark or not reference or ("://" in text and "/" in weight):
        return {"adapter": text}
    try:
        return {"adapter": reference, "weight": float(weight)}
    except ValueError as error:
        raise InvalidRecipeError(
            f"'{text}': weight '{weight}' is not a number", hint="write REF:WEIGHT, e.g. law:0.5"
        ) from error


def parse_weights(
    texts: list[str], sources: list[dict[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """``[REF:]PATTERN=WEIGHT`` texts: the weights for all sources, and the sources with theirs.

    What stands before a colon names a source only if it is one of ``sources``, word for word.

    Raises:
        InvalidRecipeError: A text without ``=`` and a number.
    """
    common: dict[str, float] = {}
    own: dict[str, dict[str, float]] = {s["adapter"]: {} for s in sources}
    for text in texts:
        pattern, mark, weight = text.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            mark = ""
        if not mark or not pattern:
            raise InvalidRecipeError(
                f"--weights-for '{text}' is not PATTERN=WEIGHT",
                hint=r"write e.g. --weights-for 'layers\.(0|1)\.=0.2'",
            )
        named = [ref for ref in own if pattern.startswith(f"{ref}:")]
        if named:
            ref = max(named, key=len)
            own[ref][pattern.removeprefix(f"{ref}:")] = value
        else:
            common[pattern] = value
    return common, [s | {"weights": own[s["adapter"]]} for s in sources]


def compose(
    sources: list[str],
    weights_for: list[str],
    options: dict[str, Any],
    parameters: dict[str, Any],
    name: str | None,
    output: Path | None,
) -> tuple[Recipe, AbstractContextManager[None]]:
    """The recipe that the words of ``lorahub merge`` mean: those of a file, or its sources.

    With it comes the context in which errors about it name the line of its file.

    Args:
        sources: ``REF[:WEIGHT]`` texts, or one recipe file.
        weights_for: ``[REF:]PATTERN=WEIGHT`` texts.
        options: Keys of the recipe as options gave them; None where one did not.
        parameters: Of the method, likewise.
        name: Catalog name of the result.
        output: Its folder.

    Raises:
        UsageError: Words that do not go together, no method, or a URL for a folder.
        InvalidRecipeError: They make no recipe.
    """
    from lorahub.recipe import make_recipe
    from lorahub.recipe_file import RecipeFile, load_recipe

    parameters = {k: v for k, v in parameters.items() if v is not None}
    if output is not None and seems_url(str(output)):
        raise UsageError(
            f"-o {output}: results are made in a folder of this machine",
            hint="then `lorahub export NAME URL`, or a recipe with output.export",
        )
    where = {"name": name, "folder": output and output.absolute()}
    where = {k: v for k, v in where.items() if v is not None}
    files = [s for s in sources if re.search(r"\.ya?ml$", s)]
    if files and len(sources) > 1:
        raise UsageError(
            f"{files[0]}: a recipe stands alone",
            hint="write all sources into it, or run `lorahub batch` for several recipes",
        )
    if files:
        recipe = load_recipe(Path(sources[0]))
        # The seed of a command line that names none is 0.
        given = [k for k, v in options.items() if v is not None and (k, v) != ("seed", 0)]
        asked = given + list(parameters)
        asked += ["weights-for"] if weights_for else []
        if asked:
            raise UsageError(
                f"--{asked[0]} cannot be given beside a recipe", hint="write it into the recipe"
            )
        update = {"output": recipe.output.model_copy(update=where)} if where else {}
        return recipe.model_copy(update=update), RecipeFile(Path(sources[0])).located()
    if options["method"] is None:
        raise UsageError("a merge needs --method", hint="see `lorahub methods`; auto chooses one")
    body = {k: v for k, v in options.items() if v is not None}
    common, parsed = parse_weights(weights_for, [parse_source(s) for s in sources])
    body |= {"sources": parsed, "weights": common, "parameters": parameters}
    return make_recipe(body | {"output": where}, "command line"), nullcontext()
