"""Running a plan: survey, merge, allocate, write.

Three passes at most over the sources, each batch by batch: the adapters' norms, where the plan
normalises them; the spectrum of every merged module, where ranks are distributed over modules
under a budget; and the merge itself, which is written in plan order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorahub.adapter import ModuleKind
from lorahub.engine.batches import Batches, name_the_bad_factor, pick_device
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.survey import normalized
from lorahub.errors import InvalidRecipeError, StorageError
from lorahub.events import Listener, ignore
from lorahub.formats.peft import tensor_keys
from lorahub.formats.safetensors import Encoded, Writer, encode, encode_header
from lorahub.kernels.allocation import ModuleRank, allocate, lrc_report
from lorahub.kernels.lowrank import canonical
from lorahub.kernels.stack import Factors, Mix, Stack

PRUNED = "has no rank left and is not in the result"
"""The warning that a module's report has when it is not written."""

MIX_CACHE_BYTES = 32 << 20
"""Mixtures (or factors) kept between the pass that finds spectra and the one that writes."""


@dataclass(frozen=True, slots=True)
class MergedModule:
    """What was written for one module: its name, kind and rank, and what its method reported.

    Of rank 0, nothing was.
    """

    name: str
    kind: ModuleKind
    rank: int
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of `run`.

    Attributes:
        plan: The plan as it was carried out, normalising factors included.
        modules: One entry per module, in plan order.
    """

    plan: Plan
    modules: tuple[MergedModule, ...]


@dataclass(frozen=True, slots=True)
class _Merged:
    """One module's factors, ready to be written."""

    A: Encoded
    B: Encoded
    rank: int
    report: Mapping[str, Any]


def run(
    plan: Plan,
    weights_path: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    batch_bytes: int | None = None,
    listener: Listener = ignore,
) -> Run:
    """Execute ``plan`` and write the merged factors to ``weights_path`` (safetensors).

    Args:
        plan: What to merge.
        weights_path: File to create; on an error what was written of it has no valid header.
        device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda[:N]`` or ``mps``.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        batch_bytes: Bytes of stacked factors per batch; None fits the device.
        listener: Receives the phases ``survey`` and ``spectra`` (where they are needed) and
            ``merge``.

    Raises:
        InvalidAdapterError: A factor holds NaN or Inf, or a file changed under the run.
        StorageError: The disk is full or failing.
        ResourceError: A module does not fit the GPU.
        UsageError: The device is not there.
        InvalidRecipeError: A value does not fit the dtype, or the budget is too small.
    """
    target = pick_device(device)
    with Batches(plan, device=target, workers=workers, batch_bytes=batch_bytes) as batches:
        plan = normalized(plan, batches, listener)
        cache: dict[str, Mix | Factors] = {}
        ranks = _allocated(plan, batches, cache, listener) if plan.budget else None

        def work(modules: Sequence[PlannedModule], stack: Stack) -> list[_Merged]:
            return _merge(plan, modules, stack, ranks, cache)

        merged: list[MergedModule] = []
        try:
            with Writer(weights_path, _header_room(plan)) as writer:
                for module, result in batches.run(plan, "merge", work, listener):
                    key_a, key_b = tensor_keys(module.name, module.kind)
                    if result.rank:
                        writer.write(key_a, result.A)
                        writer.write(key_b, result.B)
                    merged.append(
                        MergedModule(module.name, module.kind, result.rank, result.report)
                    )
        except OSError as error:
            raise StorageError(
                f"{weights_path}: cannot be written ({error.strerror})",
                hint=f"about {plan.output_bytes} bytes are needed; free some or write elsewhere",
            ) from error
    return Run(plan, tuple(merged))


def _header_room(plan: Plan) -> int:
    """Bytes that hold the header whatever ranks are kept."""
    entries = {}
    end = 0
    for m in plan.modules:
        for key, width in zip(tensor_keys(m.name, m.kind), (m.d_in, m.d_out), strict=True):
            stop = end + m.rank * width * 8
            shape = [m.rank, width]
            entries[key] = {"dtype": plan.dtype, "shape": shape, "data_offsets": [end, stop]}
            end = stop
    return len(encode_header(entries))


