"""Core space: the adapters of a module as small matrices between common orthonormal bases.

With orthonormal bases Q_B of all columns of B and Q_A of all rows of A, every weighted delta is
``Q_B C_t Q_Aᵀ`` with an R x R core C_t, and a merge of the cores is a merge of the deltas: what
commutes with rotations (sums, singular vectors, polar factors) is exactly what it would be on
the dense matrices, at a cost that does not depend on their size. Rules that work entry by entry
depend on the axes; functions here name theirs. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from lorahub.kernels.batched import factorised, products
from lorahub.kernels.lowrank import whitened_sides
from lorahub.kernels.stack import Mix, Stack

NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest count as zero."""

_WELL_APART = 1e-4
"""Share of the largest squared singular value above which all are known from a Gram matrix."""

ROUNDING = 1e-10
"""Entries below this share of all adapters together hold nothing but rounding."""


@dataclass(frozen=True)
class CoreSpace:
    """The T adapters with a weight other than 0, at m modules of one shape.

    The weighted delta of adapter t, of rank r, is ``(B @ left) @ cores[t] @ (right @ A)``.

    Attributes:
        left: (m, R, R) float64; ``B @ left`` has orthonormal columns, zero ones beyond the
            rank of B.
        right: (m, R, R) float64; the same for the rows of ``right @ A``.
        columns: T of (m, R, r) float64; core t is ``columns[t] @ rows[t].mT``. One of zeros where
            no adapter has a weight.
        rows: T of (m, R, r) float64.
    """

    left: Tensor
    right: Tensor
    columns: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]

    @cached_property
    def cores(self) -> Tensor:
        """(T, m, R, R) float64."""
        pairs = zip(self.columns, self.rows, strict=True)
        return torch.stack([products(column, row.mT) for column, row in pairs])

    @cached_property
    def total(self) -> Tensor:
        """(m, R, R): the core of the weighted sum."""
        return products(torch.cat(self.columns, -1), torch.cat(self.rows, -1).mT)

    @cached_property
    def rounding(self) -> Tensor:
        """(m,): size below which an entry or a singular value is rounding."""
        pairs = zip(self.columns, self.rows, strict=True)
        squares = [
            (products(column.mT, column) * products(row.mT, row)).sum((-2, -1))
            for column, row in pairs
        ]
        return torch.stack(squares).sum(0).clamp_min(0).sqrt() * ROUNDING

    def module(self, i: int) -> CoreSpace:
        """The space of module i alone."""
        one = slice(i, i + 1)
        columns, rows = (tuple(x[one] for x in side) for side in (self.columns, self.rows))
        return CoreSpace(self.left[one], self.right[one], columns, rows)


Decomposition = tuple[Tensor, Tensor, Tensor]
"""U (m, R, R), singular values (m, R), descending, and Vᵀ (m, R, R) of a core."""

Combine = Callable[[CoreSpace], Tensor | Decomposition]


