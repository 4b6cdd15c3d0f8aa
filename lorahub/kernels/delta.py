"""Merges of single elements of the deltas, by blocks of rows, and their truncation to a rank.

A merge that prunes or elects elements has no form in factor space, and its result is full rank
by nature. What is kept in memory is a block of rows of every adapter's delta, never a whole
d_out x d_in matrix: each pass over the merged delta makes it anew. The truncation is a block
Krylov method (Musco & Musco, NeurIPS 2015, arXiv 1504.05477), whose every step is one such pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorahub.kernels.krylov import EXCESS, Krylov, converged, orthonormal
from lorahub.kernels.lowrank import best_approximation
from lorahub.kernels.stack import Factors, Stack

Prune = Callable[[int, Tensor], None]
"""From the first row and the deltas (T, rows, d_in) of a block; works in place."""

Combine = Callable[[Tensor], Tensor]
"""From the pruned deltas (T, rows, d_in) to the merged block (rows, d_in); may overwrite them."""

# What a core's cache holds beside the rest; a GPU wants larger kernels.
_BLOCK_BYTES = {"cpu": 4 << 20}
_GPU_BLOCK_BYTES = 256 << 20
_FEWEST_ROWS = 16

_OVERSAMPLING = 32
_RANDOM = 8
_MOST_PASSES = 16

# Share of all energy that is rounding.
_ROUNDING = 1e-9

# Units of rounding by which a float32 product of two factors may be off.
_DOUBT = 2.0**-22


@dataclass(frozen=True, slots=True)
class Deltas:
    """The deltas of T adapters at one module, made block by block of rows.

    Adapters of weight 0 are left out. Weights are not in the deltas: elections count what was
    trained, and the weights what is made of it.

    Attributes:
        B: Per adapter (d_out, r), its scaling folded in; float32, or float64 in verification.
        A: Per adapter (r, d_in), the same dtype.
        weights: Weight of each adapter.
        places: Place of each adapter among the members of the module.
        seed: Seed of the module's random choices.
    """

    B: tuple[Tensor, ...]
    A: tuple[Tensor, ...]
    weights: tuple[float, ...]
    places: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, stack: Stack) -> Deltas:
        """The deltas of the only module of ``stack``."""
        kept = [t for t, w in enumerate(stack.weights) if w != 0] or [0]
        B, A = stack.split(stack.B[0], 1), stack.split(stack.A[0], 0)
        starts = torch.tensor((0, *stack.ranks)).cumsum(0)
        weights = [stack.weights[t] for t in kept]
        units = [
            float(stack.coefficients[0, starts[t]]) / (w or 1.0)
            for t, w in zip(kept, weights, strict=True)
        ]
        return cls(
            # In memory of their own: products of unaligned factors may round otherwise.
            tuple(B[t] * unit for t, unit in zip(kept, units, strict=True)),
            tuple(A[t].clone() for t in kept),
            tuple(weights),
            tuple(kept),
            stack.seeds[0],
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.B[0].shape[0], self.A[0].shape[1]

    def blocks(self, lean: float = 0.0) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row and the deltas (T, rows, d_in), in memory used again for the next.

        ``lean`` moves every element by that many times the sum of its products' magnitudes,
        which is what its rounding is proportional to.
        """
        (d_out, d_in), like = self.shape, self.A[0]
        room = _BLOCK_BYTES.get(like.device.type, _GPU_BLOCK_BYTES)
        rows = max(_FEWEST_ROWS, room // (len(self.A) * d_in * like.element_size()))
        whole = like.new_empty(len(self.A), min(rows, d_out), d_in)
        for first in range(0, d_out, rows):
            X = whole[:, : min(rows, d_out - first)]
            for x, B, A in zip(X, self.B, self.A, strict=True):
                part = B[first : first + rows]
                torch.mm(part, A, out=x)
                if lean:
                    x.addmm_(part.abs(), A.abs(), alpha=lean)
            yield first, X


@dataclass(frozen=True, slots=True)
class Merged:
    """A d_out x d_in matrix that elementwise steps make of the deltas, block by block of rows.

    Attributes:
        deltas: What is merged.
        prune: Drops and rescales elements of each delta.
        combine: Makes one delta of them.
    """

    deltas: Deltas
    prune: Prune
    combine: Combine

    def blocks(self, lean: float = 0.0) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows and the merged block (rows, d_in), which the next may overwrite."""
        for first, X in self.deltas.blocks(lean):
            self.prune(first, X)
            yield slice(first, first + X.shape[1]), self.combine(X)


def approximated(stack: Stack, rank: int | None, merge: Callable[[Deltas], Merged]) -> Factors:
    """The merged deltas of every module of ``stack``, truncated to ``rank``.

    Factors leave balanced, in order of descending singular values. With float32 rounding aside,
    their distance from the merged delta is predicted, from the convergence of the Krylov
    method, to be within 1e-6 of the least possible one (measured: a few times nearer).

    Args:
        stack: m modules.
        rank: Rank to keep, at most min(d_out, d_in); None takes the sum of the members' ranks.
        merge: What to make of the deltas of one module.
    """
    k = min(rank or sum(stack.ranks), stack.B.shape[1], stack.A.shape[2])
    if stack.B.device.type == "mps":  # which has no float64
        stack = stack.to_device(torch.device("cpu"))
    found = [_truncated(module, k, merge) for module in map(stack.module, range(len(stack.B)))]
    B, A, sigma, energy = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Factors(B, A, sigma=sigma, energy=energy)


def factorwise(stack: Stack, merge: Callable[[Deltas], Merged]) -> Factors:
    """The B factors merged among themselves, and the A factors, as if each were a delta.

    Weights times scaling are split over both sides by their root, the sign on A, as in PEFT.
    Sums are made in float64, whatever the dtype of ``stack``, in which the factors leave.

    Args:
        stack: m modules, whose members have one rank.
        merge: What to make of the factors of one side.
    """
    device, dtype = stack.B.device, stack.B.dtype
    if device.type == "mps":
        stack = stack.to_device(torch.device("cpu"))
    sides = []
    for module in map(stack.module, range(len(stack.B))):
        raw = Deltas.of(replace(module, coefficients=module.unit_weights[None]))
        starts = [module.ranks[0] * place for place in raw.places]
        c = [float(module.coefficients[0, start]) for start in starts]
        root = tuple(math.sqrt(abs(x)) for x in c)
        signed = tuple(math.copysign(r, x) for r, x in zip(root, c, strict=True))
        B, A = tuple(b.double() for b in raw.B), tuple(a.double() for a in raw.A)
        one = (torch.eye(module.ranks[0], dtype=torch.float64, device=stack.B.device),) * len(B)
        pair = (
            Deltas(B, one, root, raw.places, raw.seed),
            Deltas(one, A, signed, raw.places, raw.seed ^ 1),
        )
        sides.append([torch.cat([b.clone() for _, b in merge(d).blocks()]) for d in pair])
    left, right = (torch.stack(side).to(device, dtype) for side in zip(*sides, strict=True))
    return Factors(left, right)


def _truncated(
    stack: Stack, k: int, merge: Callable[[Deltas], Merged]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """B (d_out, k), A (k, d_in), sigma (k,), squared norm () of the module's merged delta."""
    merged = merge(Deltas.of(stack))
    device, dtype = stack.B.device, stack.B.dtype
    d_out, d_in = merged.deltas.shape
    space = Krylov(_start(stack, min(k + _OVERSAMPLING, d_in)).to(device))
    captured: list[float] = []
    while len(space.block):
        image, back, energy = _pass(merged, space.block.to(dtype))
        space.add(image)
        captured.append(space.captured(k))
        if converged(captured, energy, _ROUNDING) or len(captured) == _MOST_PASSES:
            break
        space.extend(back)
    sigma = space.sigma(k)
    found, root = len(sigma), sigma.sqrt()[:, None]
    left, right = space.vectors(k)
    B, A = stack.B.new_zeros(d_out, k), stack.A.new_zeros(k, d_in)
    B[:, :found] = (left * torch.where(root > 0, 1 / root, 0.0)).mT
    A[:found] = right * root
    sigma = torch.nn.functional.pad(sigma, (0, k - found))
    return B, A, sigma, sigma.new_tensor(energy)


def _start(stack: Stack, width: int) -> Tensor:
    """Orthonormal (width, d_in) float64: the row space of the exact sum, filled up at random.

    What pruning leaves is near the sum: starting there saves a pass. Some directions are always
    random, so that none can be missed.
    """
    guess = best_approximation(stack, rank=width).apply(stack).A[0].cpu().double()
    generator = torch.Generator().manual_seed(stack.seeds[0])
    fill = torch.randn(guess.shape[1], width, generator=generator, dtype=torch.float64).mT
    # Directions of no weight in the sum may be zero, or anything: random ones replace them.
    norms = torch.linalg.vector_norm(guess, dim=1)
    good = guess[norms > 1e-4 * norms.amax()]
    known = orthonormal(good)[: max(0, width - _RANDOM)]
    return torch.cat([known, orthonormal(fill[len(known) :], known)])


def _pass(merged: Merged, V: Tensor) -> tuple[Tensor, Tensor, float]:
    """(V Mᵀ, V MᵀM, squared norm of M) in one pass over the merged delta M, for rows V."""
    d_out, d_in = merged.deltas.shape
    image, back = V.new_empty(d_out, len(V)), V.new_zeros(len(V), d_in)
    energy = V.new_zeros((), dtype=torch.float64)
    for rows, block in merged.blocks():
        torch.mm(block, V.mT, out=image[rows])
        back.addmm_(image[rows].mT, block)
        # Row by row, so that float32 sums stay short.
        energy += torch.linalg.vector_norm(block, dim=1).double().square().sum()
    return image.mT, back, float(energy)


def excess_residual(merged: Merged, scale: float, B: Tensor, A: Tensor) -> float:
    """By how much ``B @ A`` is farther from a merged delta than its rank makes necessary.

    With M = scale times the merged delta, in float64, F = B A and k the rank of F, this is
    ‖M - F‖ - ‖M - G‖, where G is the best approximation of rank k to M within a space of rows
    that contains those of F, one power step on them (MᵀM F's rows), and one on random rows from
    a seed of its own: whatever the factors miss of M, and whatever leading direction they never
    met, that space holds something better. An exact truncation gives 0. G need not be optimal:
    the true excess may be larger by what further power steps would still find.

    Float32 and float64 may decide differently about an element: whether it is above a
    threshold, or which sign is elected. With d the difference that elements make which lean one
    way or the other by their rounding, an F that is best for one decision has, for the other, a
    squared distance within 2 <|F - G|, d> of the best (both are taken element by element): an
    excess that matters is given so much.

    Args:
        merged: The definition, on float64 deltas.
        scale: What it is multiplied by.
        B: (d_out, k) float64.
        A: (k, d_in) float64.

    Returns:
        The excess, in units of the norm of M; not negative.
    """
    k = A.shape[0]
    generator = torch.Generator().manual_seed(~merged.deltas.seed & 0x7FFF_FFFF)
    probes = torch.randn(A.shape[1], k + _OVERSAMPLING, generator=generator, dtype=torch.float64)
    V = torch.cat([A.mT, probes], 1)
    back = torch.zeros_like(V.mT)
    energy = distance = 0.0
    for rows, block in merged.blocks():
        block.mul_(scale)
        distance += float((block - B[rows] @ A).square().sum())
        energy += float(block.square().sum())
        back.addmm_((block @ V).mT, block)
    if energy == 0:
        return math.sqrt(distance)
    Q = orthonormal(A)
    Q = torch.cat([Q, orthonormal(back, Q)])
    image = torch.cat([block @ Q.mT for _, block in merged.blocks()]) * scale
    values, vectors = torch.linalg.eigh(image.mT @ image)
    least = max(0.0, energy - float(values[-k:].sum()))
    excess = math.sqrt(distance) - math.sqrt(least)
    if excess > EXCESS * math.sqrt(energy):
        W = vectors[:, -k:]
        apart = torch.cat([B, -image @ W], 1), torch.cat([A, W.mT @ Q])
        allowed = 2 * abs(scale) * _undecided(merged, *apart)
        excess = math.sqrt(max(least, distance - allowed)) - math.sqrt(least)
    return max(0.0, excess)


def _undecided(merged: Merged, left: Tensor, right: Tensor) -> float:
    """The inner product of ``|left @ right|`` with what rounding may change of merged elements."""
    total = 0.0
    leaning = [merged.blocks(lean) for lean in (-_DOUBT, _DOUBT)]
    for rows, block in merged.blocks():
        kept = block.clone()
        changes = [(next(blocks)[1] - kept).abs() for blocks in leaning]
        total += float((torch.maximum(*changes) * (left[rows] @ right).abs()).sum())
    return total