def _allocated(
    plan: Plan, batches: Batches, cache: dict[str, Mix | Factors], listener: Listener
) -> dict[str, ModuleRank]:
    """By module name, its rank under the plan's budget; what fits is kept in ``cache``."""
    assert plan.budget is not None

    def work(modules: Sequence[PlannedModule], stack: Stack) -> list[tuple[Tensor, Mix | Factors]]:
        mix = canonical(stack, _mixed(plan, modules, stack))
        spectrum = mix.priorities
        assert spectrum is not None
        spectrum = spectrum.cpu()
        for i, kept in enumerate(mix.ranks or ()):
            spectrum[i, kept:] = 0
        return [(spectrum[i], mix.module(i)) for i in range(len(modules))]

    spectra = []
    room = MIX_CACHE_BYTES if batches.device.type == "cpu" else 0
    for module, (spectrum, mix) in batches.run(plan, "spectra", work, listener):
        spectra.append(spectrum.numpy().copy())
        room -= mix.nbytes
        if room >= 0:
            cache[module.name] = mix
    widths = [m.d_in + m.d_out for m in plan.modules]
    areas = [m.d_in * m.d_out for m in plan.modules]
    ranks = allocate(spectra, widths, plan.budget.parameters, plan.budget.rule, areas=areas)
    pruning = plan.budget.rule == "prune"
    if pruning and not any(ranks):
        raise InvalidRecipeError(
            f"a budget of {plan.budget.parameters} parameters leaves no rank in any module",
            hint="give a larger budget",
        )
    # A module whose deltas are all zero is given no rank; its factors still need one.
    found = lrc_report(
        [m.name for m in plan.modules],
        spectra,
        [(m.d_out, m.d_in) for m in plan.modules],
        ranks if pruning else [max(r, 1) for r in ranks],
    )
    return {row.name: row for row in found}


def _mixed(plan: Plan, modules: Sequence[PlannedModule], stack: Stack) -> Mix | Factors:
    """What the plan's method makes of a batch."""
    try:
        return plan.method.rule(stack, **plan.parameters)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # what torch raises when a decomposition meets NaN
        name_the_bad_factor(plan, modules, stack)
        raise


def _merge(
    plan: Plan,
    modules: Sequence[PlannedModule],
    stack: Stack,
    ranks: Mapping[str, ModuleRank] | None,
    cache: Mapping[str, Mix | Factors],
) -> list[_Merged]:
    if cache and all(m.name in cache for m in modules):
        mixes = [(cache[m.name], stack.module(i)) for i, m in enumerate(modules)]
    else:
        mix = _mixed(plan, modules, stack)
        mix = mix if ranks is None else canonical(stack, mix)
        widths = mix.ranks if ranks is None else [ranks[m.name].rank for m in modules]
        mixes = [(mix, stack)]
        if stack.B.device.type == "cpu" and len(set(widths or ())) > 1:
            # Products of another width round otherwise: each module's is its own rank.
            mixes = [(mix.module(i), stack.module(i)) for i in range(len(modules))]
    done: list[_Merged] = []
    for mix, part in mixes:
        some = modules[len(done) : len(done) + len(part.seeds)]
        kept = mix.ranks or [mix.width] * len(some)
        if ranks is not None:
            kept = [ranks[m.name].rank for m in some]
        mix = mix.cut(kept)
        factors, reports = mix.scaled(plan.scale).apply(part), mix.reports
        for i, (module, rank) in enumerate(zip(some, kept, strict=True)):
            A = encode(factors.A[i, :rank], plan.dtype)
            B = encode(factors.B[i, :, :rank], plan.dtype)
            if not (A.finite and B.finite):
                # NaN and Inf in a source reach the result whatever the method, so that only a
                # bad result pays for finding out where from.
                name_the_bad_factor(plan, modules, stack)
                raise InvalidRecipeError(
                    f"module '{module.name}': the merged factors overflow {plan.dtype}",
                    hint="use --dtype F32",
                )
            report = dict(reports[i]) if reports else {}
            if ranks is not None:
                row = ranks[module.name]
                report |= {"full_rank": row.full_rank, "cut_off": row.error, "lrc": row.lrc}
                if not rank:
                    report |= {"warning": PRUNED}
            done.append(_Merged(A, B, rank, report))
    return done
