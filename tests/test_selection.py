"""The bound of the largest magnitudes, against sorting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub.kernels.selection import below, kth_smallest

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_subnormal=True),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf]),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 3), n=st.integers(1, 40), nans=st.integers(0, 3))
def test_it_is_the_kth_of_the_sorted_ones(
    data: st.DataObject, dtype: torch.dtype, rows: int, n: int, nans: int
) -> None:
    numbers = [data.draw(st.lists(NUMBERS, min_size=n, max_size=n)) for _ in range(rows)]
    k = data.draw(st.integers(1, n + nans))
    X = torch.tensor([[math.nan] * nans + row for row in numbers], dtype=dtype)
    kept = X.clone()
    wanted = [[*sorted(row), *[math.nan] * nans][k - 1] for row in numbers]
    found = kth_smallest(X, k)
    assert found.dtype == dtype
    assert torch.equal(found.nan_to_num(-1.5), torch.tensor(wanted, dtype=dtype).nan_to_num(-1.5))
    assert torch.equal(X.nan_to_num(-1.5), kept.nan_to_num(-1.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=40), data=st.data())
def test_the_bound_keeps_what_equals_it_and_nan(
    dtype: torch.dtype, numbers: list[float], data: st.DataObject
) -> None:
    value = abs(data.draw(st.sampled_from(numbers)))
    X = torch.tensor([*numbers, math.nan], dtype=dtype)
    found = torch.nn.functional.hardshrink(X, below(value, dtype)).tolist()
    assert found[:-1] == [x if abs(x) >= value else 0.0 for x in numbers]
    assert math.isnan(found[-1])
