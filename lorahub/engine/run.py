"""Running a plan: read, merge and write module by module, in bounded memory.

Modules of one shape form units of work. Worker threads read a unit's factors, apply the method
and hand the result to the writer, which appends in plan order whatever order units finish in.
On a CPU each module is computed alone with one BLAS thread, so the bytes depend neither on the
unit size nor on the number of workers; on a GPU a whole unit is one batch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Event, local

import torch
from torch import Tensor

from lorahub.adapter import ModuleKind
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.errors import InvalidAdapterError, InvalidRecipeError, StorageError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.formats.peft import tensor_keys
from lorahub.formats.safetensors import TensorFile, Writer, encode_header, torch_dtype
from lorahub.kernels.lowrank import balanced_split
from lorahub.kernels.stack import Stack

UNIT_BYTES = 32 << 20
"""Stacked float32 factors a unit of work may hold on a GPU; on a CPU it only sets how many
modules a worker takes at once."""


@dataclass(frozen=True, slots=True)
class MergedModule:
    """What was written for one module: its name, kind and rank, and its factors' sha256."""

    name: str
    kind: ModuleKind
    rank: int
    hash_a: str
    hash_b: str


def run(
    plan: Plan,
    weights_path: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    unit_bytes: int = UNIT_BYTES,
    listener: Listener = ignore,
) -> tuple[MergedModule, ...]:
    """Execute ``plan`` and write the merged factors to ``weights_path`` (safetensors).

    Args:
        plan: What to merge.
        weights_path: File to create; on an error what was written of it has no valid header.
        device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda[:N]`` or ``mps``.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        unit_bytes: Bytes of stacked factors per unit of work.
        listener: Receives the ``merge`` phase.

    Returns:
        One entry per module, in plan order.

    Raises:
        InvalidAdapterError: A factor holds NaN or Inf, or a file changed under the run.
        StorageError: The disk is full or failing.
        InvalidRecipeError: The device is not there, or a value does not fit the dtype.
    """
    target = pick_device(device)
    workers = workers or min(len(os.sched_getaffinity(0)), 8)
    files = {i: TensorFile(a.weights_path) for i, a in enumerate(plan.adapters)}
    before = torch.get_num_threads()
    listener(PhaseStarted("merge", len(plan.modules), "modules"))
    merged: list[MergedModule] = []
    computed: Iterator[tuple[PlannedModule, Tensor, Tensor]]
    computed = _compute(plan, files, target, workers, unit_bytes)
    try:
        with Writer(weights_path, _header_room(plan)) as writer:
            for module, B, A in computed:
                key_a, key_b = tensor_keys(module.name, module.kind)
                hash_a = writer.write(key_a, A, plan.dtype)
                hash_b = writer.write(key_b, B, plan.dtype)
                merged.append(MergedModule(module.name, module.kind, A.shape[0], hash_a, hash_b))
                listener(Advanced("merge", len(merged), module.name))
    except OSError as error:
        raise StorageError(
            f"{weights_path}: cannot be written ({error.strerror})",
            hint=f"about {plan.output_bytes} bytes are needed; free some or write elsewhere",
        ) from error
    finally:
        torch.set_num_threads(before)
        for file in files.values():
            file.close()
    return tuple(merged)


