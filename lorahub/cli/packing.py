"""Verbs on packs: pack, unpack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink
from lorahub.errors import UsageError

if TYPE_CHECKING:
    from lorahub.packing import PackInfo


def pack(
    references: Annotated[
        list[str], typer.Argument(metavar="REF...", help="Adapters; with --info, one pack file.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            parser=sink.place,
            help="Pack file to write.",
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Times smaller than in bfloat16.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--bytes", help="Size the file may have: 40MB, 512KiB, 9000.")
    ] = None,
    error: Annotated[
        float | None, typer.Option("--error", help="Largest relative error, 0..1.")
    ] = None,
    protect: Annotated[
        bool, typer.Option("--protect", help="Spread the error over modules of unequal norm.")
    ] = False,
    info: Annotated[bool, typer.Option("--info", help="Show a pack instead.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: sink.Json = False,
) -> None:
    """Pack adapters into one small file; without a target, nothing is lost."""
    from lorahub.filters import parse_size
    from lorahub.workspace import Workspace

    with (
        sink.errors("pack", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        if info:
            if len(references) != 1 or output is not None:
                raise UsageError("--info goes with one pack file and no -o")
            found = workspace.pack_info(Path(references[0]))
        else:
            if output is None:
                raise UsageError("the pack has no output", hint="give -o FILE")
            found = workspace.pack(
                references,
                output,
                ratio=ratio,
                bytes_budget=parse_size("bytes", size),
                error=error,
                protect=protect,
                force=force,
                listener=listener,
            )
    if as_json:
        body: dict[str, Any] = {**sink.plain(found), "ratio": found.ratio}
        if info:
            sink.print_json(body)
        else:
            sink.print_act("pack", body)
        return
    _print(found)


def _print(found: PackInfo) -> None:
    sink.print_table(
        ("member", "codec", "modules", "rank", "size", "error", "worst module", "best other"),
        (
            (
                m.name,
                f"as {m.same_as}" if m.same_as else m.codec,
                m.modules,
                m.rank,
                sink.size(m.bytes),
                f"{m.error:.4f}",
                f"{m.worst_module} {m.worst_error:.3f}" if m.worst_module else None,
                min(
                    (f"{c.error:.4f} {c.codec}" for c in m.table if c.codec != m.codec),
                    default=None,
                ),
            )
            for m in found.members
        ),
    )
    sink.note(f"{found.path}: {sink.size(found.bytes)}, {found.ratio:.2f} times under bfloat16")


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pack.")],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A member; all where it is left out.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the member, or of all."),
    ] = None,
    as_json: sink.Json = False,
) -> None:
    """Write the members of a pack as folders that PEFT reads."""
    from lorahub.workspace import Workspace

    with sink.errors("unpack", as_json=as_json), Workspace.open() as workspace:
        written = workspace.unpack(file, name, output)
        if as_json:
            sink.print_act("unpack", written)
            return
        for member in written:
            sink.print_text(f"{member.name}\t{member.folder}")
