"""What merges do to single elements of deltas: prune each delta, then combine them into one.

Every step works on blocks of rows and gives the same elements whatever the blocks are: the
thresholds of a whole delta are found beforehand, exactly, and random choices hash the place of
an element. Masks are made by arithmetic on floats and integers: on a CPU that is several times
faster than tensors of booleans.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorahub.kernels.delta import Combine, Deltas, Prune
from lorahub.kernels.selection import below, kth_smallest

MajoritySign = Literal["total", "frequency"]

_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

_SAMPLE = 1 << 16
"""Elements from which a threshold is bracketed; of smaller deltas all are collected."""

_DEVIATIONS = 5
"""Half the width of the bracket, in standard deviations of a sampled order statistic."""


class _Scratch:
    """Memory used again for every block: to touch fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor) -> Tensor:
        """Uninitialised, in the shape and dtype of ``like``."""
        if name not in self._kept or len(self._kept[name]) < len(like):
            self._kept[name] = like.new_empty(like.shape)
        return self._kept[name][: len(like)]


def weighted_sum(deltas: Deltas) -> Combine:
    """Add the deltas with their weights."""
    scratch = _Scratch()

    def combine(X: Tensor) -> Tensor:
        total = torch.mul(X[0], deltas.weights[0], out=scratch.get("total", X[0]))
        for x, weight in zip(X[1:], deltas.weights[1:], strict=True):
            total.add_(x, alpha=weight)
        return total

    return combine


def disjoint_mean(deltas: Deltas, majority_sign: MajoritySign) -> Combine:
    """Elect a sign for each element, and average the weighted deltas that have it there.

    The sign is that of the sum of the deltas (``total``) or of the sum of their signs
    (``frequency``), plus where they balance; weights have no part in it, and the mean divides
    by the number of deltas that have the sign, as in PEFT.
    """
    scratch = _Scratch()

    def combine(X: Tensor) -> Tensor:
        sign, total, count = (scratch.get(name, X[0]) for name in ("sign", "total", "count"))
        votes = X if majority_sign == "total" else X.sign()
        total.copy_(votes[0])
        for vote in votes[1:]:
            total.add_(vote)
        torch.ge(total, 0.0, out=sign)
        sign.mul_(2).sub_(1)
        for t, (x, weight) in enumerate(zip(X, deltas.weights, strict=True)):
            x.mul_(sign).relu_()
            if t == 0:
                torch.mul(x, weight, out=total)
                torch.sign(x, out=count)
            else:
                total.add_(x, alpha=weight)
                count.add_(x.sign_())
        return total.mul_(sign).div_(count.clamp_min_(1))

    return combine


def trim(deltas: Deltas, density: float) -> Prune:
    """Keep the ``density`` share of each delta that is largest in magnitude; zero the rest."""
    return band(deltas, density, 0.0)


def band(deltas: Deltas, density: float, outliers: float) -> Prune:
    """Zero the ``outliers`` share of largest magnitudes and keep ``density`` below them.

    Shares are rounded down to numbers of elements of the whole delta. Of magnitudes that equal
    the smallest one kept, all are kept.
    """
    size = math.prod(deltas.shape)
    first, last = int(outliers * size), int(min(1.0, outliers + density) * size)
    lower = thresholds(deltas, last) if last < size else None
    upper = thresholds(deltas, first) if first else None

    def prune(row: int, X: Tensor) -> None:
        for t, x in enumerate(X):
            if upper is not None:
                # What hardshrink keeps are the outliers.
                x.sub_(torch.nn.functional.hardshrink(x, below(upper[t], x.dtype)))
            if lower is not None:
                torch.ops.aten.hardshrink.out(x, below(lower[t], x.dtype), out=x)

    return prune


def drop(deltas: Deltas, density: float) -> tuple[Prune, Deltas]:
    """Keep each element with probability ``density``; zero the rest.

    Also returns the deltas with weights that are divided by that probability: rescaling takes no
    work of its own then.
    """
    kept, last = _chances(torch.tensor(density, dtype=torch.float64))
    bound, draws, scratch = int(last), Draws(deltas), _Scratch()

    def prune(row: int, X: Tensor) -> None:
        for t, x in enumerate(X):
            u = draws.block(t, row, len(x))
            x.mul_(scratch.get("mask", x).copy_(torch.le(u, bound, out=u)))

    return prune, replace(deltas, weights=tuple(w / float(kept) for w in deltas.weights))


def drop_by_rank(deltas: Deltas, density: float, window: float) -> Prune:
    """Keep elements with a probability that rises with their magnitude, and divide by it.

    Within a row of n elements the one that n - 1 - i others surpass has the probability
    density + ((i + ½)/n - ½) window. The window is narrowed where that would leave [0, 1].
    """
    n = deltas.shape[1]
    window = min(window, 2 * density, 2 * (1 - density))
    rises = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    kept, last = _chances(density + rises * window)
    draws = Draws(deltas)

    def prune(row: int, X: Tensor) -> None:
        gains = (1 / kept).to(X.device, X.dtype)
        bounds = last.to(X.device, torch.int16)
        for t, x in enumerate(X):
            order = _ascending(x.abs())
            u = draws.block(t, row, len(x)).gather(1, order)
            mask = torch.le(u, bounds, out=u).to(x.dtype).mul_(gains)
            x.mul_(torch.empty_like(x).scatter_(1, order, mask))

    return prune