def core_space(stack: Stack) -> CoreSpace:
    """The weighted deltas of a stack in orthonormal bases of its columns and rows."""
    (W_b, K_b), (W_a, K_a) = whitened_sides(stack)
    K_b = K_b * stack.coefficients[:, None, :]
    alive = [t for t, weight in enumerate(stack.weights) if weight != 0]
    columns, rows = stack.split(K_b, 2), stack.split(K_a, 2)
    if not alive:
        alive, columns = [0], (torch.zeros_like(columns[0]),)
    return CoreSpace(W_b, W_a.mT, tuple(columns[t] for t in alive), tuple(rows[t] for t in alive))


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
            (m, R, R), or to its decomposition where that is known.
        rank: Ranks to keep; None keeps what the shapes allow.
    """
    space = core_space(stack)
    core = combine(space) if len(space.columns) > 1 else space.total
    return _mix(stack, space, *_decomposed(core), rank)


def flattened(stack: Stack, combine: Combine, rank: int | None = None) -> Mix:
    """As `merged`, with all non-zero singular values at their mean.

    The level is the mean over the full spectrum whatever ``rank`` keeps: the mean over the kept
    values would grow as ranks are cut. Ranks stay in order of the singular values that they
    had, which are the mixture's ``importance``.
    """
    space = core_space(stack)
    if len(space.columns) < 2:
        return merged(stack, combine, rank)
    U, sigma, Vh = _decomposed(combine(space))
    flat = flat_spectrum(sigma, space)
    importance = torch.where(flat > 0, sigma, 0.0)
    return _mix(stack, space, U, flat, Vh, rank, importance=importance)


def flat_spectrum(sigma: Tensor, space: CoreSpace) -> Tensor:
    """Singular values (m, R) with all non-zero ones at their mean."""
    kept = non_zero(sigma, space)
    level = (sigma * kept).sum(-1) / kept.sum(-1).clamp_min(1)
    return level[:, None] * kept


def _decomposed(core: Tensor | Decomposition) -> Decomposition:
    return svd(core) if isinstance(core, Tensor) else core


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


def svd(X: Tensor) -> Decomposition:
    """U, the singular values and Vᵀ, thin."""
    U, sigma, Vh = factorised(partial(torch.linalg.svd, full_matrices=False), X)
    return U, sigma, Vh


def non_zero(sigma: Tensor, space: CoreSpace) -> Tensor:
    """Which singular values are not zero."""
    return sigma > torch.maximum(sigma[..., :1] * NEGLIGIBLE, space.rounding[:, None])


def polar(X: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest matrix with orthonormal columns; dependent directions become zero.

    Args:
        X: (m, R, k), whose columns are of unit length or zero. Columns of zeros stay so.

    Returns:
        The matrix (m, R, k), and per module (m,) whether its columns are orthonormal but for
        those of zeros: not where others depended on each other.
    """
    gram = products(X.mT, X)
    # A column of zeros is orthogonal to all others: with length 1 it does not matter.
    gram = gram + torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) == 0).to(gram.dtype))
    values, vectors = factorised(torch.linalg.eigh, gram)
    apart = values[:, 0] > values[:, -1] * _WELL_APART
    root = torch.where(apart[:, None], values, 1.0).sqrt()
    nearest = products(X, products(vectors / root[:, None, :], vectors.mT))
    if not bool(apart.all()):
        P, sigma, Qh = svd(X)
        kept = sigma > sigma[..., :1] * NEGLIGIBLE
        slow = products(P * kept[..., None, :], Qh)
        nearest = torch.where(apart[:, None, None], nearest, slow)
    return nearest, apart


def task_singular_vectors(space: CoreSpace, keep: int | None) -> Decomposition:
    """The core of TSV-Merge.

    The leading triplets of every adapter side by side; the left vectors are replaced by the
    nearest orthonormal ones, and so are the right ones.

    Args:
        space: At least two adapters.
        keep: Triplets kept of each; None keeps all.
    """
    pairs = zip(space.columns, space.rows, strict=True)
    return _orthogonalised(space, [_triplets(column, row, keep) for column, row in pairs])


