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
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorahub.adapter import Module
from lorahub.engine.batches import read_stack, reweighted
from lorahub.engine.nearness import Cross, nearness
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.work import PRUNED
from lorahub.errors import IntegrityError, LorahubError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.formats.safetensors import TensorFile
from lorahub.kernels.batched import gram
from lorahub.kernels.delta import Merged, excess_residual
from lorahub.kernels.lowrank import factored, whitened_sides
from lorahub.kernels.stack import Factors, Mix, Stack
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


@dataclass(frozen=True, slots=True)
class Result:
    """What `verify` looks at.

    Attributes:
        plan: The merge as it was planned; its sources are read again.
        weights_path: The merged weights file.
        written: Its modules, from inspection.
        reports: What the method reported when it was made, by module name.
    """

    plan: Plan
    weights_path: Path
    written: Sequence[Module]
    reports: Mapping[str, Mapping[str, Any]]


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
    their spectrum is not known), and of a flat spectrum how much of what counts most was left out.
    Errors are relative to the root of the summed squared norms of the weighted source deltas.

    Args:
        plan: As for `Result`.
        weights_path: As for `Result`.
        written: As for `Result`.
        reports: As for `Result`.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        listener: Receives the ``verify`` phase.

    Raises:
        IntegrityError: The result does not have exactly the planned modules.
        InvalidAdapterError: A source cannot be read any more.
    """
    result = Result(plan, weights_path, written, reports)
    (found,) = verify_all([result], workers=workers, listener=listener)
    if isinstance(found, LorahubError):
        raise found
    return found


def verify_all(
    results: Sequence[Result], *, workers: int | None = None, listener: Listener = ignore
) -> list[Verification | LorahubError]:
    """As `verify`, of results whose plans have one `Plan.layout`: their sources are read once.

    Args:
        results: What to verify.
        workers: As for `verify`.
        listener: As for `verify`; a module is done when it is in every result.

    Returns:
        What was found of each result, or the error that `verify` would raise.

    Raises:
        InvalidAdapterError: A source cannot be read any more.
    """
    found: list[Verification | LorahubError | None] = [None] * len(results)
    plan = results[0].plan
    before = torch.get_num_threads()
    with ExitStack() as stack:
        files = [_opened(stack, adapter.weights_path) for adapter in plan.adapters]
        opened: dict[int, _Opened] = {}
        for i, result in enumerate(results):
            try:
                opened[i] = _Opened(result, _opened(stack, result.weights_path))
            except LorahubError as error:
                found[i] = error
        deviations: dict[int, list[_Deviation]] = {i: [] for i in opened}
        listener(PhaseStarted("verify", len(plan.modules), "modules"))

        def work(place: int) -> dict[int, _Deviation | LorahubError]:
            if torch.get_num_threads() != 1:
                torch.set_num_threads(1)
            with torch.inference_mode():
                sources = _Sources(plan, files, plan.modules[place])
                return {i: one.deviation(place, sources) for i, one in opened.items()}

        workers = workers or min(usable_cpus(), 8)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        try:
            for done, ones in enumerate(pool.map(work, range(len(plan.modules))), 1):
                for i, one in ones.items():
                    if isinstance(one, LorahubError):
                        found[i] = one
                    else:
                        deviations[i].append(one)
                listener(Advanced("verify", done, plan.modules[done - 1].name))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(before)
    return [
        _summary(results[i].plan, deviations[i]) if one is None else one
        for i, one in enumerate(found)
    ]


def _opened(stack: ExitStack, path: Path) -> TensorFile:
    return stack.enter_context(closing(TensorFile(path)))


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


class _Sources:
    """The factors of one module's members, read in float64, and their Gram matrices.

    Attributes:
        stack: (1, d_out, R) and (1, R, d_in), with the weights of the plan they were read by.
    """

    def __init__(self, plan: Plan, files: Sequence[TensorFile], module: PlannedModule) -> None:
        stack = read_stack(plan, files, [module], _float64)
        B, A = stack.B[0], stack.A[0]
        self.stack = stack.with_grams((B.mT @ B)[None], (A @ A.mT)[None])


class _Opened:
    """A result whose file is open."""

    def __init__(self, result: Result, file: TensorFile) -> None:
        """Look at the names of its modules.

        Raises:
            IntegrityError: They are not the planned ones.
        """
        self._plan, self._file, self._reports = result.plan, file, result.reports
        self._written = {m.name: m for m in result.written}
        wanted = {
            m.name
            for m in result.plan.modules
            if result.reports.get(m.name, {}).get("warning") != PRUNED
        }
        if self._written.keys() != wanted:
            odd = min(self._written.keys() ^ wanted)
            raise IntegrityError(
                f"{result.weights_path}: does not have the planned modules (see '{odd}')"
            )

    def deviation(self, place: int, sources: _Sources) -> _Deviation | LorahubError:
        """How far the module at a place of the plan is from its definition."""
        module = self._plan.modules[place]
        written = self._written.get(module.name)
        k = written.rank if written else 0
        b, a = _float64("B", (module.d_out, k)), _float64("A", (k, module.d_in))
        try:
            if written:
                self._file.read_into(written.key_b, b)
                self._file.read_into(written.key_a, a)
                b *= written.scaling
            stack = reweighted(self._plan, [module], sources.stack)
            return _deviation(self._plan, module, stack, b, a, self._reports.get(module.name, {}))
        except LorahubError as error:
            return error


def _float64(name: str, shape: Sequence[int]) -> Tensor:
    return torch.empty(*shape, dtype=torch.float64)


def _deviation(
    plan: Plan,
    module: PlannedModule,
    stack: Stack,
    b: Tensor,
    a: Tensor,
    report: Mapping[str, Any],
) -> _Deviation:
    """Squared norms for one module.

    Args:
        plan: The merge.
        module: The module.
        stack: Its sources, weighted, in float64.
        b: (d_out, k) what was written, its scaling folded in.
        a: (k, d_in).
        report: What the method reported of it.
    """
    k = len(a)
    # With few rows on the left, products of a result and its sources take half the time.
    products = b.mT @ stack.B[0], (stack.A[0] @ a.mT).mT, b.mT @ b, a @ a.mT
    cross = Cross(*(x[None] for x in products))
    definition = plan.method.definition(stack, [report], plan.parameters)
    if isinstance(definition, Merged):
        excess = excess_residual(definition, plan.scale, b, a)
    elif isinstance(definition, Factors):
        excess = _excess_of_factors(definition, plan.scale, b, a)
    else:
        wanted = definition.matrix() * plan.scale
        distance = float(cross.distance(wanted, stack)[0]) ** 0.5
        # What no matrix of the written rank could have avoided.
        (_, K_b), (_, K_a) = whitened_sides(stack)
        sigma = torch.linalg.svdvals(K_b[0] @ wanted[0] @ K_a[0].mT)
        excess = max(0.0, distance - float(sigma[k:].square().sum()) ** 0.5)
        if definition.importance is not None and plan.scale:
            excess = math.hypot(excess, _passed_over(definition, plan.scale, cross))
    near = nearness(plan, [module], stack, cross)
    members = (member.adapter for member in module.members)
    return _Deviation(
        error=excess**2,
        terms=float(near.terms[0]),
        residual=float(near.residual[0]),
        total=float(near.total[0]),
        retained=tuple(zip(members, near.kept[0].tolist(), near.whole[0].tolist(), strict=True)),
    )


def _passed_over(definition: Mix, scale: float, cross: Cross) -> float:
    """The norm of directions that were not written, though they count more than some that were.

    Of a flat spectrum any directions of a rank are as near to the whole. Directions that count
    alike may stand for each other: the norm is weighted by the importance that was lost.
    """
    assert definition.importance is not None
    assert definition.sigma is not None
    importance, sigma = definition.importance[0], definition.sigma[0].double()
    inner = ((cross.b[0] @ definition.left[0]) * (definition.right[0] @ cross.a[0].mT).mT).sum(0)
    # 1 for each direction of the definition that was written, 0 for the others.
    shares = torch.where(sigma > 0, inner / (scale * sigma.square()), 0.0)
    lost = importance[: cross.b.shape[1]].sum() - (importance * shares).sum()
    largest = importance[0]
    return abs(scale) * float(sigma[0] * (lost / largest).clamp_min(0)) if largest > 0 else 0.0


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
