"""One adapter made smaller. Each verb is a merge of one source, with its record and lineage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import UsageError
from lorahub.events import Listener, ignore
from lorahub.merging import Merged
from lorahub.workspace.merging import Merging

if TYPE_CHECKING:
    from lorahub.recipe import Recipe


class Resizing(Merging):
    """Smaller ranks, and fewer of them."""

    def resize(
        self,
        reference: str,
        *,
        rank: int | None = None,
        energy: float | None = None,
        budget: str | float | None = None,
        dtype: str | None = None,
        base: str | None = None,
        name: str | None = None,
        folder: Path | None = None,
        force: bool = False,
        listener: Listener = ignore,
    ) -> Merged:
        """The best approximation of one adapter at a smaller size: method ``svd`` of one source.

        Args:
            reference: The adapter.
            rank: Largest rank of a module, or None.
            energy: Share (0..1] of each module's squared singular values to keep, or None.
            budget: Size of the whole, as a recipe says it, distributed by each module's own
                energy; or None. Every module keeps a rank.
            dtype: F32, F16 or BF16; None is the adapter's own.
            base: Hub id of the base model, where the adapter names none.
            name: Catalog name of the result.
            folder: Folder of the result.
            force: Replace an output of the same name or folder.
            listener: Receives progress.

        Raises:
            UsageError: No size is given, or no output.
            LorahubError: As `merge`.
        """
        recipe = resize_recipe(
            reference,
            rank=rank,
            energy=energy,
            budget=budget,
            dtype=dtype,
            base=base,
            name=name,
            folder=folder,
        )
        return self.merge(recipe, force=force, listener=listener)

    def prune(
        self,
        reference: str,
        *,
        budget: str | float,
        dtype: str | None = None,
        base: str | None = None,
        name: str | None = None,
        folder: Path | None = None,
        force: bool = False,
        listener: Listener = ignore,
    ) -> Merged:
        """One adapter without its weakest ranks: ``svd`` of one source, allocation ``prune``.

        The ranks of all modules compete by energy per parameter, so that the total error is the
        least for the size, and a module that loses all of them is left out.

        Args:
            reference: The adapter.
            budget: Size of the result, as a recipe says it (``30%`` less, ``40MB``).
            dtype: As for `resize`, as are the others.
            base: Hub id of the base model, where the adapter names none.
            name: Catalog name of the result.
            folder: Folder of the result.
            force: Replace an output of the same name or folder.
            listener: Receives progress.

        Raises:
            LorahubError: As `merge`.
        """
        recipe = prune_recipe(
            reference, budget=budget, dtype=dtype, base=base, name=name, folder=folder
        )
        return self.merge(recipe, force=force, listener=listener)


def resize_recipe(
    reference: str,
    *,
    rank: int | None,
    energy: float | None,
    budget: str | float | None,
    dtype: str | None,
    base: str | None,
    name: str | None,
    folder: Path | None,
) -> Recipe:
    """What `Resizing.resize` merges; a plan of it says what would be written.

    Raises:
        UsageError: No size is given.
        InvalidRecipeError: A value is out of bounds.
    """
    if rank is None and energy is None and budget is None:
        raise UsageError(
            "a resize needs a size", hint="give --rank K, --energy 0.9 or --budget 30%"
        )
    parameters = _given(rank=rank, energy=energy)
    body: dict[str, object] = {"budget": budget, "parameters": parameters}
    return _one_source(reference, body, dtype, base, name, folder)


def prune_recipe(
    reference: str,
    *,
    budget: str | float,
    dtype: str | None,
    base: str | None,
    name: str | None,
    folder: Path | None,
) -> Recipe:
    """What `Resizing.prune` merges; a plan of it says what would be written.

    Raises:
        InvalidRecipeError: A value is out of bounds.
    """
    body: dict[str, object] = {"budget": budget, "allocate": "prune"}
    return _one_source(reference, body, dtype, base, name, folder)


def _one_source(
    reference: str,
    body: dict[str, object],
    dtype: str | None,
    base: str | None,
    name: str | None,
    folder: Path | None,
) -> Recipe:
    from lorahub.recipe import make_recipe

    output = _given(name=name, folder=folder and folder.expanduser().absolute())
    body = {"method": "svd", "sources": [{"adapter": reference}], "output": output} | body
    return make_recipe(_given(**body, dtype=dtype, base=base), "command line")


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}
