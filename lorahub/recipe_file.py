"""Recipes as files: read with their lines, made absolute, and pinned by the lock beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorahub.errors import InvalidRecipeError, UsageError, unreadable
from lorahub.output import check_name
from lorahub.recipe import Recipe, SourceSpec, check_method, make_recipe
from lorahub.wording import first_wrong

MAX_BYTES = 1 << 20

LOCK_SUFFIX = ".lock.yaml"

BESIDE = frozenset({"matrix", "exclude", "search"})
"""Keys of the file that make more than one recipe of it."""

Key = tuple[int | str, ...]

_SHAPES: Mapping[type, str] = {list: "a list", str: "text"}


class Pin(BaseModel):
    """What a reference of a recipe means: a reference that stays, and the content's sha256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Lock(BaseModel):
    """The file beside a recipe that pins its sources, by reference as the recipe has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    sources: dict[str, Pin]

    def to_yaml(self) -> str:
        """The text of the file."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


class RecipeFile:
    """A YAML file with a map in it, which knows the line of every key.

    Attributes:
        path: The file.
        body: The map as plain data; nothing of it is checked yet.
    """

    def __init__(
        self, path: Path, *, kind: str = "recipe", hint: str = "see `lorahub recipes new`"
    ) -> None:
        """Read ``path``.

        Args:
            path: The file.
            kind: What it should be, for errors.
            hint: Where to read how one looks, for errors.

        Raises:
            NotFoundError: There is no such file.
            InvalidRecipeError: It cannot be read, is not YAML, is no map, or has a key twice.
        """
        self.path = path
        self._lines: dict[Key, int] = {}
        body = self._parsed(_text(path, hint))
        if not isinstance(body, dict):
            found = "is empty" if body is None else f"is {_SHAPES.get(type(body), 'one value')}"
            raise InvalidRecipeError(
                f"{path}: {found}, but a {kind} is a map from keys to values", hint=hint
            )
        self.body: dict[str, Any] = body

    def line(self, key: Key) -> int | None:
        """The line of a key, or of the nearest one around it; None where there is none."""
        for end in range(len(key), 0, -1):
            if key[:end] in self._lines:
                return self._lines[key[:end]]
        return None

    def recipe(self, body: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe in the file, or ``body`` as one; its folders are made absolute.

        Raises:
            InvalidRecipeError: It is none.
        """
        given = self.body if body is None else body
        one = {key: value for key, value in given.items() if key not in BESIDE}
        recipe = make_recipe(one, str(self.path), self.line)
        return _relative_to(recipe, self.path.absolute().parent)

    def checked(self, body: Mapping[str, Any] | None = None) -> Recipe:
        """As `recipe`, its method, parameters and name checked too.

        Raises:
            InvalidRecipeError: It is none, there is no such method or parameter, or its result
                cannot have that name.
        """
        recipe = self.recipe(body)
        with self.located():
            check_method(recipe)
        try:
            if recipe.output.name is not None:
                check_name(recipe.output.name)
        except UsageError as error:
            raise self.wrong(("output", "name"), error.message, error.hint) from error
        return recipe

    @contextmanager
    def located(self) -> Iterator[None]:
        """Errors of the block that name a key of the recipe also name the file and the line."""
        try:
            yield
        except InvalidRecipeError as error:
            raise self.wrong(error.key, error.message, error.hint) from error

    def wrong(self, key: Key, what: str, hint: str | None) -> InvalidRecipeError:
        """The error for a key of the file, at the line on which it stands; () is the whole."""
        line = self.line(key)
        place = str(self.path) if line is None else f"{self.path}, line {line}"
        named = f", key '{dotted(key)}'" if key else ""
        return InvalidRecipeError(f"{place}{named}: {what}", hint=hint, key=key)

    def _parsed(self, raw: bytes) -> object:
        loader: yaml.SafeLoader | None = None
        try:
            loader = yaml.SafeLoader(raw)
            node = loader.get_single_node()
            if node is None:
                return None
            for key, found in _keys(node, (), set()):
                line = found.start_mark.line + 1
                if key in self._lines:
                    raise InvalidRecipeError(
                        f"{self.path}, line {line}, key '{dotted(key)}': is there twice",
                        hint=f"it stands on line {self._lines[key]} already",
                    )
                self._lines[key] = line
            return loader.construct_document(node)
        # Dates that are none, and maps as keys, are ValueError and TypeError of the constructor.
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise InvalidRecipeError(
                _not_yaml(self.path, error), hint="correct the file"
            ) from error
        finally:
            if loader is not None:
                loader.dispose()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; a lock beside it pins the sources.

    Raises:
        NotFoundError: There is no such file.
        InvalidRecipeError: The file cannot be read, is not YAML, is no recipe, names no method
            or parameter there is, or is not what its lock was made for.
    """
    file = RecipeFile(path)
    if "matrix" in file.body:
        raise file.wrong(("matrix",), "is for many merges, not one", "run `lorahub batch`")
    return locked(file.checked(), read_lock(path), path)


def lock_path(path: Path) -> Path:
    """Where the lock of a recipe file is: ``skills.lock.yaml`` beside ``skills.yaml``."""
    return path.with_name(path.stem + LOCK_SUFFIX)


def read_lock(path: Path) -> Lock | None:
    """The lock of the recipe file ``path``, or None where there is none.

    Raises:
        InvalidRecipeError: It is there but no lock.
    """
    where = lock_path(path)
    if not where.exists():
        return None
    again = "make it again: `lorahub recipes lock`"
    file = RecipeFile(where, kind="lock", hint=again)
    try:
        lock = Lock.model_validate(file.body)
    except ValidationError as error:
        first = first_wrong(error)
        raise file.wrong(first["loc"], first["msg"], again) from error
    folder = path.absolute().parent
    return Lock(
        sources={
            absolute(name, folder): Pin(
                reference=absolute(pin.reference, folder), sha256=pin.sha256
            )
            for name, pin in lock.sources.items()
        }
    )


def locked(recipe: Recipe, lock: Lock | None, path: Path) -> Recipe:
    """The recipe of ``path`` with its sources as ``lock`` pins them.

    Raises:
        InvalidRecipeError: A source that the lock does not have, or that pins another content.
    """
    if lock is None:
        return recipe

    def pinned(source: SourceSpec) -> SourceSpec:
        pin = lock.sources.get(source.adapter)
        if pin is None or source.sha256 not in {None, pin.sha256}:
            what = "is not in" if pin is None else "has another sha256 than in"
            raise InvalidRecipeError(
                f"{path}: source '{source.adapter}' {what} {lock_path(path).name}",
                hint=f"make the lock again: `lorahub recipes lock {path}`",
            )
        return source.model_copy(update={"adapter": pin.reference, "sha256": pin.sha256})

    return recipe.model_copy(update={"sources": tuple(map(pinned, recipe.sources))})


def absolute(reference: str, folder: Path) -> str:
    """A reference with its explicitly relative folder made absolute."""
    if reference.startswith(("./", "../")) or reference in {".", ".."}:
        return str(folder / reference)
    return reference


def relative(reference: str, folder: Path) -> str:
    """The inverse of `absolute`; what is not in ``folder`` stays as it is."""
    inside = f"{folder}/"
    return f"./{reference[len(inside) :]}" if reference.startswith(inside) else reference


def _text(path: Path, hint: str) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        hint = f"check the path; {hint}"
        raise unreadable(path, error, InvalidRecipeError, hint=hint) from error
    if len(raw) > MAX_BYTES:
        raise InvalidRecipeError(f"{path}: {len(raw)} bytes are too many for such a file")
    return raw


def _not_yaml(path: Path, error: Exception) -> str:
    """Where and why a file is not YAML."""
    if isinstance(error, yaml.reader.ReaderError):
        why = f"byte {error.position}: {error.reason}"
        return f"{path}: is not YAML in UTF-8 or, with its mark, UTF-16 ({why})"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
        return f"{place}: is not YAML ({', '.join(filter(None, (error.context, error.problem)))})"
    return f"{path}: is not YAML ({' '.join(str(error).split())})"


def _keys(node: yaml.Node, at: Key, seen: set[int]) -> Iterator[tuple[Key, yaml.Node]]:
    """Every key below a node with the node that names it; what aliases repeat only once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                yield (*at, name.value), name
                yield from _keys(value, (*at, name.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*at, i), value
            yield from _keys(value, (*at, i), seen)


def dotted(key: Key) -> str:
    """A key as errors name it."""
    return ".".join(map(str, key))


def _relative_to(recipe: Recipe, folder: Path) -> Recipe:
    sources = tuple(
        s.model_copy(update={"adapter": absolute(s.adapter, folder)}) for s in recipe.sources
    )
    output = recipe.output
    update: dict[str, Any] = {
        "export": tuple(
            e
            if isinstance(e.folder, str)
            else e.model_copy(update={"folder": folder / e.folder.expanduser()})
            for e in output.export
        )
    }
    if output.folder is not None:
        update["folder"] = folder / output.folder.expanduser()
    return recipe.model_copy(
        update={"sources": sources, "output": output.model_copy(update=update)}
    )
