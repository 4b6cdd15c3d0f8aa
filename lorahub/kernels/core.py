"""Core space: the adapters of a module as small matrices between common orthonormal bases.

With orthonormal bases Q_B of all columns of B and Q_A of all rows of A, every weighted delta is
``Q_B C_t Q_Aᵀ`` with an R x R core C_t, and a merge of the cores is a merge of the deltas: what
commutes with rotations (sums, singular vectors, polar factors) is exactly what it would be on
the dense matrices, at a cost that does not depend on their size. Rules that work entry by entry
depend on the axes; functions here name theirs. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lorahub.kernels.lowrank import whitened
from lorahub.kernels.stack import Mix, Stack, factorised, products

_NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest count as zero."""

_ROUNDING = 1e-10
"""Entries below this share of all adapters together hold nothing but rounding."""


@dataclass(frozen=True, slots=True)
class CoreSpace:
    """The T adapters with a weight other than 0, at m modules of one shape.

    The weighted delta of adapter t is ``(B @ left) @ cores[t] @ (right @ A)``.

    Attributes:
        left: (m, R, R) float64; ``B @ left`` has orthonormal columns, zero ones beyond the
            rank of B.
        right: (m, R, R) float64; the same for the rows of ``right @ A``.
        cores: (T, m, R, R) float64; one core of zeros where no adapter has a weight.
        ranks: Rank of each of the T adapters.
    """

    left: Tensor
    right: Tensor
    cores: Tensor
    ranks: tuple[int, ...]

    @property
    def total(self) -> Tensor:
        """(m, R, R): the core of the weighted sum."""
        return self.cores.sum(0)

    @property
    def rounding(self) -> Tensor:
        """(m,): size below which an entry or a singular value is rounding."""
        return self.cores.square().sum((0, -2, -1)).sqrt() * _ROUNDING


Combine = Callable[[CoreSpace], Tensor]
Axes = tuple[Tensor, Tensor]


def core_space(stack: Stack) -> CoreSpace:
    """The weighted deltas of a stack in orthonormal bases of its columns and rows."""
    W_b, K_b = whitened(stack.precise_grams[0])
    W_a, K_a = whitened(stack.precise_grams[1])
    K_b = K_b * stack.coefficients[:, None, :]
    members = zip(stack.weights, stack.ranks, stack.split(K_b, 2), stack.split(K_a, 2), strict=True)
    alive = [(rank, products(k_b, k_a.mT)) for weight, rank, k_b, k_a in members if weight != 0]
    if not alive:
        alive = [(stack.ranks[0], torch.zeros_like(W_b))]
    return CoreSpace(
        W_b, W_a.mT, torch.stack([core for _, core in alive]), tuple(rank for rank, _ in alive)
    )


def mean_rank(stack: Stack) -> int:
    """Mean rank of the adapters with a weight, rounded."""
    alive = [r for r, w in zip(stack.ranks, stack.weights, strict=True) if w != 0]
    return round(sum(alive) / len(alive)) if alive else 1


def merged(stack: Stack, combine: Combine, rank: int | None = None) -> Mix:
    """What ``combine`` makes of the cores, as balanced ranks in descending order.

    One adapter alone has nothing to be merged with: it comes back as it is.

    Args:
        stack: m modules.
        combine: Function from a `CoreSpace` of at least two adapters to the merged core
            (m, R, R).
        rank: Ranks to keep; None keeps what the shapes allow.
    """
    space = core_space(stack)
    core = combine(space) if len(space.cores) > 1 else space.total
    U, sigma, Vh = _svd(core)
    return _mix(stack, space, U, sigma, Vh, rank)


def flattened(stack: Stack, combine: Combine, rank: int | None = None) -> Mix:
    """As `merged`, with all non-zero singular values at their mean.

    The level is the mean over the full spectrum whatever ``rank`` keeps: the mean over the kept
    values would grow as ranks are cut. Ranks stay in order of the singular values that they
    had, which are the mixture's ``importance``.
    """
    space = core_space(stack)
    if len(space.cores) < 2:
        return merged(stack, combine, rank)
    U, sigma, Vh = _svd(combine(space))
    alive = _alive(sigma, space)
    level = (sigma * alive).sum(-1) / alive.sum(-1).clamp_min(1)
    return _mix(stack, space, U, level[:, None] * alive, Vh, rank, importance=sigma * alive)


