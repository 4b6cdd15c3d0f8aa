"""Verbs on merges: merge, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Ref
from lorahub.cli.composing import compose, parse_parameters, parse_rank

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan
    from lorahub.merging import Merged
    from lorahub.record import Record


def merge(
    sources: Annotated[
        list[str], typer.Argument(metavar="REF[:WEIGHT]...", help="Adapters, or RECIPE.yaml.")
    ],
    method: Annotated[
        str | None, typer.Option("--method", help="See `lorahub methods`; auto chooses.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option("--rank", help="Rank of the result, or auto (lego).")
    ] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", help="Share of the energy to keep, 0..1.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="Factor on the merged delta.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Give all adapters one norm first."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Size of the result: 40MB, '30%' less, 'rank 8', '2M params'."
        ),
    ] = None,
    allocate: Annotated[
        str | None,
        typer.Option(
            "--allocate", help="Who gets the budget: relative, energy, welore, prune, uniform."
        ),
    ] = None,
    pack: Annotated[
        str | None,
        typer.Option("--pack", help="Pack the result: times smaller than bfloat16 (8), or 40MB."),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="NAME=VALUE of the method.")
    ] = None,
    weights_for: Annotated[
        list[str] | None,
        typer.Option(
            "--weights-for",
            metavar="[REF:]PATTERN=WEIGHT",
            help="Weight of the modules whose names match, of all sources or of one.",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="F32, F16 or BF16.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random choices.")] = 0,
    base: Annotated[str | None, typer.Option("--base", help="Base model of the result.")] = None,
    device: sink.Device = "auto",
    workers: sink.Workers = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Parts at a time; 1 unless --executor is given."),
    ] = None,
    executor: sink.Executor = None,
    address: sink.Address = None,
    output: sink.Output = None,
    name: sink.Name = None,
    force: sink.Force = False,
    dry_run: sink.DryRun = False,
    events: sink.Events = None,
    as_json: sink.Json = False,
) -> None:
    """Merge adapters into one, verified and catalogued."""
    lines = events is not None
    with sink.errors("merge", as_json=as_json, events=lines):
        from lorahub.executors import choose
        from lorahub.workspace import Workspace

        options: dict[str, Any] = {
            "method": method,
            "scale": scale,
            "normalize": normalize,
            "budget": budget,
            "allocate": allocate,
            "pack": pack,
            "dtype": dtype,
            "seed": seed,
            "base": base,
        }
        given = {"rank": parse_rank(rank), "energy": energy} | parse_parameters(parameter or [])
        recipe, located = compose(sources, weights_for or [], options, given, name, output)
        with located, sink.progress(events=lines) as listener, Workspace.open() as workspace:
            if dry_run:
                plan = workspace.plan(recipe, listener=listener)
                print_plan(plan, "merge", as_json=as_json or lines)
                return
            merged = workspace.merge(
                recipe,
                device=device,
                workers=workers,
                executor=choose(executor, jobs=jobs, address=address, device=device),
                force=force,
                listener=listener,
            )
        print_merged(merged, "merge", as_json=as_json, lines=lines)


def print_merged(merged: Merged, command: str, *, as_json: bool, lines: bool = False) -> None:
    """What a merge came to, as a table, as JSON or as the last event."""
    record, check = merged.record, merged.record.verification
    body = {
        "name": merged.adapter.name,
        "folder": str(merged.adapter.origin.folder),
        "state": merged.state,
        "record": sink.plain(record),
    }
    if not sink.answered(command, body, as_json=as_json, events=lines):
        sink.print_table(
            ("field", "value"),
            (
                ("name", merged.adapter.name),
                ("state", merged.state),
                ("folder", merged.adapter.origin.folder),
                ("method", record.method),
                ("scale", f"{record.scale:g}"),
                *_normalized(record),
                ("modules", record.modules),
                ("rank", record.rank),
                ("dtype", record.dtype),
                *_packed(record),
                ("error", f"{check.error:.1e} (allowed {check.tolerance:.0e})"),
                ("truncation", f"{check.truncation:.2%}"),
                ("kept", ", ".join(f"{k:.1%}" for k in check.retained)),
                *(("note", note) for note in record.notes),
            ),
        )


def _normalized(record: Record) -> list[tuple[str, str]]:
    if not record.normalize:
        return []
    return [("normalized by", ", ".join(f"{p.factor:.3g}" for p in record.parents))]


def _packed(record: Record) -> list[tuple[str, str]]:
    if record.packed is None:
        return []
    pack = record.packed
    others = ", ".join(f"{codec} {error:.3f}" for codec, _, error in pack.tried)
    return [("pack", f"{sink.size(pack.bytes)}, {pack.codec}, error {pack.error:.3f} ({others})")]


def print_plan(plan: Plan, command: str, *, as_json: bool) -> None:
    """What a merge would write, as a table or as JSON."""
    body: dict[str, Any] = {
        "method": plan.method.name,
        "parameters": dict(plan.parameters),
        "scale": plan.scale,
        "normalize": plan.normalize,
        "budget": plan.budget and plan.budget.parameters,
        "allocate": plan.budget and plan.budget.rule,
        "pack": plan.pack and (plan.pack.ratio or f"{plan.pack.limit} bytes"),
        "dtype": plan.dtype,
        "seed": plan.seed,
        "base_model": plan.base_model,
        "license": plan.license,
        "sources": [
            {
                "name": a.name,
                "weight": w,
                "weights": dict(patterns),
                "content_hash": a.info.content_hash,
            }
            for a, w, patterns in zip(plan.adapters, plan.weights, plan.patterns, strict=True)
        ],
        "modules": len(plan.modules),
        "rank": plan.rank,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "digest": plan.digest,
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
    }
    if as_json:
        sink.print_act(f"{command} --dry-run", body)
        return
    body["sources"] = ", ".join(map(_source_text, body["sources"]))
    shown = {k: v for k, v in body.items() if k != "warnings"}
    shown["notes"] = "; ".join(plan.notes)
    shown["parameters"] = ", ".join(f"{k}={v}" for k, v in plan.parameters.items())
    sink.print_table(("field", "value"), shown.items())
    for warning in plan.warnings:
        sink.note(f"warning: {warning}")


def _source_text(source: dict[str, Any]) -> str:
    others = "".join(f" {pattern}={w:g}" for pattern, w in source["weights"].items())
    return f"{source['name']}:{source['weight']:g}{others}"


def verify(reference: Ref, as_json: sink.Json = False) -> None:
    """Recompute a merged adapter from its sources, by another path, and compare."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("verify", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        check = workspace.verify(reference, listener=listener)
        if as_json:
            sink.print_act("verify", check)
            return
        sink.print_table(
            ("field", "value"),
            (
                ("error", f"{check.error:.1e}"),
                ("worst module", f"{check.worst_module} {check.worst_error:.1e}"),
                ("allowed", f"{check.tolerance:.0e}"),
                ("truncation", f"{check.truncation:.2%}"),
                ("kept", ", ".join(f"{k:.1%}" for k in check.retained)),
            ),
        )