def pick_device(name: str) -> torch.device:
    """The torch device of that name, ``auto`` being CUDA where there is one, else the CPU.

    Raises:
        InvalidRecipeError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidRecipeError(
            f"device '{name}' is not available here", hint="use --device auto or cpu"
        ) from error
    return device


def _header_room(plan: Plan) -> int:
    """Bytes that hold the header whatever ranks are kept, and do not depend on units."""
    entries = {}
    end = 0
    for m in plan.modules:
        for key, width in zip(tensor_keys(m.name, m.kind), (m.d_in, m.d_out), strict=True):
            stop = end + m.rank * width * 8
            shape = [m.rank, width]
            entries[key] = {"dtype": plan.dtype, "shape": shape, "data_offsets": [end, stop]}
            end = stop
    return len(encode_header(entries))


def _units(plan: Plan, unit_bytes: int) -> Iterator[list[PlannedModule]]:
    for _, group in groupby(plan.modules, key=lambda m: m.shape):
        unit: list[PlannedModule] = []
        for module in group:
            size = module.total_rank * (module.d_in + module.d_out) * 4
            if unit and (len(unit) + 1) * size > unit_bytes:
                yield unit
                unit = []
            unit.append(module)
        yield unit


_Result = list[tuple[PlannedModule, Tensor, Tensor]]


def _compute(
    plan: Plan,
    files: dict[int, TensorFile],
    device: torch.device,
    workers: int,
    unit_bytes: int,
) -> Iterator[tuple[PlannedModule, Tensor, Tensor]]:
    """Yield each module's merged factors in plan order; at most workers + 1 units in flight."""
    buffers = _Buffers(device)
    cancelled = Event()

    def work(unit: list[PlannedModule]) -> _Result:
        # Small kernels spin at barriers when BLAS splits them: one thread each, many workers.
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        batches = [unit] if device.type != "cpu" else [[module] for module in unit]
        done: _Result = []
        for batch in batches:
            if cancelled.is_set():
                break
            done += _merge(plan, files, batch, buffers)
        return done

    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="merge")
    try:
        for unit in _units(plan, unit_bytes):
            pending.append(pool.submit(work, unit))
            if len(pending) > workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Buffers(local):
    """Per-thread float32 scratch: converting into warm memory is several times faster."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flat = {"A": torch.empty(0), "B": torch.empty(0)}

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        size = int(torch.Size(shape).numel())
        if self._flat[name].numel() < size:
            self._flat[name] = torch.empty(size, pin_memory=self.device.type == "cuda")
        return self._flat[name][:size].view(*shape)


def _merge(
    plan: Plan, files: dict[int, TensorFile], batch: list[PlannedModule], buffers: _Buffers
) -> _Result:
    stack = read_stack(plan, files, batch, buffers.get)
    try:
        with torch.inference_mode():
            factors = plan.method.rule(stack.to_device(buffers.device), **plan.parameters)
    except RuntimeError:  # what torch raises when a decomposition meets NaN
        _name_the_bad_factor(plan, batch, stack)
        raise
    dtype = torch_dtype(plan.dtype)
    done: _Result = []
    for i, module in enumerate(batch):
        rank = module.rank if factors.ranks is None else factors.ranks[i]
        left, right = _scale_split(plan.scale)
        B = (factors.B[i, :, :rank] * left).to(device="cpu", dtype=dtype)
        A = (factors.A[i, :rank] * right).to(device="cpu", dtype=dtype)
        if not bool(torch.isfinite(B).all() and torch.isfinite(A).all()):
            # NaN and Inf in a source reach the result whatever the method, so that only a bad
            # result pays for finding out where from.
            _name_the_bad_factor(plan, batch, stack)
            raise InvalidRecipeError(
                f"module '{module.name}': the merged factors overflow {plan.dtype}",
                hint="use --dtype F32",
            )
        done.append((module, B, A))
    return done


def _scale_split(scale: float) -> tuple[float, float]:
    left, right = balanced_split(torch.tensor(scale, dtype=torch.float64))
    return float(left), float(right)


Allocate = Callable[[str, Sequence[int]], Tensor]


def read_stack(
    plan: Plan, files: dict[int, TensorFile], batch: Sequence[PlannedModule], allocate: Allocate
) -> Stack:
    """Read the factors of same-shaped modules into a `Stack` made by ``allocate(name, shape)``."""
    first = batch[0]
    total = first.total_rank
    B = allocate("B", (len(batch), first.d_out, total))
    A = allocate("A", (len(batch), total, first.d_in))
    coefficients = torch.empty(len(batch), total, dtype=torch.float64)
    for i, module in enumerate(batch):
        start = 0
        for member in module.members:
            m = member.module
            stop = start + m.rank
            file = files[member.adapter]
            file.read_into(m.key_b, B[i, :, start:stop])
            file.read_into(m.key_a, A[i, start:stop])
            coefficients[i, start:stop] = member.weight * m.scaling
            start = stop
    ranks = tuple(member.module.rank for member in first.members)
    weights = tuple(member.weight for member in first.members)
    return Stack(B, A, coefficients, ranks, weights)


def _name_the_bad_factor(plan: Plan, batch: Sequence[PlannedModule], stack: Stack) -> None:
    """Raise InvalidAdapterError for the first factor that holds NaN or Inf, if one does."""
    for i, module in enumerate(batch):
        parts = zip(
            module.members, stack.split(stack.B[i], 1), stack.split(stack.A[i], 0), strict=True
        )
        for member, B, A in parts:
            for key, factor in ((member.module.key_a, A), (member.module.key_b, B)):
                if not bool(torch.isfinite(factor).all()):
                    path = plan.adapters[member.adapter].weights_path
                    raise InvalidAdapterError(
                        f"{path}: tensor '{key}' holds NaN or Inf",
                        hint="the training run diverged or the file is damaged; leave it out",
                    )
