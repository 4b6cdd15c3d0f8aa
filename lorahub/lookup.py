"""Finding the catalogued adapter, the folder or the repository that a reference means."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lorahub.adapter import Adapter, Reference
from lorahub.errors import ConflictError, LorahubError, NotFoundError
from lorahub.integrity import check_unchanged
from lorahub.urls import canonical
from store import Catalog


def get(catalog: Catalog, text: str) -> Adapter:
    """The catalogued adapter a reference means: name, id, folder or repository.

    Raises:
        NotFoundError: Nothing in the catalog goes by it.
        ConflictError: An id prefix that means several.
    """
    reference = Reference.parse(text)
    found = find(catalog, reference)
    if found is not None:
        return found
    if reference.is_path:
        existing_folder(text)
    close = catalog.names_like(text)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    pull = f", or `lorahub pull {text}`" if text.strip() else ""
    raise NotFoundError(f"'{text}' is not in the catalog", hint=f"{hint}see `lorahub ls`{pull}")


def existing_folder(text: str) -> Path:
    """The absolute path of a folder that a reference names.

    Raises:
        NotFoundError: There is none.
    """
    folder = Path(text).expanduser().absolute()
    if folder.is_file():
        raise NotFoundError(
            f"{folder}: is a file, but an adapter is a folder", hint=f"name {folder.parent}"
        )
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder}", hint="check the path; `lorahub ls` lists the catalog"
        )
    return folder


def find(catalog: Catalog, reference: Reference) -> Adapter | None:
    """As `get`, from a parsed reference; None where nothing goes by it."""
    if reference.pack is not None:
        return None
    if reference.is_url:
        return next(iter(catalog.by_url(canonical(reference.text))), None)
    if reference.is_path:
        return catalog.by_folder(Path(reference.text).expanduser().absolute())
    if not reference.is_hub and (named := catalog.by_name(reference.text)):
        return named
    if reference.repo_id is not None and (pulled := _pulled(catalog, reference)):
        return pulled
    if is_folder(reference):
        return catalog.by_folder(Path(reference.text).absolute())
    if len(reference.text) >= 6 and set(reference.text) <= set("0123456789abcdef"):
        found = catalog.by_hash(reference.text)
        if len({a.info.content_hash for a in found}) > 1:
            raise ConflictError(
                f"'{reference.text}' means {', '.join(a.name for a in found)}",
                hint="give more of the id",
            )
        return found[0] if found else None
    return None


def _pulled(catalog: Catalog, reference: Reference) -> Adapter | None:
    """The newest adapter of a repository; of any Hub, unless the reference names one."""
    assert reference.repo_id is not None
    found = catalog.by_repo(reference.repo_id, reference.revision)
    if reference.endpoint is not None:
        found = [a for a in found if a.origin.endpoint == reference.endpoint]
    return next(iter(found), None)


def with_content(catalog: Catalog, content_hash: str, used: Collection[str]) -> Adapter | None:
    """An adapter of that content.

    Of several, one whose files are unchanged, and not among the names ``used`` if there is one.
    """
    found = sorted(catalog.by_hash(content_hash), key=lambda a: a.name in used)
    if len(found) > 1:
        return next((a for a in found if is_unchanged(a)), found[0])
    return next(iter(found), None)


def is_unchanged(adapter: Adapter) -> bool:
    """Whether its files are still those that were catalogued."""
    try:
        check_unchanged(adapter)
    except LorahubError:
        return False
    return True


def is_folder(reference: Reference) -> bool:
    """Whether a text that is no explicit path names an existing folder all the same."""
    if not reference.text or reference.is_hub or reference.is_url:
        return False
    return Path(reference.text).is_dir()
