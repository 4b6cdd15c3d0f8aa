"""The values methods take and return: stacked factors, and mixtures of them or new factors.

Every method that works in factor space makes its result as linear combinations of the stacked
columns of B and rows of A. Such a method needs the factors' R x R Gram matrices only, however
large the module is, and returns a `Mix`: the two small matrices of coefficients. A method that
works on single elements of the deltas returns the `Factors` of its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lorahub.kernels.batched import core_home, gram, products

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Stack:
    """The factors of T adapters at m modules of one shape, side by side; R is the sum of ranks.

    The weighted sum of the deltas of module i is ``B[i] @ diag(coefficients[i]) @ A[i]``:
    keeping the coefficients apart costs nothing and loses nothing, where folding them into the
    factors would touch every value.

    Attributes:
        B: (m, d_out, R) float32, or float64 in verification; columns grouped by adapter.
        A: (m, R, d_in), the same dtype; rows grouped by adapter.
        coefficients: (m, R) float64; weight times scaling (times the normalising factor, where
            adapters are normalised) of the adapter each rank belongs to.
        ranks: Rank of each adapter, in stacking order; they add up to R.
        weights: Weight of each adapter.
        seeds: One seed per module, made from the recipe's seed and the module's name.
        memo: What was found of B and A alone, by name; see `reweighted`.
    """

    B: Tensor
    A: Tensor
    coefficients: Tensor
    ranks: tuple[int, ...]
    weights: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    memo: dict[str, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` finds of B and A alone, made once for all stacks that share them."""
        if name not in self.memo:
            self.memo[name] = make()
        found: T = self.memo[name]
        return found

    @property
    def gram_b(self) -> Tensor:
        """BᵀB, (m, R, R) float64, from products in the dtype of the factors."""
        return self.remembered("gram_b", lambda: gram(self.B.mT))

    @property
    def gram_a(self) -> Tensor:
        """AAᵀ, (m, R, R) float64, from products in the dtype of the factors."""
        return self.remembered("gram_a", lambda: gram(self.A))

    @property
    def precise_grams(self) -> tuple[Tensor, Tensor]:
        """(BᵀB, AAᵀ) with products in float64, for stacks that are nearly dependent."""
        return self.remembered(
            "precise",
            lambda: (
                gram(core_home(self.B).mT, precise=True),
                gram(core_home(self.A), precise=True),
            ),
        )

    @cached_property
    def unit_weights(self) -> Tensor:
        """(R,) float64: the weight of the adapter each rank belongs to."""
        import torch

        weights = torch.tensor(self.weights, dtype=torch.float64)
        return weights.repeat_interleave(torch.tensor(self.ranks)).to(self.coefficients.device)

    @property
    def energies(self) -> Tensor:
        """(m, T) float64: squared norms of the products B A of the adapters, without coefficients.

        From the Gram matrices where they are known; of each adapter alone, which costs much
        less, where they are not.
        """
        import torch

        known, start, found = self._has_grams, 0, []
        for rank in self.ranks:
            part = slice(start, start + rank)
            if known:
                pair = self.gram_b[:, part, part], self.gram_a[:, part, part]
            else:
                pair = gram(self.B[:, :, part].mT), gram(self.A[:, part])
            found.append((pair[0] * pair[1]).sum((-2, -1)))
            start = part.stop
        return torch.stack(found, -1)

    def to_device(self, device: torch.device) -> Stack:
        """The same stack on ``device``; the coefficients stay where float64 exists."""
        if self.B.device == device:
            return self
        B, A = self.B.to(device, non_blocking=True), self.A.to(device, non_blocking=True)
        home = "cpu" if device.type == "mps" else device
        return replace(self, B=B, A=A, coefficients=self.coefficients.to(home))

    def reweighted(
        self, coefficients: Tensor, weights: tuple[float, ...], seeds: tuple[int, ...]
    ) -> Stack:
        """The same factors with other coefficients, weights and seeds.

        What is found of the factors alone is shared, so that merges that differ in these do
        such work once.
        """
        other = replace(self, coefficients=coefficients, weights=weights, seeds=seeds)
        return other._sharing(self.memo)  # noqa: SLF001

    def _sharing(self, memo: dict[str, Any]) -> Stack:
        vars(self)["memo"] = memo
        return self

    def with_grams(self, gram_b: Tensor, gram_a: Tensor) -> Stack:
        """The same stack with Gram matrices that were made elsewhere."""
        known = replace(self)
        known.memo.update(gram_b=gram_b, gram_a=gram_a)
        if self.B.dtype == gram_b.dtype:
            known.memo["precise"] = gram_b, gram_a
        elif "precise" in self.memo:
            known.memo["precise"] = self.memo["precise"]
        return known

    def module(self, i: int) -> Stack:
        """The stack of module i alone; what is remembered of the module is kept for the next."""
        one = slice(i, i + 1)
        memo = self.remembered(f"module {i}", dict[str, Any])
        for side in ("gram_b", "gram_a"):
            if side in self.memo and side not in memo:
                # In memory of their own: where they lie would decide how products of them round.
                memo[side] = self.memo[side][one].clone()
        if "precise" in self.memo and "precise" not in memo:
            memo["precise"] = tuple(side[one].clone() for side in self.memo["precise"])
        alone = replace(
            self,
            B=self.B[one],
            A=self.A[one],
            coefficients=self.coefficients[one],
            seeds=self.seeds[one],
        )
        return alone._sharing(memo)  # noqa: SLF001

    @property
    def _has_grams(self) -> bool:
        return self.memo.keys() >= {"gram_b", "gram_a"}

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
        sigma: (m, k) float64 singular values, where the ranks are balanced and in that order, so
            that any prefix is the best approximation of its rank; else None.
        energy: (m,) float64 squared norms of the deltas before truncation, where there was one
            that ``sigma`` does not show; else None.
    """

    B: Tensor
    A: Tensor
    ranks: tuple[int, ...] | None = None
    sigma: Tensor | None = None
    energy: Tensor | None = None

    @property
    def priorities(self) -> Tensor | None:
        """(m, k): what the ranks count when a budget is distributed over modules."""
        return self.sigma

    @property
    def width(self) -> int:
        """Ranks before `ranks` cuts them."""
        return self.B.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return self.B.nbytes + self.A.nbytes

    @property
    def reports(self) -> Sequence[Mapping[str, Any]]:
        """Per module the relative truncation error, where the whole is known."""
        if self.sigma is None or self.energy is None:
            return ()
        kept = self.sigma.square().cumsum(-1)
        ranks = self.ranks or [self.width] * len(kept)
        shares = [
            float(part[rank - 1] / whole) if whole > 0 else 1.0
            for part, rank, whole in zip(kept, ranks, self.energy, strict=True)
        ]
        return [{"truncation": round(max(0.0, 1 - share) ** 0.5, 6)} for share in shares]

    def apply(self, stack: Stack) -> Factors:
        """The factors themselves."""
        return self

    def module(self, i: int) -> Factors:
        """The factors of module i alone, in memory of their own."""
        one = slice(i, i + 1)
        return Factors(
            self.B[one].clone(),
            self.A[one].clone(),
            self.ranks and self.ranks[one],
            self.sigma[one].clone() if self.sigma is not None else None,
            self.energy[one].clone() if self.energy is not None else None,
        )

    def cut(self, ranks: Sequence[int]) -> Factors:
        """The first ranks of each module, as many as given."""
        return replace(self, ranks=tuple(ranks))

    def scaled(self, scale: float) -> Factors:
        """The same merged deltas times ``scale``, balanced over both sides."""
        if scale == 1:
            return self
        left, right = _balanced(scale)
        return replace(self, B=self.B * left, A=self.A * right)


@dataclass(frozen=True, slots=True)
class Mix:
    """Merged factors as combinations of the stacked ones: ``B @ left`` and ``right @ A``.

    Attributes:
        left: (m, R, k) float64, or (m, R) for a diagonal.
        right: (m, k, R) float64, or (m, R) for a diagonal.
        ranks: Rank to keep per module, at most k; None keeps k everywhere.
        sigma: (m, k) singular values, where the ranks are balanced and in that order, so that
            any prefix is the best approximation of its rank; else None.
        importance: (m, k) what the ranks count when a budget is distributed over modules, where
            that is not their singular value; else None.
        precise: Per module whether the products need float64, because large coefficients
            cancel; empty if none does.
        reports: Per module what the run's record should remember, JSON values by name; empty
            for methods with nothing to say.
    """

    left: Tensor
    right: Tensor
    ranks: tuple[int, ...] | None = None
    sigma: Tensor | None = None
    importance: Tensor | None = None
    precise: tuple[bool, ...] = ()
    reports: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def priorities(self) -> Tensor | None:
        """(m, k): what the ranks count when a budget is distributed over modules."""
        return self.sigma if self.importance is None else self.importance

    @property
    def width(self) -> int:
        """Ranks before `ranks` cuts them."""
        return self.left.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the coefficients."""
        return self.left.nbytes + self.right.nbytes

    def apply(self, stack: Stack) -> Factors:
        """The merged factors, in the dtype and on the device of ``stack``."""
        import torch

        if len(set(self.precise)) > 1:
            parts = [self.module(i).apply(stack.module(i)) for i in range(len(self.precise))]
            return Factors(torch.cat([p.B for p in parts]), torch.cat([p.A for p in parts]))
        dtype = stack.B.dtype
        if self.left.ndim == 2:
            left, right = (x.to(stack.B.device, dtype) for x in (self.left, self.right))
            return Factors(stack.B * left[:, None, :], stack.A * right[:, :, None])
        if any(self.precise):
            B, A = core_home(stack.B), core_home(stack.A)
            B, A = products(B, self.left).to(dtype), products(self.right, A).to(dtype)
            return Factors(B.to(stack.B.device), A.to(stack.B.device))
        left, right = (x.to(stack.B.device, dtype) for x in (self.left, self.right))
        return Factors(products(stack.B, left), products(right, stack.A))

    def module(self, i: int) -> Mix:
        """The mixture of module i alone, in memory of its own."""
        one = slice(i, i + 1)
        return replace(
            self,
            left=self.left[one].clone(),
            right=self.right[one].clone(),
            ranks=self.ranks and self.ranks[one],
            sigma=self.sigma[one].clone() if self.sigma is not None else None,
            importance=self.importance[one].clone() if self.importance is not None else None,
            precise=self.precise[one],
            reports=self.reports[one] if self.reports else (),
        )

    def cut(self, ranks: Sequence[int]) -> Mix:
        """The first ranks of each module, as many as given."""
        k = max(ranks)
        if self.left.ndim == 2 or k == self.left.shape[2]:
            return replace(self, ranks=tuple(ranks))
        left, right = self.left[:, :, :k], self.right[:, :k]
        return replace(self, left=left, right=right, ranks=tuple(ranks))

    def scaled(self, scale: float) -> Mix:
        """The same merged deltas times ``scale``, balanced over both sides."""
        if scale == 1:
            return self
        left, right = _balanced(scale)
        return replace(self, left=self.left * left, right=self.right * right)

    def matrix(self) -> Tensor:
        """(m, R, R) float64: the M of the merged delta ``B @ M @ A``."""
        import torch

        if self.left.ndim == 2:
            return torch.diag_embed(self.left * self.right)
        return self.left @ self.right


def _balanced(scale: float) -> tuple[float, float]:
    """Two factors of ``scale``, the second a power of two near its root."""
    right = 2.0 ** round(math.log2(abs(scale)) / 2) if scale else 1.0
    return scale / right, right
