"""Means along great circles: each delta a direction with a length, per module.

Both means are linear combinations of the deltas, whose coefficients follow from their inner
products <B_s A_s, B_t A_t> = tr(B_sᵀB_t A_tA_sᵀ) alone. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorahub.kernels.batched import products
from lorahub.kernels.lowrank import best_approximation, exact_sum
from lorahub.kernels.stack import Mix, Stack

_NEARLY_PARALLEL = 0.9995
"""Cosine from which on a great circle and the chord are the same, or the circle is undefined."""

_STEPS = 100
_CONVERGED = 1e-9

Coefficients = Callable[[Tensor, Tensor], Tensor]


def combined(stack: Stack, coefficients: Coefficients, rank: int | None) -> Mix:
    """The combination of the deltas with ``coefficients(inner, weights)``.

    The sign of a weight belongs to the delta, its size is the share; adapters whose delta is
    zero at a module have no share there.

    Args:
        stack: m modules, T adapters.
        coefficients: Function from the deltas' inner products (m, T, T) and their shares (m, T),
            which add up to 1 or are all zero, to the coefficients (m, T).
        rank: Ranks to keep; None keeps all without a truncation.
    """
    gram_b, gram_a = stack.precise_grams
    sizes = stack.unit_weights.abs()
    fold = stack.coefficients / torch.where(sizes > 0, sizes, 1.0)
    dots = gram_b * gram_a * fold[:, :, None] * fold[:, None, :]
    blocks = [stack.split(rows, 2) for rows in stack.split(dots, 1)]
    inner = torch.stack([torch.stack([b.sum((-2, -1)) for b in row], -1) for row in blocks], -2)
    weights = torch.tensor(stack.weights, dtype=gram_b.dtype, device=gram_b.device).abs()
    weights = weights * (inner.diagonal(dim1=-2, dim2=-1) > 0)
    whole = weights.sum(-1, keepdim=True)
    found = coefficients(inner, weights / torch.where(whole > 0, whole, 1.0))
    mixed = stack.reweighted(fold * _of_ranks(stack, found), stack.weights, stack.seeds)
    if rank is None:
        return exact_sum(mixed)
    return best_approximation(mixed.with_grams(gram_b, gram_a), rank=rank)


def _of_ranks(stack: Stack, values: Tensor) -> Tensor:
    """(m, R): the value of the adapter that each rank belongs to."""
    return values.repeat_interleave(torch.tensor(stack.ranks, device=values.device), dim=-1)


def slerp(inner: Tensor, weights: Tensor) -> Tensor:
    """Coefficients (m, T) of spherical interpolation, for at most two adapters.

    With the angle theta between the deltas and the share t of the second, they are
    sin((1 - t) theta) / sin(theta) and sin(t theta) / sin(theta); 1 - t and t where the deltas
    are parallel or opposite.
    """
    if inner.shape[-1] < 2:
        return (weights > 0).to(weights.dtype)
    norms = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    lengths = norms[:, 0] * norms[:, 1]
    cosine = inner[:, 0, 1] / torch.where(lengths > 0, lengths, 1.0)
    theta = cosine.clamp(-1, 1).arccos()[:, None]
    straight = (cosine.abs() > _NEARLY_PARALLEL)[:, None]
    turned = (weights * theta).sin() / torch.where(straight, 1.0, theta.sin())
    return torch.where(straight, weights, turned)


def karcher(inner: Tensor, weights: Tensor) -> Tensor:
    """Coefficients (m, T) of the Karcher mean of the directions, with the mean of the lengths.

    The direction minimises the weighted sum of squared angles; it is found by fixed-point steps
    u <- exp_u(sum w_t log_u(u_t)) from the normalised weighted mean. Where that mean vanishes,
    as for an adapter and its negative, there is no direction and the coefficients are zero.
    """
    norms = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    cosines = inner / (safe[:, :, None] * safe[:, None, :])

    def dots(x: Tensor) -> Tensor:
        return products(cosines, x[..., None])[..., 0]

    def length(x: Tensor) -> Tensor:
        return (x * dots(x)).sum(-1, keepdim=True).clamp_min(0).sqrt()

    start = length(weights)
    defined = start > 1e-6
    u = torch.where(defined, weights / torch.where(defined, start, 1.0), 0.0)
    for _ in range(_STEPS):
        cosine = dots(u).clamp(-1, 1)
        sine = (1 - cosine.square()).sqrt()
        # What is opposite to the mean pulls in every direction alike, so in none.
        pole = (cosine > 0).to(sine.dtype)
        ratio = torch.where(sine > 1e-7, cosine.arccos() / sine.clamp_min(1e-7), pole)
        pull = weights * ratio
        tangent = pull - (pull * cosine).sum(-1, keepdim=True) * u
        step = length(tangent)
        # Each module stops by itself, so that none depends on the others of its batch.
        moving = defined & (step > _CONVERGED)
        if not bool(moving.any()):
            break
        further = step.cos() * u + step.sin() / step.clamp_min(_CONVERGED) * tangent
        u = torch.where(moving, further / length(further).clamp_min(_CONVERGED), u)
    mean = (weights * norms).sum(-1, keepdim=True)
    return torch.where(defined, mean * u / safe, 0.0)
