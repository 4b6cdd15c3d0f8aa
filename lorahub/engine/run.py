"""Running plans: survey, merge, allocate, write.

Three passes at most over the sources, each batch by batch: the adapters' norms, where a plan
normalises them; the spectrum of every merged module, where ranks are distributed over modules
under a budget; and the merge itself, which is written in plan order. Plans of the same sources
are carried out together: the passes are the outer loop, the plans the inner one, and what follows
from the factors alone is found once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lorahub.adapter import ModuleKind
from lorahub.engine.batches import Batches, pick_device
from lorahub.engine.parts import Elsewhere, made_elsewhere
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.survey import normalized
from lorahub.engine.work import Ready, Task, for_each, mixed, ready
from lorahub.errors import InvalidRecipeError, LorahubError, StorageError
from lorahub.events import Listener, ignore
from lorahub.formats.peft import tensor_keys
from lorahub.formats.safetensors import Writer, encode_header
from lorahub.kernels.allocation import ModuleRank, allocate, lrc_report
from lorahub.kernels.lowrank import canonical
from lorahub.kernels.stack import Factors, Mix, Stack
from lorahub.lockstep import Lockstep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIX_CACHE_BYTES = 32 << 20
"""Mixtures (or factors) kept between the pass that finds spectra and the one that writes."""

RESULT_BYTES = 64 << 20
"""Results of one batch, of all plans that are carried out together."""


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
    (done,) = run_all(
        [plan],
        [weights_path],
        device=device,
        workers=workers,
        batch_bytes=batch_bytes,
        listener=listener,
    )
    if isinstance(done, LorahubError):
        raise done
    return done


def run_all(
    plans: Sequence[Plan],
    weights_paths: Sequence[Path],
    *,
    device: str = "auto",
    workers: int | None = None,
    batch_bytes: int | None = None,
    elsewhere: Elsewhere | None = None,
    listener: Listener = ignore,
) -> list[Run | LorahubError]:
    """Execute plans of one `Plan.layout`, reading their factors once.

    What follows from the factors alone is computed once, too. Each result has the bytes that
    `run` gives it, and each failure is its own.

    Args:
        plans: What to merge.
        weights_paths: File to create for each.
        device: As for `run`.
        workers: As for `run`.
        batch_bytes: As for `run`.
        elsewhere: Who makes the last pass, the merge itself, where it is one plan alone.
        listener: As for `run`; a module is done when it is in every result.

    Returns:
        What came of each plan.

    Raises:
        InvalidRecipeError: The device is not there.
        InvalidAdapterError: A source is damaged.
    """
    done: list[Run | LorahubError] = []
    with Batches(
        plans[0],
        device=pick_device(device),
        workers=workers,
        batch_bytes=batch_bytes,
        sharing=len(plans),
    ) as batches:
        most = max(1, RESULT_BYTES // max(batches.result_bytes(plan) for plan in plans))
        for first in range(0, len(plans), most):
            part = slice(first, first + most)
            done += _run_together(plans[part], weights_paths[part], batches, elsewhere, listener)
    return done


def _run_together(
    plans: Sequence[Plan],
    paths: Sequence[Path],
    batches: Batches,
    elsewhere: Elsewhere | None,
    listener: Listener,
) -> list[Run | LorahubError]:
    try:
        return _run(plans, paths, batches, elsewhere, listener)
    except LorahubError as error:
        if len(plans) == 1:
            return [error]
    # What fails for one of them, such as memory, need not for the others.
    found: list[Run | LorahubError] = []
    for plan, path in zip(plans, paths, strict=True):
        path.unlink(missing_ok=True)
        found += _run_together([plan], [path], batches, None, listener)
    return found


def _run(
    plans: Sequence[Plan],
    paths: Sequence[Path],
    batches: Batches,
    elsewhere: Elsewhere | None,
    listener: Listener,
) -> list[Run | LorahubError]:
    tasks = [Task(plan) for plan in normalized(plans, batches, listener)]
    _allocate_all([task for task in tasks if task.plan.budget], batches, listener)
    results = Lockstep(_written(t.plan, path) for t, path in zip(tasks, paths, strict=True))
    with results:
        results.start()
        for i, task in enumerate(tasks):
            if task.error is not None and i in results.waiting:
                results.step(i, task.error)
        live = list(results.waiting)
        work = for_each([tasks[i] for i in live], ready)
        passed = (
            batches.run(tasks[0].plan, "merge", work, listener)
            if elsewhere is None or len(live) != 1
            else made_elsewhere(tasks[live[0]], batches, elsewhere, listener)
        )
        with closing(passed):
            for _, merged in passed:
                if not results.waiting:  # all have failed
                    break
                for i, result in zip(live, merged, strict=True):
                    if i in results.waiting:
                        if isinstance(result, LorahubError):
                            tasks[i].error = result
                        results.step(i, result)
    return results.outcomes


def _written(plan: Plan, path: Path) -> Generator[None, Ready, Run]:
    """Write what is sent for each of the plan's modules; the file is whole after the last."""
    modules: list[MergedModule] = []
    try:
        with Writer(path, _header_room(plan)) as writer:
            for module in plan.modules:
                result = yield
                if result.rank:
                    key_a, key_b = tensor_keys(module.name, module.kind)
                    writer.write(key_a, result.A)
                    writer.write(key_b, result.B)
                modules.append(MergedModule(module.name, module.kind, result.rank, result.report))
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror})",
            hint=f"about {plan.output_bytes} bytes are needed; free some or write elsewhere",
        ) from error
    return Run(plan, tuple(modules))


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


def _allocate_all(tasks: Sequence[Task], batches: Batches, listener: Listener) -> None:
    """Give every task its ranks under its budget; what fits of the mixtures is kept with it."""
    if not tasks:
        return
    spectra: list[list[NDArray[np.float64]]] = [[] for _ in tasks]
    room = MIX_CACHE_BYTES if batches.device.type == "cpu" else 0
    work = for_each(tasks, _spectra)
    for module, found in batches.run(tasks[0].plan, "spectra", work, listener):
        for task, own, one in zip(tasks, spectra, found, strict=True):
            if isinstance(one, LorahubError):
                task.error = one
                continue
            spectrum, mix = one
            own.append(spectrum.numpy().copy())
            room -= mix.nbytes
            if room >= 0:
                task.cache[module.name] = mix
    for task, own in zip(tasks, spectra, strict=True):
        if task.error is None:
            try:
                task.ranks = _allocated(task.plan, own)
            except LorahubError as error:
                task.error = error


def _spectra(
    task: Task, modules: Sequence[PlannedModule], stack: Stack
) -> list[tuple[Tensor, Mix | Factors]]:
    mix = canonical(stack, mixed(task.plan, modules, stack))
    spectrum = mix.priorities
    assert spectrum is not None
    spectrum = spectrum.cpu()
    for i, kept in enumerate(mix.ranks or ()):
        spectrum[i, kept:] = 0
    return [(spectrum[i], mix.module(i)) for i in range(len(modules))]


def _allocated(plan: Plan, spectra: Sequence[NDArray[np.float64]]) -> dict[str, ModuleRank]:
    """By module name, its rank under the plan's budget."""
    assert plan.budget is not None
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
