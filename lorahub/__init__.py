"""lorahub: catalog, merge and publish LoRA adapters in factor space.

The public API, loaded on first use so that importing lorahub costs next to nothing::

    import lorahub

    with lorahub.Workspace.open() as workspace:
        workspace.pull(["owner/law", "owner/medicine"])
        recipe = lorahub.make_recipe(
            {
                "method": "svd",
                "parameters": {"rank": 16},
                "sources": [{"adapter": "owner/law"}, {"adapter": "owner/medicine"}],
                "output": {"name": "both"},
            }
        )
        merged = workspace.merge(recipe)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorahub import executors
    from lorahub.adapter import Adapter, AdapterInfo, Module, Reference
    from lorahub.errors import ExitCode, LorahubError
    from lorahub.hub import Query
    from lorahub.merging import Merged
    from lorahub.pulling import Pulled
    from lorahub.recipe import Recipe, make_recipe
    from lorahub.recipe_file import load_recipe
    from lorahub.record import Record, Verification
    from lorahub.workspace import Workspace

_HOMES = {
    "Adapter": "adapter",
    "AdapterInfo": "adapter",
    "ExitCode": "errors",
    "LorahubError": "errors",
    "Merged": "merging",
    "Module": "adapter",
    "Pulled": "pulling",
    "Query": "hub",
    "Recipe": "recipe",
    "Record": "record",
    "Reference": "adapter",
    "Verification": "record",
    "Workspace": "workspace",
    "load_recipe": "recipe_file",
    "make_recipe": "recipe",
}

_PACKAGES = frozenset({"executors"})

__all__ = [
    "Adapter",
    "AdapterInfo",
    "ExitCode",
    "LorahubError",
    "Merged",
    "Module",
    "Pulled",
    "Query",
    "Recipe",
    "Record",
    "Reference",
    "Verification",
    "Workspace",
    "executors",
    "load_recipe",
    "make_recipe",
]


def _check_not_shadowed() -> None:
    """Raise ImportError when a file of the user's own hides one of lorahub's packages."""
    home = Path(__file__).parent.parent
    for name in ("store", "tui"):
        spec = find_spec(name)
        origin = Path(spec.origin) if spec and spec.origin else None
        if origin is None or origin.resolve() != (home / name / "__init__.py").resolve():
            raise ImportError(
                f"lorahub needs its own package '{name}', but '{origin}' hides it; rename that "
                "file or run from another folder"
            )


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"lorahub.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'lorahub' has no attribute '{name}'")
    return getattr(import_module(f"lorahub.{_HOMES[name]}"), name)


_check_not_shadowed()