def _mix(
    stack: Stack,
    space: CoreSpace,
    U: Tensor,
    sigma: Tensor,
    Vh: Tensor,
    rank: int | None,
    importance: Tensor | None = None,
) -> Mix:
    R, d_out, d_in = stack.B.shape[2], stack.B.shape[1], stack.A.shape[2]
    k = min(R, d_out, d_in, rank or R)
    root = sigma[:, :k].sqrt()
    return Mix(
        products(space.left, U[:, :, :k] * root[:, None, :]),
        products(Vh[:, :k] * root[:, :, None], space.right),
        sigma=sigma[:, :k],
        importance=None if importance is None else importance[:, :k],
        precise=(True,) * len(U),
    )


def _svd(X: Tensor) -> tuple[Tensor, ...]:
    """U, the singular values and Vᵀ, thin."""
    return factorised(partial(torch.linalg.svd, full_matrices=False), X)


def _alive(sigma: Tensor, space: CoreSpace) -> Tensor:
    """Which singular values are not zero."""
    return sigma > torch.maximum(sigma[..., :1] * _NEGLIGIBLE, space.rounding[:, None])


def polar(X: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows); dependent directions become zero."""
    P, sigma, Qh = _svd(X)
    kept = sigma > sigma[..., :1] * _NEGLIGIBLE
    return products(P * kept[..., None, :], Qh)


def task_singular_vectors(space: CoreSpace, keep: int | None) -> Tensor:
    """The core of TSV-Merge.

    The leading triplets of every adapter side by side; the left vectors are replaced by the
    nearest orthonormal ones, and so are the right ones.

    Args:
        space: At least two adapters.
        keep: Triplets kept of each; None keeps all.
    """
    parts = []
    for core, rank in zip(space.cores, space.ranks, strict=True):
        k = min(rank, keep or rank)
        U, sigma, Vh = _svd(core)
        parts.append((U[:, :, :k], sigma[:, :k], Vh.mT[:, :, :k]))
    return _orthogonalised(space, parts)


def common_and_specific(space: CoreSpace, common: float) -> Tensor:
    """The core of Iso-CTS before its spectrum is flattened.

    Module by module, because their dimensions differ.

    Args:
        space: At least two adapters.
        common: Share of the dimensions given to the singular vectors of the sum.
    """
    rows = torch.stack([products(core, core.mT) for core in space.cores]).sum(0)
    columns = torch.stack([products(core.mT, core) for core in space.cores]).sum(0)
    sizes = torch.minimum(_dimension(rows), _dimension(columns)).tolist()
    parts = zip(space.cores.split(1, 1), sizes, strict=True)
    ones = ((replace(space, cores=cores), size) for cores, size in parts)
    return torch.cat([_common_and_specific(one, size, common) for one, size in ones])


def _dimension(gram: Tensor) -> Tensor:
    """(m,): the rank of vectors with that Gram matrix."""
    (squares,) = factorised(lambda X: (torch.linalg.eigvalsh(X),), gram)
    dimension: Tensor = (squares > squares[:, -1:] * _NEGLIGIBLE**2).sum(-1)
    return dimension


def _common_and_specific(space: CoreSpace, size: int, common: float) -> Tensor:
    tasks = len(space.cores)
    specific = min(round((1 - common) * size / tasks), size // tasks)
    U, sigma, Vh = _svd(space.total)
    first = slice(0, size - tasks * specific)
    parts = [(U[:, :, first], sigma[:, first], Vh.mT[:, :, first])]
    for core in space.cores:
        own = core - products(parts[0][0], products(parts[0][0].mT, core))
        U, sigma, Vh = _svd(own)
        parts.append((U[:, :, :specific], sigma[:, :specific], Vh.mT[:, :, :specific]))
    return _orthogonalised(space, parts)


def _orthogonalised(space: CoreSpace, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Singular triplets (U, sigma, V) side by side, with the nearest orthonormal vectors."""
    sigma = torch.cat([values for _, values, _ in parts], -1)
    # Vectors of singular values that are zero are arbitrary: they must not push others away.
    largest = sigma.amax(-1) * _NEGLIGIBLE
    alive = (sigma > torch.maximum(largest, space.rounding)[:, None])[:, None, :]
    left, right = (polar(torch.cat([p[side] for p in parts], -1) * alive) for side in (0, 2))
    return products(left * sigma[:, None, :], right.mT)


def centred(space: CoreSpace, keep: int) -> Tensor:
    """The core of CART: the mean, and each adapter's leading part of what differs from it."""
    mean = space.cores.mean(0)
    total = mean
    for core in space.cores:
        U, sigma, Vh = _svd(core - mean)
        total = total + products(U[:, :, :keep] * sigma[:, None, :keep], Vh[:, :keep])
    return total


