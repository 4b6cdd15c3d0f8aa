"""Merging again what somebody published, and comparing the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lorahub import formats
from lorahub.card import read_remake
from lorahub.errors import IntegrityError, InvalidAdapterError, InvalidRecipeError
from lorahub.events import Listener
from lorahub.integrity import file_sha256
from lorahub.recipe import make_recipe
from lorahub.recipe_file import MAX_BYTES, load_recipe
from lorahub.record import RECIPE_NAME, Record

if TYPE_CHECKING:
    from lorahub.hub import Hub
    from lorahub.recipe import Recipe

_CARD = "README.md"
_WEIGHTS = "adapter_model.safetensors"
_COMPARED = (_WEIGHTS, formats.peft.CONFIG_NAME)


@dataclass(frozen=True, slots=True)
class Published:
    """A recipe and what came of it.

    Attributes:
        where: Where it was read from.
        recipe: The recipe, its sources pinned.
        hashes: sha256 (hex) of the files it made, by name.
        lorahub: Version of lorahub that made them, where that is known.
    """

    where: str
    recipe: Recipe
    hashes: Mapping[str, str]
    lorahub: str | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One file as it was published and as it was made again; sha256 (hex)."""

    name: str
    published: str
    remade: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Outcome of making a published adapter again.

    Attributes:
        where: What was made again.
        files: Its files.
        notes: What may explain a difference.
    """

    where: str
    files: tuple[Compared, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every byte is the same."""
        return all(file.published == file.remade for file in self.files)


def from_hub(hub: Hub, repo_id: str, revision: str | None, listener: Listener) -> Published:
    """What a repository publishes; its weights are not downloaded where the Hub knows their hash.

    Raises:
        InvalidRecipeError: There is no recipe in it.
        InvalidAdapterError: There are no weights in it.
        LorahubError: As `lorahub.hub.Hub.resolve`.
    """
    snapshot = hub.resolve(repo_id, revision)
    where = f"{repo_id}@{snapshot.revision}"
    files = {f.name: f for f in snapshot.files}
    if _WEIGHTS not in files:
        raise InvalidAdapterError(f"{where}: has no {_WEIGHTS}")
    texts = [f for name in (RECIPE_NAME, _CARD, "lorahub.json") if (f := files.get(name))]
    unknown = [f for name in _COMPARED if (f := files.get(name)) and f.sha256 is None]
    folder = hub.fetch_files(snapshot, texts + unknown, listener=listener) if texts else None
    if folder is None:
        raise _no_recipe(where)
    hashes = {
        name: file.sha256 or file_sha256(folder / name)
        for name in _COMPARED
        if (file := files.get(name))
    }
    return _published(where, folder / RECIPE_NAME, folder / _CARD, hashes)


def from_path(path: Path) -> Published:
    """What a folder, a card (``README.md``) or a recipe beside its result says.

    Raises:
        InvalidRecipeError: There is no recipe, or nothing to compare with.
    """
    folder = path if path.is_dir() else path.parent
    hashes = {n: file_sha256(folder / n) for n in _COMPARED if (folder / n).is_file()}
    if path.suffix.lower() == ".md":
        return _published(str(path), None, path, {})
    recipe = folder / RECIPE_NAME if path.is_dir() else path
    return _published(str(path), recipe, folder / _CARD, hashes if _WEIGHTS in hashes else {})


def compare(published: Published, folder: Path, version: str) -> Reproduction:
    """Compare what lies in ``folder``, made by this ``version`` of lorahub, with what should."""
    files = tuple(
        Compared(name, wanted, file_sha256(folder / name) if (folder / name).is_file() else "none")
        for name, wanted in published.hashes.items()
    )
    notes = []
    if published.lorahub not in {None, version}:
        notes.append(f"it was made by lorahub {published.lorahub}, this is {version}")
    return Reproduction(published.where, files, tuple(notes))


def _published(where: str, recipe: Path | None, card: Path, hashes: dict[str, str]) -> Published:
    """From the files there are; the card stands in for a recipe or hashes that are not there."""
    remake = read_remake(_text(card)) if card.is_file() else None
    if recipe is not None and recipe.is_file():
        read = load_recipe(recipe)
    elif remake is not None:
        read = make_recipe(_yaml(remake[0], str(card)), str(card))
    else:
        raise _no_recipe(where)
    hashes = hashes or (remake[1] if remake is not None else {})
    if not hashes:
        raise InvalidRecipeError(
            f"{where}: says how to make an adapter, but not what should come of it",
            hint="give the folder, the repository or the card of the adapter",
        )
    return Published(where, read, hashes, _made_by(card.parent))


def _made_by(folder: Path) -> str | None:
    try:
        record = Record.read(folder)
    except IntegrityError:
        return None
    return record.lorahub if record else None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise InvalidRecipeError(f"{path}: cannot be read ({error.strerror})") from error


def _yaml(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRecipeError(f"{where}: its recipe is not YAML", hint="see the page") from error


def _no_recipe(where: str) -> InvalidRecipeError:
    return InvalidRecipeError(
        f"{where}: has no recipe", hint="only what `lorahub merge` made can be made again"
    )
