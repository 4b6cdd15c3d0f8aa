"""One 4096 x 4096 module, four rank-16 adapters to rank 16: PEFT's `svd` against ours."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.data import factors, write_adapter
from lorahub.kernels.lowrank import best_approximation
from lorahub.kernels.stack import Stack

ADAPTERS, RANK, SIZE = 4, 16, 4096


def main() -> None:
    """Print both times in CPU seconds at one thread, the ratio and both errors."""
    torch.set_num_threads(1)
    stack = stacked()

    times = []
    for _ in range(21):
        fresh = replace(stack)  # a stack keeps its Gram matrices
        start = time.process_time()
        ours = best_approximation(fresh, rank=RANK).apply(fresh)
        times.append(time.process_time() - start)
    mine = statistics.median(times[1:])

    theirs, peft_seconds = peft_merge("svd")
    exact = _exact(stack)
    norm = exact.norm()
    delta = ours.B[0].double() @ ours.A[0].double()
    flops = 4 * (ADAPTERS * RANK) ** 2 * SIZE + 4 * ADAPTERS * RANK * RANK * SIZE
    print(f"PEFT svd            {peft_seconds:9.3f} s   error {(theirs - exact).norm() / norm:.1e}")
    print(f"lorahub svd         {mine:9.6f} s   error {(delta - exact).norm() / norm:.1e}")
    print(f"ratio               {peft_seconds / mine:9.0f} x")
    print(f"flops of ours       {flops / 1e6:9.1f} M (thin products), R x R eigenproblem beside")


def stacked() -> Stack:
    """The four adapters with weights 1/4, as the engine stacks them."""
    pairs = [factors(i * 100_003, SIZE, SIZE, RANK) for i in range(ADAPTERS)]
    B = torch.cat([b.float() for b, _ in pairs], 1)[None]
    A = torch.cat([a.float() for _, a in pairs], 0)[None]
    coefficients = torch.full((1, ADAPTERS * RANK), 2.0 / ADAPTERS, dtype=torch.float64)
    return Stack(B, A, coefficients, (RANK,) * ADAPTERS, (1 / ADAPTERS,) * ADAPTERS, (0,))


def _exact(stack: Stack) -> torch.Tensor:
    """The best rank-16 delta in float64, by QR."""
    Qb, Rb = torch.linalg.qr(stack.B[0].double())
    Qa, Ra = torch.linalg.qr(stack.A[0].double().T)
    U, s, Vh = torch.linalg.svd((Rb * stack.coefficients[0]) @ Ra.T)
    return (Qb @ (U[:, :RANK] * s[:RANK])) @ (Vh[:RANK] @ Qa.T)


def peft_merge(kind: str, **options: float) -> tuple[torch.Tensor, float]:
    """The delta that PEFT makes of the four adapters, and its CPU seconds."""
    from peft import PeftModel

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(SIZE, SIZE, bias=False)
            self.lin.weight.data = torch.zeros(1, 1).expand(SIZE, SIZE)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with tempfile.TemporaryDirectory() as folder:
        one = [("lin", SIZE, SIZE)]
        homes = [write_adapter(Path(folder) / f"a{i}", one, RANK, i) for i in range(ADAPTERS)]
        model = PeftModel.from_pretrained(Model(), homes[0], adapter_name="a0")
        for i in range(1, ADAPTERS):
            model.load_adapter(homes[i], adapter_name=f"a{i}")
    names = [f"a{i}" for i in range(ADAPTERS)]
    start = time.process_time()
    model.add_weighted_adapter(
        names, [1 / ADAPTERS] * ADAPTERS, "m", combination_type=kind, svd_rank=RANK, **options
    )
    seconds = time.process_time() - start
    layer = model.base_model.model.lin
    delta = layer.lora_B["m"].weight.double() @ layer.lora_A["m"].weight.double()
    return layer.scaling["m"] * delta.detach(), seconds


if __name__ == "__main__":
    main()
