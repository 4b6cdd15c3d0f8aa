"""LoRA-LEGO's clustering of one 4096 x 4096 module: scikit-learn's KMeans against ours.

Both cluster the same units, k = 16 and ten restarts: scikit-learn the vectors of length 8192,
ours their Gram matrix, whose making is part of our time, as are the merged factors.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

from benchmarks.data import factors
from lorahub.kernels.kmeans import cluster
from lorahub.kernels.stack import Factors, Stack
from lorahub.kernels.units import features_of, units_of
from lorahub.methods.registry import MergeRule, get

SIZE, RANK, CLUSTERS, RESTARTS = 4096, 16, 16, 10
MODULES = 200


def main() -> None:
    """Print CPU seconds per module at one thread, their ratio, and the mean inertias."""
    torch.set_num_threads(1)
    lego = get("lego")
    for adapters, batch in ((4, 4), (16, 1)):
        stack = _stack(range(batch), adapters)
        parameters = lego.parameters({"rank": CLUSTERS, "restarts": RESTARTS})
        merge = partial(_merge, lego.rule, stack, parameters)
        ours = _seconds(merge, 9) / batch
        points = _points(_stack(range(1), adapters))
        theirs = _seconds(partial(KMeans(CLUSTERS, n_init=RESTARTS).fit, points), 3)
        print(f"N = {adapters:2d}: scikit-learn {theirs * 1e3:7.1f} ms, lorahub "
              f"{ours * 1e3:5.2f} ms a module, ratio {theirs / ours:.0f}")  # fmt: skip
    print(f"inertia over {MODULES} modules, ours / scikit-learn's: {_inertia():.4f}")


def _stack(seeds: range, adapters: int) -> Stack:
    pairs = [[factors(s * 1009 + t, SIZE, SIZE, RANK) for t in range(adapters)] for s in seeds]
    return Stack(
        torch.stack([torch.cat([B.float() for B, _ in one], 1) for one in pairs]),
        torch.stack([torch.cat([A.float() for _, A in one], 0) for one in pairs]),
        torch.ones(len(pairs), adapters * RANK, dtype=torch.float64),
        (RANK,) * adapters,
        (1.0,) * adapters,
        tuple(seeds),
    )


def _merge(rule: MergeRule, stack: Stack, parameters: Mapping[str, Any]) -> Factors:
    """Everything from the stacked factors to the merged ones; nothing is kept between calls."""
    fresh = replace(stack)
    return rule(fresh, **parameters).apply(fresh)


def _points(stack: Stack) -> np.ndarray:
    """The units as rows, both halves at norm 1."""
    a = stack.A[0] / stack.A[0].norm(dim=1, keepdim=True)
    b = (stack.B[0] / stack.B[0].norm(dim=0)).mT
    return torch.cat([a, b], 1).numpy()


def _inertia() -> float:
    ours, theirs = [], []
    for seed in range(MODULES):
        stack = _stack(range(seed, seed + 1), 4)
        units = units_of(stack, "native")
        found = cluster(
            features_of(units, "unit_halves"), units.weights, CLUSTERS,
            seeds=[seed], restarts=RESTARTS, align=False,
        )  # fmt: skip
        ours.append(float(found.inertia[0]))
        # Distances are all that KMeans sees, and QR keeps them: the same points, shorter.
        short = np.linalg.qr(_points(stack).T.astype(np.float64))[1].T
        theirs.append(KMeans(CLUSTERS, n_init=RESTARTS, random_state=seed).fit(short).inertia_)
    return float(np.mean(ours) / np.mean(theirs))


def _seconds(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times + 1):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
