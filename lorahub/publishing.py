"""Which files of an adapter are handed on, and copying them out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lorahub import extraction, formats, storage
from lorahub.adapter import Adapter
from lorahub.errors import (
    LicenseError,
    LorahubError,
    UnsupportedAdapterError,
    UsageError,
)
from lorahub.integrity import file_sha256
from lorahub.licenses import combine, forbidding
from lorahub.output import new_folder
from lorahub.record import FILE_NAME, PACK_NAME, RECIPE_NAME, Record

FORMATS = ("peft", "equal-ranks")
"""What an export can be: the files as they are, or with one rank and scaling 1 throughout."""

_CARD = "README.md"

Figures = Mapping[str, Mapping[str, float]]
"""What was found of an adapter, by suite and by name of the figure."""


def publishable(adapter: Adapter) -> tuple[Path, ...]:
    """The files of an adapter worth handing on: weights, config, card, record, recipe, pack."""
    names = (
        adapter.info.weights_file,
        formats.peft.CONFIG_NAME,
        _CARD,
        FILE_NAME,
        extraction.FILE_NAME,
        RECIPE_NAME,
        PACK_NAME,
    )
    return tuple(p for n in names if (p := adapter.origin.folder / n).is_file())


@contextmanager
def prepared(adapter: Adapter, repo_id: str, figures: Figures) -> Iterator[tuple[Path, ...]]:
    """The files to publish at ``repo_id``, with a card that says how to load it from there.

    A card that somebody wrote or changed stays as it is.

    Args:
        adapter: What is published.
        repo_id: Where.
        figures: What suites found of it, for its card.
    """
    files = publishable(adapter)
    text = _card(adapter, repo_id, figures)
    if text is None:
        yield files
        return
    with TemporaryDirectory(prefix="lorahub-") as folder:
        card = Path(folder) / _CARD
        card.write_text(text, encoding="utf-8")
        yield (*(f for f in files if f.name != _CARD), card)


def _card(adapter: Adapter, repo_id: str, figures: Figures) -> str | None:
    """The card made for a repository, or None where the one that is there has to stay."""
    from lorahub.card import render_plain_card

    path, info = adapter.origin.folder / _CARD, adapter.info
    try:
        render = _renderer(adapter, figures)
        written = path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError, LorahubError):
        return None
    if render is not None:
        return render(repo_id) if written in {None, render(None)} else None
    if written is None and info.format == "peft" and info.modules:
        return render_plain_card(info, name=adapter.name, repo_id=repo_id, figures=figures)
    return None


def _renderer(adapter: Adapter, figures: Figures) -> Callable[[str | None], str] | None:
    """What makes the card of an adapter that lorahub made, for where it is published."""
    from lorahub.card import render_card, render_extraction
    from lorahub.methods.registry import get

    folder, info, name = adapter.origin.folder, adapter.info, adapter.name
    if record := Record.read(folder):
        recipe = (folder / RECIPE_NAME).read_text(encoding="utf-8")
        paper = get(record.method).paper
        return lambda place: render_card(
            record,
            info,
            name=name,
            paper=paper,
            recipe=recipe,
            repo_id=place,
            figures=figures if place else {},
        )
    if extracted := extraction.Extraction.read(folder):
        return lambda place: render_extraction(
            extracted, info, name=name, repo_id=place, figures=figures if place else {}
        )
    return None


def check_license(adapter: Adapter) -> None:
    """Refuse a merged adapter whose card states a licence that its parents do not allow.

    Raises:
        LicenseError: Naming the parents, and what each of them asks.
    """
    record = Record.read(adapter.origin.folder)
    stated = formats.read_card(adapter.origin.folder).license
    if record is None or stated is None:
        return
    parents = [(p.reference, p.license) for p in record.parents]
    reasons = forbidding(stated, parents)
    if reasons:
        fitting = combine(parents).license
        state = f"state {fitting}" if fitting else "state none"
        raise LicenseError(
            f"the card of '{adapter.name}' states {stated}, which its parents do not allow: "
            f"{'; '.join(reasons)}",
            hint=f"{state} in {adapter.origin.folder / 'README.md'}, or merge without them; "
            "lorahub reads licences coarsely and gives no legal advice",
        )


def export(
    adapter: Adapter, place: Path | str, locks: Path, *, format_name: str, replace: bool
) -> None:
    """Write an adapter into a new folder; see `lorahub.workspace.Workspace.export`."""
    if format_name not in FORMATS:
        raise UsageError(
            f"there is no export format '{format_name}'", hint=f"known: {', '.join(FORMATS)}"
        )
    if adapter.info.format != "peft":
        raise UnsupportedAdapterError(
            f"'{adapter.name}' is {adapter.info.format}, not PEFT",
            hint="only PEFT LoRA adapters can be exported",
        )
    if isinstance(place, str):
        with _files(adapter, format_name) as files:
            storage.put_files(files, place, replace=replace)
    elif format_name == "equal-ranks":
        with new_folder(place, locks, replace=replace) as partial:
            _equal_ranks(adapter, partial)
    # The same export again is done already: its process may have been stopped right after it.
    elif not _holds_just(place, publishable(adapter)):
        with new_folder(place, locks, replace=replace) as partial:
            for file in publishable(adapter):
                shutil.copyfile(file, partial / file.name)


def holds_result(place: Path | str) -> bool:
    """Whether a folder or a storage URL holds what a merge made.

    Raises:
        LorahubError: The store does not say.
    """
    if isinstance(place, str):
        manifest = storage.stored(place)
        return manifest is not None and FILE_NAME in manifest.files
    return (place / FILE_NAME).is_file()


@contextmanager
def _files(adapter: Adapter, format_name: str) -> Iterator[Sequence[Path]]:
    """The files of an export."""
    if format_name == "peft":
        yield publishable(adapter)
        return
    with TemporaryDirectory(prefix="lorahub-") as folder:
        _equal_ranks(adapter, Path(folder))
        yield sorted(Path(folder).iterdir())


def _equal_ranks(adapter: Adapter, folder: Path) -> None:
    from lorahub.formats.equal_ranks import write_equal_ranks

    write_equal_ranks(adapter.info, adapter.weights_path, folder)


def _holds_just(folder: Path, files: Sequence[Path]) -> bool:
    """Whether ``folder`` is there with copies of ``files`` and nothing else."""
    if not folder.is_dir() or {p.name for p in folder.iterdir()} != {f.name for f in files}:
        return False
    return all(file_sha256(folder / f.name) == file_sha256(f) for f in files)
