"""Verification: how far a written adapter is from what its recipe defines.

Everything is recomputed from the files in float64 by Householder QR: the columns of all B
factors, sources and result together, get coordinates in one orthonormal basis, and so do the
rows of all A factors. In those coordinates each delta is a small matrix and every distance is
exact to float64 rounding, by another path than the one that made the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorahub.adapter import Module
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.run import read_stack
from lorahub.errors import IntegrityError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.formats.safetensors import TensorFile
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
    workers: int | None = None,
    listener: Listener = ignore,
) -> Verification:
    """Compare the deltas in ``weights_path`` with the plan's definition.

    For methods that truncate, the definition is the best approximation of the rank that was
    written, and the error is by how much the distance to the untruncated target exceeds the
    smallest possible one. Errors are relative to the root of the summed squared norms of the
    weighted source deltas.

    Args:
        plan: The merge as it was planned; its sources are read again.
        weights_path: The merged weights file.
        written: Its modules, from inspection.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        listener: Receives the ``verify`` phase.

    Raises:
        IntegrityError: The result does not have exactly the planned modules.
        InvalidAdapterError: A source cannot be read any more.
    """
    by_name = {m.name: m for m in written}
    if by_name.keys() != {m.name for m in plan.modules}:
        odd = min(by_name.keys() ^ {m.name for m in plan.modules})
        raise IntegrityError(f"{weights_path}: does not have the planned modules (see '{odd}')")
    files = {i: TensorFile(a.weights_path) for i, a in enumerate(plan.adapters)}
    result = TensorFile(weights_path)
    before = torch.get_num_threads()
    listener(PhaseStarted("verify", len(plan.modules), "modules"))

    def work(module: PlannedModule) -> _Deviation:
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        return _deviation(plan, files, module, result, by_name[module.name])

    workers = workers or min(len(os.sched_getaffinity(0)), 8)
    deviations: list[_Deviation] = []
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for module, one in zip(plan.modules, pool.map(work, plan.modules), strict=True):
            deviations.append(one)
            listener(Advanced("verify", len(deviations), module.name))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
        for file in (*files.values(), result):
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
    files: dict[int, TensorFile],
    module: PlannedModule,
    result: TensorFile,
    written: Module,
) -> _Deviation:
    stack = read_stack(plan, files, [module], lambda _, s: torch.empty(*s, dtype=torch.float64))
    target = plan.method.definition(stack)
    B = torch.empty(module.d_out, written.rank, dtype=torch.float64)
    A = torch.empty(written.rank, module.d_in, dtype=torch.float64)
    result.read_into(written.key_b, B)
    result.read_into(written.key_a, A)
    R = stack.B.shape[2]
    left = _coordinates(torch.cat([stack.B[0], target.B[0] * plan.scale, B], 1))
    right = _coordinates(torch.cat([stack.A[0], target.A[0], A], 0).mT)
    n = target.B.shape[2]
    wanted = left[:, R : R + n] @ right[:, R : R + n].mT
    found = (left[:, R + n :] @ right[:, R + n :].mT) * written.scaling
    c = stack.coefficients[0]
    exact = (left[:, :R] * (c * plan.scale)) @ right[:, :R].mT
    # What no matrix of the written rank could have avoided.
    unavoidable = float(torch.linalg.svdvals(wanted)[written.rank :].square().sum()) ** 0.5
    distance = float((found - wanted).norm())
    columns = _basis(left[:, R + n :])
    rows = _basis(right[:, R + n :])
    terms = 0.0
    retained = []
    start = 0
    for member in module.members:
        stop = start + member.module.rank
        delta = left[:, start:stop] @ right[:, start:stop].mT * member.module.scaling
        whole = float(delta.square().sum())
        kept = float((columns.mT @ delta @ rows).square().sum())
        retained.append((member.adapter, kept, whole))
        terms += whole * (member.weight * plan.scale) ** 2
        start = stop
    return _Deviation(
        error=max(0.0, distance - unavoidable) ** 2,
        terms=terms,
        residual=float((found - exact).square().sum()),
        total=float(exact.square().sum()),
        retained=tuple(retained),
    )


def _coordinates(columns: Tensor) -> Tensor:
    """Coordinates of tall columns in an orthonormal basis of their span: R of their QR."""
    R: Tensor = torch.linalg.qr(columns, mode="r").R
    return R


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal basis of the span of small columns, by SVD with a rank cut at 1e-10."""
    U, s, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = U[:, s > 1e-10 * s[:1].clamp_min(1e-300)]
    return kept
