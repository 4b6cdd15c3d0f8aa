"""The largest magnitudes of many: their bound, exactly, and how it is applied."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def kth_smallest(X: Tensor, k: int) -> Tensor:
    """The ``k``-th smallest number (from 1) of every row of the last dimension, NaN as the largest.

    Args:
        X: (..., n) float32 or float64.
        k: From 1 to n.

    Returns:
        (...) in the dtype of ``X``.
    """
    if X.device.type == "cpu":
        # numpy selects with vector instructions, several times faster than torch.
        return torch.from_numpy(np.partition(X.numpy(), k - 1)[..., k - 1].copy())
    return X.kthvalue(k).values


def below(value: float, dtype: torch.dtype) -> float:
    """The bound for hardshrink that keeps magnitudes from ``value`` on, and NaN.

    Hardshrink zeroes what equals its bound: it is the next number of ``dtype`` towards zero. A
    ``value`` of 0 or NaN keeps everything.
    """
    x = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(x, x.new_zeros(()))) if value > 0 else -1.0
