"""Merges that other tools' files describe, as recipes: where they mean the same, and only there.

mergekit merges whole models; of models that are one base with an adapter each (``BASE+ADAPTER``),
a linear combination is the base with the same combination of the adapters' deltas. PEFT's
``add_weighted_adapter`` merges adapters itself, and each of its kinds is a method here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorahub.errors import InvalidRecipeError
from lorahub.recipe import Recipe, make_recipe
from lorahub.recipe_file import RecipeFile

_PEFT = {
    "svd": "svd",
    "cat": "cat",
    "linear": "linear_factors",
    "ties": "ties_factors",
    "ties_svd": "ties",
    "dare_linear": "dare_linear_factors",
    "dare_linear_svd": "dare",
    "dare_ties": "dare_ties_factors",
    "dare_ties_svd": "dare_ties",
    "magnitude_prune": "magnitude_prune_factors",
    "magnitude_prune_svd": "magnitude_prune",
}
"""Our method for each ``combination_type``."""

_PEFT_KEYS = frozenset(
    {
        "adapters",
        "weights",
        "adapter_name",
        "combination_type",
        "svd_rank",
        "svd_clamp",
        "svd_full_matrices",
        "svd_driver",
        "density",
        "majority_sign_method",
        "paths",
    }
)


_EITHER = "give a mergekit file, or the arguments of add_weighted_adapter"


def import_recipe(path: Path) -> Recipe:
    """The recipe that means the same as a mergekit file or a file of PEFT's keyword arguments.

    A PEFT file is JSON or YAML with the arguments of ``add_weighted_adapter``, and optionally
    ``paths``, the reference of every adapter by its name.

    Raises:
        InvalidRecipeError: The file is neither, or means something else; the message says what.
    """
    file = RecipeFile(path, kind="mergekit file", hint=_EITHER)
    if "merge_method" in file.body:
        return make_recipe(_mergekit(file), str(path))
    if "adapters" in file.body:
        return make_recipe(_peft(file), str(path))
    raise InvalidRecipeError(
        f"{path}: is neither a mergekit file (it has no 'merge_method') nor a call of PEFT's "
        "add_weighted_adapter (it has no 'adapters')",
        hint=_EITHER,
    )


def _mergekit(file: RecipeFile) -> dict[str, Any]:
    body = file.body
    kind = body["merge_method"]
    if kind not in {"linear", "task_arithmetic"}:
        raise _refused(
            file,
            ("merge_method",),
            f"'{kind}' acts on the elements of whole weights, which adapters alone do not have",
        )
    for key in ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template"):
        if key in body:
            raise _refused(file, (key,), "concerns whole models, not adapters")
    models = body.get("models")
    if not isinstance(models, list) or not models:
        raise _refused(file, ("models",), "has to be a list of BASE+ADAPTER")
    common = _numbers(file, body.get("parameters"), ("parameters",), {"normalize", "lambda"})
    sources: list[dict[str, Any]] = []
    bases: set[object] = set()
    for i, entry in enumerate(models):
        at = ("models", i)
        base, plus, adapter = str(_map(file, entry, at).get("model")).partition("+")
        if not plus:
            if kind == "task_arithmetic" and base == body.get("base_model"):
                continue  # mergekit allows the base among the models, where its delta is zero
            raise _refused(file, at, f"'{base}' is a whole model, not BASE+ADAPTER")
        bases.add(base)
        own = _numbers(file, entry.get("parameters"), (*at, "parameters"), {"weight"})
        weight = own.get("weight", common.get("weight", 1.0))
        sources.append({"adapter": adapter, "weight": float(weight)})
    stated = body.get("base_model")
    if len(bases | ({stated} if stated else set())) != 1:
        raise _refused(file, ("models",), "the models are not all of one base")
    total = sum(s["weight"] for s in sources)
    if kind == "linear" and not common.get("normalize", True) and abs(total - 1) > 1e-9:
        raise _refused(
            file, ("parameters", "normalize"), f"the base itself would be scaled by {total:g}"
        )
    if common.get("normalize", kind == "linear"):
        if abs(total) < 1e-8:
            raise _refused(file, ("models",), "the weights add up to zero and are normalised")
        sources = [s | {"weight": s["weight"] / total} for s in sources]
    # The sum of every rank is the model mergekit would make; a rank can be asked for afterwards.
    recipe = {
        "method": "cat",
        "sources": sources,
        "scale": float(common.get("lambda", 1.0)),
        "base": bases.pop(),
        "output": {"name": file.path.stem},
    }
    dtype = body.get("out_dtype", body.get("dtype"))
    return recipe | ({"dtype": dtype} if dtype else {})


def _peft(file: RecipeFile) -> dict[str, Any]:
    body = file.body
    for key in body:
        if key not in _PEFT_KEYS:
            raise _refused(file, (key,), "is no argument of add_weighted_adapter")
    names, weights = body["adapters"], body.get("weights")
    lists = isinstance(names, list) and isinstance(weights, list) and len(names) == len(weights)
    if not lists:
        raise _refused(file, ("adapters",), "needs a list, and 'weights' one number for each")
    assert isinstance(weights, list)
    kind = body.get("combination_type", "svd")
    if kind not in _PEFT:
        raise _refused(file, ("combination_type",), f"'{kind}' is no kind that PEFT knows")
    if body.get("svd_clamp") is not None:
        raise _refused(file, ("svd_clamp",), "clamped factors are no longer the SVD of the sum")
    paths = _map(file, body.get("paths", {}), ("paths",))
    parameters: dict[str, Any] = {}
    if kind == "svd" or kind.endswith("_svd"):
        if body.get("svd_rank") is None:
            raise _refused(
                file,
                ("combination_type",),
                "without svd_rank PEFT takes the largest rank of the adapters, which the file "
                "does not tell",
            )
        parameters["rank"] = body["svd_rank"]
    if "ties" in kind or "dare" in kind or "magnitude" in kind:
        if body.get("density") is None:
            raise _refused(file, ("combination_type",), f"'{kind}' needs a density")
        parameters["density"] = body["density"]
    if "ties" in kind:
        parameters["majority_sign"] = body.get("majority_sign_method", "total")
    return {
        "method": _PEFT[kind],
        "parameters": parameters,
        "sources": [
            {"adapter": paths.get(name, name), "weight": weight}
            for name, weight in zip(names, weights, strict=True)
        ],
        # Methods here may shrink the sum by default; PEFT never does.
        "scale": 1.0,
        "normalize": False,
        "output": {"name": body.get("adapter_name", file.path.stem)},
    }


def _numbers(
    file: RecipeFile, given: object, at: tuple[int | str, ...], known: set[str]
) -> Mapping[str, float]:
    found = _map(file, given or {}, at)
    for key, value in found.items():
        if key not in known | {"weight"}:
            raise _refused(file, (*at, key), "changes the merge in a way that adapters cannot")
        if not isinstance(value, int | float):
            raise _refused(file, (*at, key), "varies over layers; only one number can be taken")
    return found


def _map(file: RecipeFile, value: object, at: tuple[int | str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refused(file, at, f"has to be a map, not {json.dumps(value, default=str)}")
    return value


def _refused(file: RecipeFile, key: tuple[int | str, ...], why: str) -> InvalidRecipeError:
    return file.wrong(
        key, why, "there is no recipe that means the same; write one with `lorahub recipes new`"
    )
