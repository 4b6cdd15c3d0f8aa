"""Reading a plan's factors batch by batch, in bounded memory, and working on the batches.

A batch is a few modules of one shape. Worker threads read a batch's factors into memory that
they use again and compute on it; results come out in plan order whatever order batches finish
in. On a CPU every large product is made module by module with one BLAS thread, so that no bit
depends on the batch size or on the number of workers; on a GPU a batch is one launch per step,
and the next batch is read while this one computes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from threading import Event, local
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from lorahub.adapter import DTYPE_BYTES
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.sizes import CPU_BATCH_BYTES
from lorahub.errors import InvalidAdapterError, ResourceError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted
from lorahub.formats.safetensors import TensorFile
from lorahub.kernels.blas import one_thread
from lorahub.kernels.stack import Stack
from lorahub.parallel import usable_cpus

T = TypeVar("T")
Work = Callable[[Sequence[PlannedModule], Stack], Sequence[T]]
Allocate = Callable[[str, Sequence[int]], Tensor]

GPU_BATCH_BYTES = 1 << 30
"""The same on a GPU, at most a quarter of its free memory."""


GRAM_CACHE_BYTES = 32 << 20
"""Gram matrices kept between passes over the same factors."""


class Batches:
    """The batches of a plan, open for reading. Use as a context manager."""

    def __init__(
        self,
        plan: Plan,
        *,
        device: torch.device,
        workers: int | None = None,
        batch_bytes: int | None = None,
        sharing: int = 1,
    ) -> None:
        """Open the sources of ``plan``.

        Args:
            plan: Whose factors are read.
            device: Where batches are computed.
            workers: Threads; None takes the CPUs this process may use, at most 8.
            batch_bytes: Most bytes of stacked factors per batch (a module alone may have more).
            sharing: Number of plans whose results come of every batch.

        Raises:
            InvalidAdapterError: A source is damaged.
        """
        self.device = device
        self.workers = workers or min(usable_cpus(), 8)
        self._bytes = batch_bytes or _batch_bytes(device, sharing)
        self._files: list[TensorFile] = []
        self._buffers = _Buffers(device)
        self._grams: dict[str, tuple[Tensor, Tensor]] = {}
        self._keep = False
        with ExitStack() as opened:
            opened.callback(torch.set_num_threads, torch.get_num_threads())
            precision = torch.get_float32_matmul_precision()
            opened.callback(torch.set_float32_matmul_precision, precision)
            # TF32 keeps ten bits of a product; the tolerances need all of them.
            torch.set_float32_matmul_precision("highest")
            opened.enter_context(one_thread())
            for adapter in plan.adapters:
                self._files.append(TensorFile(adapter.weights_path))
                opened.callback(self._files[-1].close)
            self._opened = opened.pop_all()

    def result_bytes(self, plan: Plan) -> int:
        """Most bytes of the results of one batch."""
        width = DTYPE_BYTES[plan.dtype]
        return max(
            sum(m.rank * (m.d_in + m.d_out) * width for m in batch) for batch in self.of(plan)
        )

    def of(self, plan: Plan) -> Iterator[list[PlannedModule]]:
        """The modules of a plan of the same `Plan.layout`, batch by batch."""
        return _batches(plan, self._bytes)

    def close(self) -> None:
        """Close the sources and give torch and the BLAS libraries their settings back."""
        self._opened.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        plan: Plan,
        phase: str,
        work: Work[T],
        listener: Listener,
        *,
        keep_grams: bool = False,
    ) -> Generator[tuple[PlannedModule, T], None, None]:
        """Yield each module with what ``work`` made of it, in plan order.

        ``work`` takes the modules of a batch and their `Stack` and returns one value per module.
        At most 2 workers + 1 batches are in flight. ``listener`` receives ``phase``; a module
        counts as done when the consumer asks for the next one. With ``keep_grams`` the Gram
        matrices are made and kept for a later pass, if all are small together.

        Raises:
            ResourceError: A single module does not fit the GPU's memory.
        """
        listener(PhaseStarted(phase, len(plan.modules), "modules"))
        done = 0
        size = sum(2 * m.total_rank**2 * 8 for m in plan.modules)
        self._keep = keep_grams and size <= GRAM_CACHE_BYTES
        for modules, results in self._ordered(plan, work):
            for module, result in zip(modules, results, strict=True):
                yield module, result
                done += 1
                listener(Advanced(phase, done, module.name))

    def _ordered(
        self, plan: Plan, work: Work[T]
    ) -> Iterator[tuple[Sequence[PlannedModule], Sequence[T]]]:
        cancelled = Event()

        def job(batch: Sequence[PlannedModule]) -> tuple[Sequence[PlannedModule], Sequence[T]]:
            # Small kernels spin at barriers when BLAS splits them: one thread each, many workers.
            if torch.get_num_threads() != 1:
                torch.set_num_threads(1)
            return batch, [] if cancelled.is_set() else self._work(plan, work, batch)

        pending: deque[Future[tuple[Sequence[PlannedModule], Sequence[T]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="merge")
        try:
            for batch in self.of(plan):
                pending.append(pool.submit(job, batch))
                if len(pending) > 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, plan: Plan, work: Work[T], batch: Sequence[PlannedModule]) -> Sequence[T]:
        try:
            with torch.inference_mode():
                stack = read_stack(plan, self._files, batch, self._buffers.get)
                stack = self._remembered(batch, stack.to_device(self.device))
                if self._keep:
                    self._remember(batch, stack)
                return work(batch, stack)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ResourceError(
                    f"module '{batch[0].name}' does not fit the memory of {self.device} "
                    f"(its stacked factors have rank {batch[0].total_rank})",
                    hint="use --device cpu, or merge fewer adapters at a time",
                ) from error
        # Outside the handler, whose traceback would keep the tensors that did not fit.
        torch.cuda.empty_cache()
        half = len(batch) // 2
        first = list(self._work(plan, work, batch[:half]))
        return first + list(self._work(plan, work, batch[half:]))

    def _remembered(self, batch: Sequence[PlannedModule], stack: Stack) -> Stack:
        known = [self._grams.get(module.name) for module in batch]
        found = [grams for grams in known if grams is not None]
        if len(found) < len(batch):
            return stack
        gram_b, gram_a = (torch.cat(side) for side in zip(*found, strict=True))
        return stack.with_grams(gram_b, gram_a)

    def _remember(self, batch: Sequence[PlannedModule], stack: Stack) -> None:
        """Keep what another pass over the factors would compute again."""
        for i, module in enumerate(batch):
            one = slice(i, i + 1)
            self._grams[module.name] = stack.gram_b[one].clone(), stack.gram_a[one].clone()


def pick_device(name: str) -> torch.device:
    """The torch device of that name, ``auto`` being CUDA where there is one, else the CPU.

    Raises:
        UsageError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device '{name}' is not available here", hint="use --device auto or cpu"
        ) from error
    return device


