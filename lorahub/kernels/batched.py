"""Products and factorisations of batches of matrices, no bit of which depends on the batch.

On a CPU how a product rounds depends on where its matrices lie, and in one call for a batch on how
many there are (MKL rounds products by a single column otherwise where it is given one matrix).
There matrices are multiplied one by one, from memory that is aligned alike. Factorisations of a
batch are LAPACK's of one matrix after the other, in one call where they all lie alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lorahub.kernels.blas import one_thread

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ALIGNMENT = 64
"""Bytes that torch aligns memory of its own to."""


def products(X: Tensor, Y: Tensor) -> Tensor:
    """``X @ Y`` over a batch, in the wider dtype of both."""
    import torch

    dtype = torch.promote_types(X.dtype, Y.dtype)
    if X.device.type != "cpu":
        return torch.bmm(X.to(dtype), Y.to(dtype))
    if Y.device != X.device:  # torch.mm would leave ``out`` as it is where Y has no values
        raise RuntimeError(f"factors on {X.device} and {Y.device}")
    out = torch.empty(*X.shape[:-1], Y.shape[-1], dtype=dtype)
    aligned = _aligned(out)
    for x, y, o in zip(_apart(X, dtype), _apart(Y, dtype), out, strict=True):
        if aligned:
            torch.mm(x, y, out=o)
        else:
            o.copy_(torch.mm(x, y))
    return out


def gram(X: Tensor, *, precise: bool = False) -> Tensor:
    """``X Xᵀ`` of a batch of wide matrices, (m, R, R) float64.

    From products in X's dtype, or in float64 if ``precise``.
    """
    import numpy as np
    import torch

    dtype = torch.float64 if precise else X.dtype
    if X.device.type != "cpu":
        X = X.to(dtype)
        return core_home(torch.bmm(X, X.mT)).double()
    m, R, _ = X.shape
    found = torch.empty(m, R, R, dtype=torch.float64)
    # What is no number, or too large, reaches the result, where it is found and named.
    with one_thread(), np.errstate(invalid="ignore", over="ignore"):
        for x, whole in zip(_apart(X, dtype), found.numpy(), strict=True):
            # numpy gives a matrix times its own transpose to syrk, which leaves out half of the
            # products; torch does not.
            rows = x.numpy()
            whole[:] = rows @ rows.T
    return found


def factorised(function: Callable[..., tuple[Tensor, ...]], *X: Tensor) -> tuple[Tensor, ...]:
    """A factorisation over a batch of one or more matrices each.

    Results are contiguous whatever the batch: products of transposed matrices round otherwise.
    """
    import torch

    if X[0].device.type != "cpu":
        return function(*X)
    # Then all that is in them or comes of them is aligned, vectors too.
    sides = [side * x.element_size() for x in X for side in x.shape[-2:]]
    whole = all(side % _ALIGNMENT == 0 for side in sides)
    batches = [X] if whole else zip(*(x.split(1) for x in X), strict=True)
    found = [function(*batch) for batch in batches]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def core_home(x: Tensor) -> Tensor:
    """The tensor where float64 exists: Apple's GPUs have none."""
    return x.cpu() if x.device.type == "mps" else x


def _apart(X: Tensor, dtype: torch.dtype) -> Iterable[Tensor]:
    """The matrices of a batch, all aligned alike.

    Where the dtype changes it does so one by one, in memory that stays in the cache.
    """
    ones = X.unbind()
    if X.dtype == dtype and _aligned(X):
        return ones
    return (x.to(dtype, copy=True) for x in ones)


def _aligned(X: Tensor) -> bool:
    return X.stride(0) * X.element_size() % _ALIGNMENT == 0
