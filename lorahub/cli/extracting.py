"""Verbs that make an adapter of models: extract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorahub.cli import sink

if TYPE_CHECKING:
    from lorahub.extraction_plan import ExtractionPlan


def extract(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of the base model.")],
    finetuned: Annotated[
        Path, typer.Argument(metavar="FINETUNED", help="Folder of the fine-tuned model.")
    ],
    rank: Annotated[int | None, typer.Option("--rank", help="Largest rank of a module.")] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", help="Share of each difference's energy to keep, 0..1."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="F32, F16 or BF16; FINETUNED's if none.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base", help="Hub id of the base model, where its folder tells none."),
    ] = None,
    output: sink.Output = None,
    name: sink.Name = None,
    force: sink.Force = False,
    dry_run: sink.DryRun = False,
    events: Annotated[
        Literal["jsonl"] | None, typer.Option("--events", help="Events as JSON lines on stdout.")
    ] = None,
    as_json: sink.Json = False,
) -> None:
    """Extract a LoRA from a base model and a fine-tuned one, one weight in memory at a time."""
    lines = events is not None
    with sink.errors("extract", as_json=as_json, events=lines):
        from lorahub.extraction_plan import Request
        from lorahub.workspace import Workspace

        request = Request(
            base,
            finetuned,
            rank=rank,
            energy=energy,
            dtype=dtype and dtype.upper(),
            base_model=base_model,
            name=name,
            folder=output,
        )
        with sink.progress(events=lines) as listener, Workspace.open() as workspace:
            if dry_run:
                _print_plan(workspace.plan_extraction(request), as_json=as_json or lines)
                return
            extracted = workspace.extract(request, force=force, listener=listener)
        record = extracted.record
        body = {
            "name": extracted.adapter.name,
            "folder": str(extracted.adapter.origin.folder),
            "state": extracted.state,
            "record": sink.plain(record),
        }
        if not sink.answered("extract", body, as_json=as_json, events=lines):
            sink.print_table(
                ("module", "shape", "rank", "change", "error"),
                (
                    (m.name, f"{m.d_out}x{m.d_in}", m.rank, f"{m.change:.2%}", f"{m.error:.4f}")
                    for m in record.modules
                ),
            )
            sink.note(
                f"{extracted.state}: {record.kept:.1%} of the difference's energy kept in "
                f"{len(record.modules)} modules; {len(record.unchanged)} linear weights are "
                f"unchanged, {len(record.left_out)} other tensors differ; {body['folder']}"
            )


def _print_plan(plan: ExtractionPlan, *, as_json: bool) -> None:
    if as_json:
        body = sink.plain(plan) | {"output_bytes": plan.output_bytes}
        sink.print_act("extract --dry-run", body)
        return
    rows = ((m.name, f"{m.d_out}x{m.d_in}", m.rank) for m in plan.modules)
    sink.print_table(("module", "shape", "rank"), rows)
    sink.note(
        f"at most {len(plan.modules)} modules, {plan.output_bytes} bytes in {plan.dtype}: weights "
        "that are the same in both models, and ranks that --energy does not need, are left out"
    )
