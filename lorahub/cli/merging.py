"""Verbs on merges: compare, merge, verify, methods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Ref
from lorahub.errors import InvalidRecipeError, UsageError
from lorahub.urls import seems_url

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan
    from lorahub.merging import Merged
    from lorahub.recipe import Recipe
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
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda[:N], mps.")] = "auto",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Threads.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Parts at a time; 1 unless --executor is given."),
    ] = None,
    executor: sink.Executor = None,
    address: sink.Address = None,
    output: sink.Output = None,
    name: Annotated[str | None, typer.Option("--name", help="Catalog name of the result.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing result.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan.")] = False,
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
        given = {"rank": _rank(rank), "energy": energy} | parse_parameters(parameter or [])
        recipe = _recipe(sources, weights_for or [], options, given, name, output)
        with sink.progress(events=lines) as listener, Workspace.open() as workspace:
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


def _rank(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f"--rank '{text}' is not a whole number", hint="give a number, or auto (lego)"
        ) from error


def parse_parameters(texts: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, values read as YAML scalars.

    Raises:
        UsageError: A text without ``=``.
    """
    import yaml

    parsed: dict[str, Any] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise UsageError(
                f"-p '{text}' is not NAME=VALUE", hint="see `lorahub methods show METHOD`"
            )
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(
                f"-p '{text}': the value cannot be read", hint="write it as in YAML"
            ) from error
    return parsed


def parse_source(text: str) -> dict[str, Any]:
    """``REF[:WEIGHT]`` as a source of a recipe.

    Raises:
        InvalidRecipeError: What follows the last colon is no number.
    """
    reference, mark, weight = text.rpartition(":")
    if not mark or not reference or ("://" in text and "/" in weight):
        return {"adapter": text}
    try:
        return {"adapter": reference, "weight": float(weight)}
    except ValueError as error:
        raise InvalidRecipeError(
            f"'{text}': weight '{weight}' is not a number", hint="write REF:WEIGHT, e.g. law:0.5"
        ) from error


def parse_weights(
    texts: list[str], sources: list[dict[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """``[REF:]PATTERN=WEIGHT`` texts: the weights for all sources, and the sources with theirs.

    What stands before a colon names a source only if it is one of ``sources``, word for word.

    Raises:
        InvalidRecipeError: A text without ``=`` and a number.
    """
    common: dict[str, float] = {}
    own: dict[str, dict[str, float]] = {s["adapter"]: {} for s in sources}
    for text in texts:
        pattern, mark, weight = text.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            mark = ""
        if not mark or not pattern:
            raise InvalidRecipeError(
                f"--weights-for '{text}' is not PATTERN=WEIGHT",
                hint=r"write e.g. --weights-for 'layers\.(0|1)\.=0.2'",
            )
        named = [ref for ref in own if pattern.startswith(f"{ref}:")]
        if named:
            ref = max(named, key=len)
            own[ref][pattern.removeprefix(f"{ref}:")] = value
        else:
            common[pattern] = value
    return common, [s | {"weights": own[s["adapter"]]} for s in sources]


def _recipe(
    sources: list[str],
    weights_for: list[str],
    options: dict[str, Any],
    parameters: dict[str, Any],
    name: str | None,
    output: Path | None,
) -> Recipe:
    from lorahub.recipe import make_recipe
    from lorahub.recipe_file import load_recipe

    parameters = {k: v for k, v in parameters.items() if v is not None}
    if output is not None and seems_url(str(output)):
        raise UsageError(
            f"-o {output}: results are made in a folder of this machine",
            hint="then `lorahub export NAME URL`, or a recipe with output.export",
        )
    where = {"name": name, "folder": output and output.absolute()}
    where = {k: v for k, v in where.items() if v is not None}
    files = [s for s in sources if re.search(r"\.ya?ml$", s)]
    if files and len(sources) > 1:
        raise UsageError(
            f"{files[0]}: a recipe stands alone",
            hint="write all sources into it, or run `lorahub batch` for several recipes",
        )
    if files:
        recipe = load_recipe(Path(sources[0]))
        asked = [k for k, v in options.items() if v not in (None, 0)] + list(parameters)
        asked += ["weights-for"] if weights_for else []
        if asked:
            raise UsageError(
                f"--{asked[0]} cannot be given beside a recipe", hint="write it into the recipe"
            )
        return recipe.model_copy(
            update={"output": recipe.output.model_copy(update=where)} if where else {}
        )
    if options["method"] is None:
        raise UsageError("a merge needs --method", hint="see `lorahub methods`; auto chooses one")
    body = {k: v for k, v in options.items() if v is not None}
    common, parsed = parse_weights(weights_for, [parse_source(s) for s in sources])
    body |= {"sources": parsed, "weights": common, "parameters": parameters}
    return make_recipe(body | {"output": where}, "command line")


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