def read_stack(
    plan: Plan,
    files: Sequence[TensorFile],
    batch: Sequence[PlannedModule],
    allocate: Allocate,
) -> Stack:
    """Read the factors of same-shaped modules into a `Stack` made by ``allocate(name, shape)``."""
    first = batch[0]
    total = first.total_rank
    B = allocate("B", (len(batch), first.d_out, total))
    A = allocate("A", (len(batch), total, first.d_in))
    ranks = [member.module.rank for member in first.members]
    for t, (part_b, part_a) in enumerate(zip(B.split(ranks, 2), A.split(ranks, 1), strict=True)):
        for module, b, a in zip(batch, part_b.unbind(), part_a.unbind(), strict=True):
            member = module.members[t]
            file = files[member.adapter]
            file.read_into(member.module.key_b, b)
            file.read_into(member.module.key_a, a)
    return Stack(
        B,
        A,
        _coefficients(batch),
        ranks=tuple(ranks),
        weights=first.weights,
        seeds=_seeds(plan, batch),
    )


def reweighted(plan: Plan, batch: Sequence[PlannedModule], stack: Stack) -> Stack:
    """The stack that another plan of the same `Plan.layout` has for the same modules.

    Args:
        plan: The other plan.
        batch: Its modules.
        stack: What was read of them.
    """
    coefficients = _coefficients(batch).to(stack.coefficients.device)
    return stack.reweighted(coefficients, batch[0].weights, _seeds(plan, batch))


def _coefficients(batch: Sequence[PlannedModule]) -> Tensor:
    """(m, R) float64."""
    rows = [
        [
            coefficient
            for member in module.members
            for coefficient in [member.weight * member.factor * member.module.scaling]
            * member.module.rank
        ]
        for module in batch
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _seeds(plan: Plan, batch: Sequence[PlannedModule]) -> tuple[int, ...]:
    return tuple(module_seed(plan.seed, module.name) for module in batch)


def name_the_bad_factor(plan: Plan, batch: Sequence[PlannedModule], stack: Stack) -> None:
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


def module_seed(seed: int, module: str) -> int:
    """The seed of a module's random choices, so that they do not depend on batches or order."""
    digest = hashlib.sha256(f"{seed}:{module}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _batch_bytes(device: torch.device, sharing: int) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return min(GPU_BATCH_BYTES, free // 4)
    # On a GPU, where bits depend on the batch, it is what it would be for one plan.
    return CPU_BATCH_BYTES // min(sharing, 8) if device.type == "cpu" else GPU_BATCH_BYTES


def _batches(plan: Plan, limit: int) -> Iterator[list[PlannedModule]]:
    for _, group in groupby(plan.modules, key=lambda m: m.kind_of_batch):
        batch: list[PlannedModule] = []
        for module in group:
            size = module.total_rank * (module.d_in + module.d_out) * 4
            if batch and (len(batch) + 1) * size > limit:
                yield batch
                batch = []
            batch.append(module)
        yield batch


class _Buffers(local):
    """Per-thread float32 scratch: converting into warm memory is several times faster."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._flat = {"A": torch.empty(0), "B": torch.empty(0)}

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        size = int(torch.Size(shape).numel())
        if self._flat[name].numel() < size:
            self._flat[name] = torch.empty(size, pin_memory=self._pinned)
        return self._flat[name][:size].view(*shape)
