"""The values methods take and return: stacked factors of same-shaped modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stack:
    """The factors of T adapters at m modules of one shape, side by side; R is the sum of ranks.

    The weighted sum of the deltas of module i is ``B[i] @ diag(coefficients[i]) @ A[i]``:
    keeping the coefficients apart costs nothing and loses nothing, where folding them into the
    factors would touch every value.

    Attributes:
        B: (m, d_out, R) float32, or float64 where conditioning asks; columns grouped by adapter.
        A: (m, R, d_in), the same dtype; rows grouped by adapter.
        coefficients: (m, R) float64; weight times scaling of the adapter each rank belongs to.
        ranks: Rank of each adapter, in stacking order; they add up to R.
        weights: Weight of each adapter.
    """

    B: Tensor
    A: Tensor
    coefficients: Tensor
    ranks: tuple[int, ...]
    weights: tuple[float, ...]

    def to_device(self, device: torch.device) -> Stack:
        """The same stack on ``device``."""
        if self.B.device == device:
            return self
        B, A = self.B.to(device, non_blocking=True), self.A.to(device, non_blocking=True)
        return Stack(B, A, self.coefficients.to(device), self.ranks, self.weights)

    def split(self, factor: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Cut a stacked tensor along its rank dimension into one view per adapter."""
        parts: tuple[Tensor, ...] = factor.split(list(self.ranks), dim=dim)
        return parts


@dataclass(frozen=True, slots=True)
class Factors:
    """Merged factors of m modules, whose deltas are ``B @ A`` (scaling 1).

    Attributes:
        B: (m, d_out, k).
        A: (m, k, d_in).
        ranks: Rank to keep per module, at most k; None keeps k everywhere.
    """

    B: Tensor
    A: Tensor
    ranks: tuple[int, ...] | None = None