def _triplets(columns: Tensor, rows: Tensor, keep: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets (U, sigma, V) of ``columns @ rows.mT``, by its thin parts."""
    (Q, K), (P, L) = factorised(torch.linalg.qr, columns), factorised(torch.linalg.qr, rows)
    U, sigma, Vh = svd(products(K, L.mT))
    return products(Q, U[:, :, :keep]), sigma[:, :keep], products(P, Vh.mT[:, :, :keep])


def common_and_specific(space: CoreSpace, common: float) -> Decomposition:
    """The core of Iso-CTS before its spectrum is flattened.

    Module by module where their dimensions differ.

    Args:
        space: At least two adapters.
        common: Share of the dimensions given to the singular vectors of the sum.
    """
    sizes = torch.minimum(*(_dimension(side) for side in both_sides(space))).tolist()
    if len(set(sizes)) == 1:
        return _common_and_specific(space, sizes[0], common)
    found = [_common_and_specific(space.module(i), size, common) for i, size in enumerate(sizes)]
    U, sigma, Vh = (torch.cat(parts) for parts in zip(*found, strict=True))
    return U, sigma, Vh


def both_sides(space: CoreSpace) -> tuple[Tensor, Tensor]:
    """The deltas side by side, and on top of each other, transposed, in shorter bases.

    Both are (m, R, sum of ranks), with the left singular vectors and the singular values of the
    R x TR matrices.
    """
    pairs = list(zip(space.columns, space.rows, strict=True))
    triangles = (
        (factorised(torch.linalg.qr, c)[1], factorised(torch.linalg.qr, r)[1]) for c, r in pairs
    )
    sides = [
        (products(c, of_rows.mT), products(r, of_columns.mT))
        for (c, r), (of_columns, of_rows) in zip(pairs, triangles, strict=True)
    ]
    left, right = (torch.cat(parts, -1) for parts in zip(*sides, strict=True))
    return left, right


def _dimension(side: Tensor) -> Tensor:
    """(m,): the rank of vectors side by side."""
    (squares,) = factorised(lambda X: (torch.linalg.eigvalsh(X),), products(side, side.mT))
    dimension: Tensor = (squares > squares[:, -1:] * NEGLIGIBLE**2).sum(-1)
    return dimension


def _common_and_specific(space: CoreSpace, size: int, common: float) -> Decomposition:
    tasks = len(space.columns)
    specific = min(round((1 - common) * size / tasks), size // tasks)
    U, sigma, Vh = svd(space.total)
    first = slice(0, size - tasks * specific)
    shared = U[:, :, first]
    parts = [(shared, sigma[:, first], Vh.mT[:, :, first])]
    for column, row in zip(space.columns, space.rows, strict=True):
        own = column - products(shared, products(shared.mT, column))
        parts.append(_triplets(own, row, specific))
    return _orthogonalised(space, parts)


def _orthogonalised(
    space: CoreSpace, parts: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Decomposition:
    """Singular triplets (U, sigma, V) side by side, with the nearest orthonormal vectors."""
    sigma = torch.cat([values for _, values, _ in parts], -1)
    # Vectors of singular values that are zero are arbitrary: they must not push others away.
    largest = sigma.amax(-1) * NEGLIGIBLE
    alive = sigma > torch.maximum(largest, space.rounding)[:, None]
    # In descending order, and as many as the core has.
    sigma, order = (sigma * alive).sort(dim=-1, descending=True, stable=True)
    R = space.left.shape[-1]
    place, more = order[:, None, :].expand(-1, R, -1), (0, R - order.shape[-1])
    sides = [torch.cat([p[side] for p in parts], -1) * alive[:, None, :] for side in (0, 2)]
    (left, left_apart), (right, right_apart) = (polar(side.gather(-1, place)) for side in sides)
    left, right, sigma = (torch.nn.functional.pad(x, more) for x in (left, right, sigma))
    apart = left_apart & right_apart
    if not bool(apart.all()):
        found = svd(products(left * sigma[:, None, :], right.mT))
        left = torch.where(apart[:, None, None], left, found[0])
        sigma = torch.where(apart[:, None], sigma, found[1])
        right = torch.where(apart[:, None, None], right, found[2].mT)
    return left, sigma, right.mT.contiguous()


def recomposed(decomposition: Decomposition) -> Tensor:
    """The core (m, R, R) of its singular vectors and values."""
    U, sigma, Vh = decomposition
    return products(U * sigma[:, None, :], Vh)


def centred(space: CoreSpace, keep: int) -> Tensor:
    """The core of CART: the mean, and each adapter's leading part of what differs from it."""
    mean = space.cores.mean(0)
    total = mean
    for core in space.cores:
        U, sigma, Vh = svd(core - mean)
        total = total + products(U[:, :, :keep] * sigma[:, None, :keep], Vh[:, :keep])
    return total


def with_mean_norm(space: CoreSpace, core: Tensor) -> Tensor:
    """``core`` with the mean norm of the adapters; zero where it is nothing beside them."""
    mean = space.cores.square().sum((-2, -1)).sqrt().mean(0)
    norm = core.square().sum((-2, -1)).sqrt()
    factor = torch.where(norm > mean * NEGLIGIBLE, mean / norm.clamp_min(1e-300), 0.0)
    return core * factor[:, None, None]