def axes_of_deltas(space: CoreSpace) -> Axes:
    """Singular vectors of the deltas side by side (left) and on top of each other (right).

    They depend on the deltas alone, not on how those are split into factors. Axes of no length
    are zero.
    """
    U, left, _ = _svd(torch.cat(list(space.cores), -1))
    _, right, Vh = _svd(torch.cat(list(space.cores), -2))
    return (
        U * _alive(left, space)[:, None, :],
        Vh.mT * _alive(right, space)[:, None, :],
    )


def axes_of_factors(stack: Stack, space: CoreSpace) -> Axes:
    """Singular vectors of the stacked B and of the stacked A, coefficients split evenly.

    They depend on how each delta is split into factors, beyond permutations and signs of ranks.
    Axes of no length are zero.
    """
    (U, left), (V, right) = _factors_svd(stack, space)
    return (
        U * (left > left[:, :1] * _NEGLIGIBLE)[:, None, :],
        V * (right > right[:, :1] * _NEGLIGIBLE)[:, None, :],
    )


def _factors_svd(stack: Stack, space: CoreSpace) -> list[tuple[Tensor, Tensor]]:
    """Singular vectors and values of the stacked B and of the stacked A, in the bases."""
    half = stack.coefficients.abs().sqrt()
    sides = zip((space.left, space.right.mT), stack.precise_grams, strict=True)
    # The transposed basis times the Gram matrix: the stacked factors' coordinates.
    found = (_svd(products(W.mT, gram) * half[:, None, :]) for W, gram in sides)
    return [(U, sigma) for U, sigma, _ in found]


def calibrated(stack: Stack, space: CoreSpace) -> CoreSpace:
    """The cores with the directions that the stacked B has most of scaled down, as in Pico.

    A left direction that holds the share c of the squared norm of the stacked B is multiplied
    by 1 / (1 + (T - 1) c).
    """
    U, sigma = _factors_svd(stack, space)[0]
    energy = sigma.square()
    share = energy / energy.sum(-1, keepdim=True).clamp_min(1e-300)
    alpha = 1 / (1 + (len(space.cores) - 1) * share)
    damping = products(U * alpha[:, None, :], U.mT)
    return replace(space, cores=torch.stack([products(damping, core) for core in space.cores]))


def with_mean_norm(space: CoreSpace, core: Tensor) -> Tensor:
    """``core`` with the mean norm of the adapters; zero where it is nothing beside them."""
    mean = space.cores.square().sum((-2, -1)).sqrt().mean(0)
    norm = core.square().sum((-2, -1)).sqrt()
    factor = torch.where(norm > mean * _NEGLIGIBLE, mean / norm.clamp_min(1e-300), 0.0)
    return core * factor[:, None, None]


def projected_sum(space: CoreSpace, axes: Axes) -> Tensor:
    """The sum of the cores, projected onto ``axes``."""
    return _restored(axes, _seen(axes, space.total))


def ties(space: CoreSpace, axes: Axes, density: float) -> Tensor:
    """TIES on the entries of the cores along ``axes``: trim, elect a sign, average what agrees.

    Per adapter the share ``density`` of the entries is kept, by magnitude (at least one; of the
    entries between axes that are not zero). The sign with the larger mass is elected; where the
    masses balance there is none. Every entry is the mean of the kept ones of the elected sign.
    """
    cores = torch.stack([_seen(axes, core) for core in space.cores])
    # Rounding has a sign too, and would be counted in the means.
    cores = torch.where(cores.abs() > space.rounding[:, None, None], cores, 0.0)
    count = (density * _length(axes[0]) * _length(axes[1])).long().clamp_min(1)
    ordered = cores.abs().flatten(-2).sort(-1, descending=True).values
    last = (count - 1).expand(len(cores), -1)[..., None]
    kept = torch.where(cores.abs() >= ordered.gather(-1, last)[..., None], cores, 0.0)
    mass, whole = kept.sum(0), kept.abs().sum(0)
    elected = torch.where(mass.abs() > whole * _ROUNDING, mass.sign(), 0.0)
    agree = kept * elected > 0
    return _restored(axes, (kept * agree).sum(0) / agree.sum(0).clamp_min(1))


def _seen(axes: Axes, core: Tensor) -> Tensor:
    """A core along ``axes``."""
    return products(products(axes[0].mT, core), axes[1])


def _restored(axes: Axes, core: Tensor) -> Tensor:
    """What is a core along ``axes``, in the bases of the core space."""
    return products(products(axes[0], core), axes[1].mT)


def _length(axes: Tensor) -> Tensor:
    """(m,): how many axes are not zero."""
    return (axes.square().sum(-2) > 0).sum(-1)
