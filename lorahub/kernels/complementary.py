"""Pruned factors whose units are scaled by what pruning took from them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from lorahub.kernels.selection import below, kth_smallest
from lorahub.kernels.stack import Factors, Stack

RAISED = 0.8
"""Share of an adapter's ratios that are raised to the smallest of the others."""


def scaled_factors(stack: Stack, density: float) -> Factors:
    """The factors of RobustMerge: those of each side added after pruning, B in proportion.

    Per adapter the ``density`` share of largest magnitudes of A and that of B is kept (at least
    one element; of equal magnitudes all). Unit j of adapter t then has the ratio
    s_tj = sum |A_tj| / sum |pruned A_tj| over its row j of A, which is raised to that adapter's
    ratio of rank `RAISED` r; column j of B is multiplied by s_tj / sum_t s_tj. A unit of whose row
    nothing is left has the ratio 0. Weights times scaling are split over both sides by their
    root, the sign on A.

    Sums are made in float64, whatever the dtype of ``stack``, in which the factors leave.

    Args:
        stack: m modules, whose members have one rank.
        density: Share of the elements of each factor to keep, in (0, 1].
    """
    device, dtype = stack.B.device, stack.B.dtype
    if device.type == "mps":  # which has no float64
        stack = stack.to_device(torch.device("cpu"))
    found = [_of_module(module, density) for module in map(stack.module, range(len(stack.B)))]
    B, A = (torch.stack(side).to(device, dtype) for side in zip(*found, strict=True))
    return Factors(B, A)


def _of_module(stack: Stack, density: float) -> tuple[Tensor, Tensor]:
    """B (d_out, r) and A (r, d_in) of a stack's only module."""
    # An adapter of weight 0 has no part in the proportions either.
    alive = [t for t, w in enumerate(stack.weights) if w != 0] or [0]
    A = [stack.split(stack.A[0], 0)[t] for t in alive]
    B = [stack.split(stack.B[0], 1)[t] for t in alive]
    c = torch.stack([stack.split(stack.coefficients[0], 0)[t] for t in alive])[:, :1, None]
    kept = torch.stack([_pruned(x, density) for x in A])
    left = kept.abs().sum(-1)
    ratios = torch.where(left > 0, torch.stack(A).double().abs().sum(-1) / left, 0.0)
    rank = kept.shape[1]
    floor = ratios.sort(-1).values[:, int(rank * RAISED), None]
    ratios = torch.where(left > 0, torch.maximum(ratios, floor), 0.0)
    # The smallest normal number only stands in for 0 / 0.
    shares = ratios / ratios.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    root = c.abs().sqrt()
    merged_b = (torch.stack([_pruned(x, density) for x in B]) * (root * shares[:, None])).sum(0)
    return merged_b, (kept * (root * c.sign())).sum(0)


def _pruned(X: Tensor, density: float) -> Tensor:
    """``X`` in float64, where all but the ``density`` share of largest magnitudes is zero."""
    count = max(1, int(density * X.numel()))
    bound = kth_smallest(X.abs().flatten(), X.numel() - count + 1)
    # NaN is kept, and found in the result.
    return hardshrink(X, below(float(bound), X.dtype)).double()
