"""The verb that compresses whole models: compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub.cli import sink


def compress(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_FOLDER", help="A transformers model in safetensors.")
    ],
    reduction: Annotated[
        float, typer.Option("--reduction", help="Share of the weights' parameters to save, 0..0.3.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FOLDER", parser=sink.place, help="Folder to create."
        ),
    ],
    adapter: Annotated[
        str | None,
        typer.Option("--with", metavar="REF", help="Adapter to add to the weights first."),
    ] = None,
    keep_adapter: Annotated[
        bool,
        typer.Option(
            "--keep-adapter",
            help="Write the adapter beside the weights instead, making up for what they lost.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Allow a reduction over 0.3.")] = False,
    as_json: sink.Json = False,
) -> None:
    """Compress a model's linear weights into low-rank factors (WeLore), without calibration."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("compress", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        record = workspace.compress(
            model,
            output,
            reduction=reduction,
            adapter=adapter,
            keep_adapter=keep_adapter,
            force=force,
            listener=listener,
        )
    if as_json:
        sink.print_act("compress", record)
        return
    sink.print_table(
        ("weight", "shape", "rank", "of", "stored as", "error"),
        (
            (w.name, "x".join(map(str, w.shape)), w.rank, w.full_rank,
             "factors (LRC)" if w.lrc else "dense (N-LRC)", f"{w.error:.4f}")
            for w in record.weights
        ),
    )  # fmt: skip
    factored = sum(w.lrc for w in record.weights)
    beside = (
        "" if record.adapter_error is None else f", {record.adapter_error:.4f} with the adapter"
    )
    sink.note(
        f"{record.reduction:.1%} of the parameters of {len(record.weights)} weights saved, "
        f"{factored} of them as factors; error {record.error:.4f}{beside}; "
        f"{sink.size(record.bytes_before)} became {sink.size(record.bytes_after)} in {output}"
    )
