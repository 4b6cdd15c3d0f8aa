"""Verbs on what is elsewhere: discover, update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink
from lorahub.errors import ExitCode

if TYPE_CHECKING:
    from lorahub.discovering import Discovered
    from lorahub.hub import Query
    from lorahub.updating import Update

Base = Annotated[str | None, typer.Option("--base", help="Hub id of the base model.")]
Task = Annotated[str | None, typer.Option("--task", help="Task, as the Hub names it.")]
Author = Annotated[str | None, typer.Option("--author", help="User or organisation.")]
License = Annotated[str | None, typer.Option("--license", help="Licence, as the Hub names it.")]
Search = Annotated[str | None, typer.Option("--search", help="Part of the repository's name.")]
Sorted = Annotated[str, typer.Option("--sort", help="downloads, likes or recent.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Repositories at most.")]


def query(
    base: str | None,
    task: str | None,
    author: str | None,
    license_name: str | None,
    words: str | None,
    sort: str,
    limit: int,
) -> Query:
    """The options of a search as one value."""
    from lorahub.hub import Query

    return Query(base, task, author, license_name, words, sort, limit)  # type: ignore[arg-type]  # find() checks sort


def discover(
    base: Base = None,
    task: Task = None,
    author: Author = None,
    license_name: License = None,
    words: Search = None,
    sort: Sorted = "downloads",
    limit: Limit = 20,
    pull: Annotated[bool, typer.Option("--pull", help="Pull what is shown.")] = False,
    remote: sink.Remote = None,
    endpoint: sink.Endpoint = None,
    token_env: sink.TokenEnv = None,
    as_json: sink.Json = False,
) -> None:
    """Look for adapters on the Hub; rank, targets and size are read without downloading."""
    from lorahub.cli import pulling
    from lorahub.workspace import Workspace

    with (
        sink.errors("discover", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        where: dict[str, Any] = {"remote": remote, "endpoint": endpoint, "token_env": token_env}
        asked = query(base, task, author, license_name, words, sort, limit)
        found = workspace.discover(asked, listener=listener, **where)
        if not (pull and as_json):
            _print_found(found, as_json=as_json)
        if not found:
            sink.note("nothing found")
        elif pull:
            references = [f"hf://{d.listed.repo_id}" for d in found]
            pulling.report(workspace.pull(references, listener=listener, **where), as_json=as_json)


def _print_found(found: tuple[Discovered, ...], *, as_json: bool) -> None:
    if as_json:
        sink.print_json([_plain(d) for d in found])
        return
    headers = ("repository", "base", "rank", "targets", "dtype", "size", "licence", "task",
               "downloads", "likes", "updated", "note")  # fmt: skip
    sink.print_table(headers, (_row(d) for d in found))


def _plain(found: Discovered) -> dict[str, Any]:
    body: dict[str, Any] = sink.plain(found.listed)
    body["outline"] = sink.plain(found.outline)
    body["error"] = found.error and sink.plain_error(found.error)
    body["name"] = found.name
    return body


def _row(found: Discovered) -> tuple[object, ...]:
    listed, outline = found.listed, found.outline
    structure: tuple[object, ...] = (None,) * 4
    if outline is not None:
        low, high = outline.rank_min, outline.rank_max
        rank = (high if low == high else f"{low}..{high}") if high else None
        size = sink.size(outline.weights_bytes)
        structure = (rank, ",".join(outline.targets), outline.dtype, size)
    return (
        *(listed.repo_id, listed.base_model, *structure, listed.license, listed.task),
        *(listed.downloads, listed.likes, listed.modified[:10], _note(found)),
    )


def _note(found: Discovered) -> str | None:
    if found.name is not None:
        return f"pulled as {found.name}"
    if found.listed.weights_file is None:
        return "pickle only"
    if found.outline is not None and found.outline.format != "peft":
        return f"{found.outline.format}: not mergeable"
    if found.listed.gated:
        return "gated"
    return found.error.message if found.error else None


def update(
    references: Annotated[
        list[str] | None, typer.Argument(metavar="[REF...]", help="Pulled adapters; or all.")
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Pull what changed.")] = False,
    token_env: sink.TokenEnv = None,
    as_json: sink.Json = False,
) -> None:
    """Say which pulled adapters changed on their Hub since, and in which files."""
    from lorahub.cli import pulling
    from lorahub.workspace import Workspace

    with (
        sink.errors("update", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        updates = workspace.update(references or (), token_env=token_env, listener=listener)
        if not (pull and as_json):
            _print_updates(updates, as_json=as_json)
        if pull:
            pulled = workspace.take(updates, token_env=token_env, listener=listener)
            pulling.report(pulled, as_json=as_json)
        failed = [u for u in updates if u.error is not None]
        if len(updates) == 1 and failed and failed[0].error is not None:
            raise failed[0].error
        for u in failed:
            assert u.error is not None
            sink.failure(u.adapter.name, u.error)
        if failed:
            raise typer.Exit(ExitCode.PARTIAL)
        if not updates:
            sink.note("nothing here came from a Hub and follows it")


def _print_updates(updates: tuple[Update, ...], *, as_json: bool) -> None:
    if as_json:
        sink.print_json([_plain_update(u) for u in updates])
        return
    rows = []
    for u in updates:
        there = u.revision[:8] if u.revision else None
        changes = ", ".join(
            f"{c.name} {_size(c.size_here)} -> {_size(c.size_there)}" for c in u.changes
        )
        moved = f"now {u.moved_to}" if u.moved_to else None
        where = f"{u.adapter.repo_id}@{u.adapter.requested_revision or 'main'}"
        rows.append(
            (u.adapter.name, where, u.state, u.adapter.revision[:8], there, changes or moved)
        )
    sink.print_table(("name", "repository", "state", "here", "there", "changes"), rows)


def _plain_update(update: Update) -> dict[str, Any]:
    body: dict[str, Any] = sink.plain(update)
    body["error"] = update.error and sink.plain_error(update.error)
    return body


def _size(count: int | None) -> str:
    return "none" if count is None else sink.size(count)
