"""Verification: how far a written adapter is from what its recipe defines.

Everything is recomputed from the files in float64: the Gram matrices of all B columns, sources
and result together, and of all A rows. The delta that the recipe defines and the one that was
written are then small matrices over the same columns, and every distance follows from them, by
another path and in another precision than those that made the result. A delta that is merged
element by element is no such matrix: it is made again block by block of rows, in float64 too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorahub.adapter import Module
from lorahub.engine.batches import read_stack
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.run import PRUNED
from lorahub.errors import IntegrityError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.formats.safetensors import TensorFile
from lorahub.kernels.delta import Merged, excess_residual
from lorahub.kernels.lowrank import factored, whitened
from lorahub.kernels.stack import Factors, gram
from lorahub.parallel import usable_cpus
from lorahub.record import Verification

TOLERANCE = {"F32": 1e-5, "F16": 2e-3, "BF16": 1.6e-2}
"""Largest accepted relative error per module: a few times the rounding of two factors."""


@dataclass(frozen=True, slots=True)
class _Deviation:
    """Squared norms for one module."""

    error: float
    terms: float
    residual: float
    total: float
    retained: tuple[tuple[int, float, float], ...]  # (adapter, kept, whole)


def verify(
    plan: Plan,
    weights_path: Path,
    written: Sequence[Module],
    *,
    reports: Mapping[str, Mapping[str, Any]],
    workers: int | None = None,
    listener: Listener = ignore,
) -> Verification:
    """Compare the deltas in ``weights_path`` with the plan's definition.

    For methods that truncate, the definition is the best approximation of the rank that was
    written, and the error is by how much the distance to the untruncated target exceeds the
    smallest possible one (for deltas merged element by element, as `excess_residual` finds it:
    their spectrum is not known). Errors are relative to the root of the summed squared norms of the
    weighted source deltas.

    Args:
        plan: The merge as it was planned; its sources are read again.
        weights_path: The merged weights file.
        written: Its modules, from inspection.
        reports: What the method reported when it was made, by module name.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        listener: Receives the ``verify`` phase.

    Raises:
        IntegrityError: The result does not have exactly the planned modules.
        InvalidAdapterError: A source cannot be read any more.
    """
    by_name = {m.name: m for m in written}
    wanted = {m.name for m in plan.modules if reports.get(m.name, {}).get("warning") != PRUNED}
    if by_name.keys() != wanted:
        odd = min(by_name.keys() ^ wanted)
        raise IntegrityError(f"{weights_path}: does not have the planned modules (see '{odd}')")
    files = [TensorFile(a.weights_path) for a in plan.adapters]
    result = TensorFile(weights_path)
    before = torch.get_num_threads()
    listener(PhaseStarted("verify", len(plan.modules), "modules"))

    def work(module: PlannedModule) -> _Deviation:
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            report = reports.get(module.name, {})
            return _deviation(plan, files, module, result, by_name.get(module.name), report)

    workers = workers or min(usable_cpus(), 8)
    deviations: list[_Deviation] = []
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for module, one in zip(plan.modules, pool.map(work, plan.modules), strict=True):
            deviations.append(one)
            listener(Advanced("verify", len(deviations), module.name))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
        for file in (*files, result):
            file.close()
    return _summary(plan, deviations)


def _summary(plan: Plan, deviations: Sequence[_Deviation]) -> Verification:
    def ratio(part: float, whole: float) -> float:
        return (part / whole) ** 0.5 if whole > 0 else float(part > 0)

    each = [ratio(d.error, d.terms) for d in deviations]
    worst = max(range(len(each)), key=each.__getitem__)
    kept = [0.0] * len(plan.adapters)
    whole = [0.0] * len(plan.adapters)
    for deviation in deviations:
        for adapter, k, w in deviation.retained:
            kept[adapter] += k
            whole[adapter] += w
    return Verification(
        error=ratio(sum(d.error for d in deviations), sum(d.terms for d in deviations)),
        worst_error=each[worst],
        worst_module=plan.modules[worst].name,
        truncation=ratio(sum(d.residual for d in deviations), sum(d.total for d in deviations)),
        retained=tuple(k / w if w > 0 else 1.0 for k, w in zip(kept, whole, strict=True)),
        tolerance=TOLERANCE[plan.dtype],
    )


def _deviation(
    plan: Plan,
    files: Sequence[TensorFile],
    module: PlannedModule,
    result: TensorFile,
    written: Module | None,
    report: Mapping[str, Any],
) -> _Deviation:
    R, k = module.total_rank, written.rank if written else 0
    scaling = written.scaling if written else 1.0
    # Sources and result side by side: the stack is a view of the first R columns.
    B = torch.empty(1, module.d_out, R + k, dtype=torch.float64)
    A = torch.empty(1, R + k, module.d_in, dtype=torch.float64)
    places = {"B": B[:, :, :R], "A": A[:, :R]}
    stack = read_stack(plan, files, [module], lambda name, _: places[name])
    if written:
        result.read_into(written.key_b, B[0, :, R:])
        result.read_into(written.key_a, A[0, R:])
    gram_b, gram_a = B[0].mT @ B[0], A[0] @ A[0].mT
    known = stack.with_grams(gram_b[None, :R, :R], gram_a[None, :R, :R])
    definition = plan.method.definition(known, [report], plan.parameters)
    found = torch.eye(k, dtype=torch.float64) * scaling
    own_b, own_a = B[0, :, R:] * scaling, A[0, R:]
    if isinstance(definition, Merged):
        excess = excess_residual(definition, plan.scale, own_b, own_a)
    elif isinstance(definition, Factors):
        excess = _excess_of_factors(definition, plan.scale, own_b, own_a)
    else:
        wanted = definition.matrix()[0] * plan.scale
        distance = _norm(gram_b, torch.block_diag(-wanted, found), gram_a)
        # What no matrix of the written rank could have avoided.
        K_b, K_a = (whitened(gram)[1][0] for gram in (known.gram_b, known.gram_a))
        sigma = torch.linalg.svdvals(K_b @ wanted @ K_a.mT)
        excess = max(0.0, distance - float(sigma[k:].square().sum()) ** 0.5)
    exact = torch.diag(stack.coefficients[0] * plan.scale)
    residual = _norm(gram_b, torch.block_diag(-exact, found), gram_a)
    # Coordinates of the sources in orthonormal bases of the result's columns and rows.
    columns = whitened(gram_b[None, R:, R:])[0][0].mT @ gram_b[R:, :R]
    rows = whitened(gram_a[None, R:, R:])[0][0].mT @ gram_a[R:, :R]
    terms = 0.0
    retained = []
    start = 0
    for member in module.members:
        part = slice(start, start + member.module.rank)
        square = member.module.scaling**2
        whole = square * float((gram_b[part, part] * gram_a[part, part]).sum())
        kept = square * float((columns[:, part] @ rows[:, part].mT).square().sum())
        retained.append((member.adapter, min(kept, whole), whole))
        terms += whole * (member.weight * member.factor * plan.scale) ** 2
        start = part.stop
    return _Deviation(
        error=excess**2,
        terms=terms,
        residual=residual**2,
        total=_norm(known.gram_b[0], exact, known.gram_a[0]) ** 2,
        retained=tuple(retained),
    )


def _excess_of_factors(wanted: Factors, scale: float, B: Tensor, A: Tensor) -> float:
    """By how much ``B @ A`` is farther from other factors than its rank makes necessary."""
    left, right = wanted.B[0] * scale, wanted.A[0]
    _, _, sigma = factored(gram(left.mT[None]), gram(right[None]), torch.eye(wanted.width).double())
    both_b, both_a = torch.cat([B, -left], 1), torch.cat([A, right])
    one = torch.eye(len(both_a), dtype=torch.float64)
    distance = _norm(both_b.mT @ both_b, one, both_a @ both_a.mT)
    return max(0.0, distance - float(sigma[0, A.shape[0] :].norm()))


def _norm(gram_b: Tensor, M: Tensor, gram_a: Tensor) -> float:
    """Frobenius norm of ``B @ M @ A`` from the Gram matrices of B's columns and A's rows."""
    square = float(((gram_b @ M) * (M @ gram_a)).sum())
    return math.sqrt(max(0.0, square))
