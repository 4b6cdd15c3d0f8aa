"""How the adapters of a stack relate, from Gram matrices in float64.

Norms and spectra come from cores, angles between subspaces from whitened blocks. Two figures need
more than that and get it in bounded pieces: the L1,2 norm the lengths of the deltas' columns,
sign conflict a few of their rows. No delta is ever whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorahub.kernels.lowrank import factored, whitened
from lorahub.kernels.stack import Stack

_ROWS_AT_ONCE = 8

Cosines = tuple[float, ...]


class Relations:
    """The deltas of T adapters at m modules of one shape, with their coefficients.

    Dependent columns of a factor are no dimensions of its space: a factor of zeros has none.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._gram_b, self._gram_a = stack.precise_grams
        starts = [sum(stack.ranks[:t]) for t in range(len(stack.ranks))]
        self._parts = [slice(s, s + r) for s, r in zip(starts, stack.ranks, strict=True)]
        self._white_b = [whitened(self._gram_b[:, p, p])[0] for p in self._parts]
        self._white_a = [whitened(self._gram_a[:, p, p])[0] for p in self._parts]

    def spectra(self, adapter: int | None = None) -> list[tuple[list[float], float]]:
        """Per module, singular values (descending) and L1,2 norm of a delta, or of their sum.

        The L1,2 norm is the sum of the min(d_out, d_in) largest column norms.
        """
        part = slice(None) if adapter is None else self._parts[adapter]
        c = self._stack.coefficients[:, part]
        gram_b = self._gram_b[:, part, part]
        sigma = factored(gram_b, self._gram_a[:, part, part], torch.diag_embed(c))[2]
        columns = []
        for G, A, weights in zip(gram_b, self._stack.A[:, part], c, strict=True):
            weighted = A.double() * weights[:, None]
            columns.append((G @ weighted).mul_(weighted).sum(0).clamp_min_(0).sqrt_())
        most = min(self._stack.B.shape[1], self._stack.A.shape[2])
        lengths = torch.stack(columns).topk(most).values.sum(-1)
        return list(zip(sigma[:, :most].tolist(), lengths.tolist(), strict=True))

    def between(self, i: int, j: int) -> list[tuple[float, Cosines, Cosines]]:
        """Per module, of two adapters: inner product, principal cosines of A, and of B."""
        one, other = self._parts[i], self._parts[j]
        b, a = self._gram_b[:, one, other], self._gram_a[:, one, other]
        c = self._stack.coefficients
        dots = torch.einsum("mi,mij,mij,mj->m", c[:, one], b, a, c[:, other])
        of_a = _cosines(self._white_a[i], a, self._white_a[j])
        of_b = _cosines(self._white_b[i], b, self._white_b[j])
        return list(zip(dots.tolist(), of_a, of_b, strict=True))


def _cosines(left: Tensor, gram: Tensor, right: Tensor) -> list[Cosines]:
    """Cosines of principal angles, from whitening matrices and the Gram block between them."""
    found = torch.linalg.svdvals(left.mT @ gram @ right).clamp(0, 1)
    sizes = torch.minimum(_dimension(left), _dimension(right)).tolist()
    return [tuple(row[:n]) for row, n in zip(found.tolist(), sizes, strict=True)]


def _dimension(white: Tensor) -> Tensor:
    dimension: Tensor = (white.square().sum(-2) > 0).sum(-1)
    return dimension


def sign_conflict(stack: Stack, rows: int) -> Tensor:
    """(m, T, T): share of the entries of two deltas, where neither is zero, that differ in sign.

    Args:
        stack: m modules of T adapters.
        rows: Most rows of the deltas to look at, spread evenly.
    """
    d_out = stack.B.shape[1]
    seen = torch.linspace(0, d_out - 1, min(rows, d_out)).round().long()
    turned = stack.coefficients.sign().to(stack.B.dtype)
    size = len(stack.B), len(stack.ranks), len(stack.ranks)
    agree, both = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for i in range(len(stack.B)):
        A = stack.split(stack.A[i], 0)
        for some in seen.split(_ROWS_AT_ONCE):
            B = stack.split(stack.B[i, some] * turned[i], 1)
            signs = torch.stack([(b @ a).sign_().flatten() for b, a in zip(B, A, strict=True)])
            # Products of signs count agreements less conflicts; they are exact in float32.
            agree[i] += signs @ signs.mT
            signs.abs_()
            both[i] += signs @ signs.mT
    return (both - agree) / 2 / both.clamp_min(1)