class Draws:
    """A random number for every element of every delta, by blocks of rows.

    Each is a hash of (seed, place of the adapter, row, column) and depends on nothing else.
    """

    def __init__(self, deltas: Deltas) -> None:
        d_out, self._columns = deltas.shape
        # Two columns share a hash of 32 bits, each half of them.
        sides = ((0, d_out), (1, (self._columns + 1) // 2))
        self._down, self._across = (
            [_key(deltas.seed, 2 * place + side, size).to(deltas.A[0].device)
             for place in deltas.places]
            for side, size in sides
        )  # fmt: skip
        self._scratch = _Scratch()

    def block(self, t: int, row: int, rows: int) -> Tensor:
        """(rows, d_in) int16, every value as likely, of delta t; the next call may overwrite it."""
        down = self._down[t][row : row + rows, None]
        like = down.expand(-1, len(self._across[t]))
        x, y = (self._scratch.get(name, like) for name in ("hash", "shifted"))
        torch.bitwise_xor(down, self._across[t], out=x)
        # The keys are mixed: the second half of a 32-bit mixing function (lowbias32) is enough.
        x.mul_(0x7FEB352D)
        torch.bitwise_right_shift(x, 15, out=y)
        x.bitwise_xor_(y.bitwise_and_(0x1FFFF))
        x.mul_(0x846CA68B - (1 << 32))
        return x.view(torch.int16)[:, : self._columns]


def _chances(probability: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities as multiples of 2^-16, at least one, and the last draw of so large a share."""
    parts = (probability * 2**16).round().clamp_min(1)
    return parts / 2**16, parts - 1 - 2**15


def _ascending(magnitudes: Tensor) -> Tensor:
    """The order of every row, equal ones as they stand."""
    if magnitudes.device.type != "cpu" or magnitudes.dtype != torch.float32:
        return torch.argsort(magnitudes, dim=-1, stable=True)
    # numpy sorts integers several times faster: the bits of a magnitude above its column.
    columns = torch.arange(magnitudes.shape[-1])
    keys = magnitudes.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(columns)
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(0x7FFF_FFFF)


def _key(seed: int, stream: int, count: int) -> Tensor:
    """32 mixed bits for every number below ``count`` (SplitMix64)."""
    start = np.uint64((seed + stream * 0xD1342543DE82EF95) & _MASK)
    with np.errstate(over="ignore"):
        z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z >> np.uint64(32)).astype(np.uint32).view(np.int32))


def thresholds(deltas: Deltas, count: int) -> tuple[float, ...]:
    """The magnitude of the ``count``-th largest element of each delta, exactly.

    A sample brackets it; one pass counts what is above the bracket and collects what is within,
    and the rest is a selection. Infinity for a count of 0; 0 where fewer elements are not zero.
    """
    if count == 0:
        return (math.inf,) * len(deltas.A)
    brackets = [_bracket(deltas, t, count) for t in range(len(deltas.A))]
    found: dict[int, float] = {}
    while True:
        above = [0] * len(brackets)
        within: list[list[Tensor]] = [[] for _ in brackets]
        for _, X in deltas.blocks():
            X.abs_()
            for t, (low, high) in enumerate(brackets):
                if t not in found:
                    more, inside = _between(X[t], low, high)
                    above[t] += more
                    within[t].append(inside)
        for t, (low, high) in enumerate(brackets):
            if t in found:
                continue
            inside = torch.cat(within[t])
            place = count - above[t]
            if 0 < place <= len(inside):
                found[t] = float(kth_smallest(inside, len(inside) - place + 1))
            elif place > 0 and low == 0:
                found[t] = 0.0
            else:
                brackets[t] = (high, math.inf) if place <= 0 else (0.0, low)
        if len(found) == len(brackets):
            return tuple(found[t] for t in range(len(brackets)))


def _bracket(deltas: Deltas, t: int, count: int) -> tuple[float, float]:
    """Magnitudes between which the ``count``-th largest of delta t almost surely is."""
    (d_out, d_in), B, A = deltas.shape, deltas.B[t], deltas.A[t]
    size = d_out * d_in
    if size <= _SAMPLE:
        return 0.0, math.inf
    generator = torch.Generator().manual_seed(deltas.seed)
    i = torch.randint(d_out, (_SAMPLE,), generator=generator).to(B.device)
    j = torch.randint(d_in, (_SAMPLE,), generator=generator).to(B.device)
    sample = (B[i] * A.mT.contiguous()[j]).sum(1).abs().sort(descending=True).values
    share = count / size
    margin = _DEVIATIONS * math.sqrt(_SAMPLE * share * (1 - share)) + 2
    first, last = math.floor(share * _SAMPLE - margin), math.ceil(share * _SAMPLE + margin)
    # Blocked products round otherwise than these.
    high = float(sample[first]) * (1 + 1e-5) if first >= 0 else math.inf
    low = float(sample[last]) * (1 - 1e-5) if last < _SAMPLE else 0.0
    return low, high


def _between(magnitudes: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """How many are above ``high``, and which are in (low, high]."""
    if magnitudes.device.type == "cpu":
        # numpy compares and selects several times faster than torch on a CPU.
        x = magnitudes.numpy()
        inside = torch.from_numpy(x[(x > low) & (x <= high)])
        return int(np.count_nonzero(x > high)), inside
    return int((magnitudes > high).sum()), magnitudes[(magnitudes > low) & (magnitudes <= high)]
