"""Elementwise merges of one 4096 x 4096 module, four rank-16 adapters to rank 16, density 0.2.

PEFT's `_svd` forms against ours. Where both prune alike, residuals are taken from one dense merge
in float64; PEFT drops at random by another generator, so that DARE is compared with the least
residual of its own merged delta.
"""

from __future__ import annotations

import resource
import statistics
import time

import torch

from benchmarks.svd_module import RANK, peft_merge, stacked
from lorahub.kernels.dense import singular_values
from lorahub.kernels.stack import Factors
from lorahub.methods.registry import get

DENSITY = 0.2
PEFT = {
    "ties": "ties_svd",
    "magnitude_prune": "magnitude_prune_svd",
    "dare": "dare_linear_svd",
    "dare_ties": "dare_ties_svd",
}


def main() -> None:
    """Print both times in CPU seconds at one thread, their ratio, excess residuals and memory."""
    torch.set_num_threads(1)
    stack = stacked()
    ours: dict[str, tuple[Factors, float]] = {}
    for name in [*PEFT, "breadcrumbs", "della"]:
        method = get(name)
        parameters = method.parameters({"rank": RANK, "density": DENSITY})
        times = []
        for _ in range(3):
            start = time.process_time()
            factors = method.rule(stack, **parameters)
            times.append(time.process_time() - start)
        assert isinstance(factors, Factors)
        ours[name] = factors, statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of ours, torch included: {peak:.0f} MiB")
    for name, (factors, seconds) in ours.items():
        print(f"lorahub {name:16s} {seconds:7.3f} s")
        if name not in PEFT:
            continue
        theirs, peft_seconds = peft_merge(PEFT[name], density=DENSITY)
        merged = _dense(name)
        residual = float((merged - factors.B[0].double() @ factors.A[0].double()).norm())
        if name.startswith("dare"):
            sigma = torch.from_numpy(singular_values(merged))
            least = float(sigma[RANK:].norm())
        else:
            least = float((merged - theirs).norm())
        excess = residual / least - 1
        print(
            f"PEFT    {PEFT[name]:20s} {peft_seconds:7.2f} s   "
            f"ratio {peft_seconds / seconds:.0f} x, excess residual {excess:.1e}"
        )


def _dense(name: str) -> torch.Tensor:
    """The merged delta whole, from float32 elements."""
    method, stack = get(name), stacked()
    parameters = method.parameters({"density": DENSITY})
    merged = method.definition(stack, [], parameters)
    return torch.cat([block.double() for _, block in merged.blocks()])


if __name__ == "__main__":
    main()
