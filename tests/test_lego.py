"""LoRA-LEGO against a literal transcription on the units themselves, and its laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorahub.kernels.stack import Mix
from lorahub.methods.registry import get
from tests.test_laws import close, dense, make_pairs, make_stack, size_of

LEGO = get("lego")
seeds = st.integers(0, 10_000)
rank_lists = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def lego(pairs: Any, weights: Sequence[float], **parameters: object) -> tuple[Tensor, Mix]:
    stack = make_stack(pairs, weights)
    mix = LEGO.rule(stack, **LEGO.parameters(parameters))
    factors = mix.apply(stack)
    return factors.B[0].double() @ factors.A[0].double(), mix


def units(pairs: Any, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pool as rows [a ; b], balanced and folded: halves a and b, and weights."""
    a_halves, b_halves, sizes = [], [], []
    for (B, A, s), w in zip(pairs, weights):
        for i in range(B.shape[1]):
            a, b = A[i].double().numpy(), B[:, i].double().numpy() * s * np.sign(w)
            balance = math.sqrt(np.linalg.norm(b) / np.linalg.norm(a))
            a_halves.append(a * balance)
            b_halves.append(b / balance)
            sizes.append(abs(w))
    return np.array(a_halves), np.array(b_halves), np.array(sizes)


@pytest.mark.parametrize("features", ["unit_halves", "raw"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@settings(max_examples=25, deadline=None)
@given(seed=seeds, ranks=rank_lists, k=st.integers(1, 8), parameter=st.booleans(),
       output=st.booleans(), data=st.data())  # fmt: skip
def test_equals_a_literal_transcription(
    features: str,
    norm: str,
    seed: int,
    ranks: list[int],
    k: int,
    parameter: bool,
    output: bool,
    data: st.DataObject,
) -> None:
    pairs = make_pairs(seed, 9, 12, ranks)
    values = st.sampled_from([-1.0, 0.5, 1.0, 2.0])
    weights = data.draw(st.lists(values, min_size=len(ranks), max_size=len(ranks)))
    found, mix = lego(
        pairs, weights, rank=k, features=features, norm=norm,
        parameter_reweighting=parameter, output_reweighting=output,
    )  # fmt: skip
    a, b, w = units(pairs, weights)
    signed = np.array(mix.reports[0]["labels"])
    labels, signs = np.abs(signed) - 1, np.sign(signed)
    count = min(k, len(a))
    assert set(labels) == set(range(count))
    order = 2 if norm == "l2" else np.inf
    total = np.zeros((9, 12))
    for j in range(count):
        mine = labels == j
        mean_a = np.average(a[mine] * signs[mine, None], axis=0, weights=w[mine])
        mean_b = np.average(b[mine] * signs[mine, None], axis=0, weights=w[mine])
        factor = 1.0
        if parameter:
            norms = [np.linalg.norm(np.r_[x, y], order) for x, y in zip(a[mine], b[mine])]
            factor = np.mean(norms) / np.linalg.norm(np.r_[mean_a, mean_b], order)
        total += factor**2 * np.outer(mean_b, mean_a)
    if output:
        total *= math.sqrt(np.mean(ranks) / count)
    assert close(found, torch.from_numpy(total), size_of(pairs, weights) * 3, 1e-5)
    # Lloyd has come to rest: no unit is nearer to another mean, with either sign.
    if features == "unit_halves":
        a = a / np.linalg.norm(a, axis=1, keepdims=True)
        b = b / np.linalg.norm(b, axis=1, keepdims=True)
    x = np.concatenate([a, b], axis=1)
    means = np.array(
        [
            np.average(x[labels == j] * signs[labels == j, None], axis=0, weights=w[labels == j])
            for j in range(count)
        ]
    )
    distances = np.minimum(((x[:, None] - means) ** 2).sum(-1), ((x[:, None] + means) ** 2).sum(-1))
    own = ((x * signs[:, None] - means[labels]) ** 2).sum(-1)
    assert (own <= distances.min(1) + 1e-4 * (x**2).sum(1).max()).all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, ranks=rank_lists)
def test_every_unit_its_own_cluster_is_the_scaled_sum(seed: int, ranks: list[int]) -> None:
    pairs = make_pairs(seed, 14, 11, ranks)
    weights = [1.0] * len(ranks)
    found, mix = lego(pairs, weights, rank=sum(ranks))
    scale = math.sqrt(np.mean(ranks) / sum(ranks))
    assert close(found, scale * dense(pairs, weights), size_of(pairs, weights))
    assert mix.ranks == (sum(ranks),)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, rank=st.integers(1, 6), copies=st.integers(2, 5))
def test_copies_of_one_adapter_give_it_back(seed: int, rank: int, copies: int) -> None:
    pairs = make_pairs(seed, 16, 13, [rank]) * copies
    found, mix = lego(pairs, [1.0] * copies)
    assert close(found, dense(pairs[:1], [1.0]), size_of(pairs[:1], [1.0]), 1e-5)
    assert mix.reports[0]["sizes"] == [copies] * rank
    assert mix.reports[0]["explained"] == 1.0


@settings(max_examples=20, deadline=None)
@given(seed=seeds, ranks=rank_lists, k=st.integers(1, 6))
def test_svd_gauge_forgets_the_rotation_of_the_inputs(seed: int, ranks: list[int], k: int) -> None:
    pairs = make_pairs(seed, 12, 15, ranks)
    turned = []
    for i, (B, A, s) in enumerate(pairs):
        generator = torch.Generator().manual_seed(seed + i)
        turn = torch.randn(B.shape[1], B.shape[1], generator=generator, dtype=torch.float64)
        turn = torch.linalg.qr(turn).Q
        turned.append(((B.double() @ turn).float(), (turn.mT @ A.double()).float(), s))
    weights = [1.0] * len(ranks)
    one, _ = lego(pairs, weights, rank=k, gauge="svd")
    other, _ = lego(turned, weights, rank=k, gauge="svd")
    assert close(one, other, size_of(pairs, weights), 1e-4)


def test_one_adapter_is_pruned_to_a_lower_rank() -> None:
    pairs = make_pairs(1, 20, 20, [6])
    found, mix = lego(pairs, [1.0], rank=2)
    assert mix.ranks == (2,)
    wanted = dense(pairs, [1.0])
    least = float(torch.linalg.svdvals(wanted)[2:].norm())
    assert least <= float((found - wanted).norm())


def test_units_that_are_orthogonal_have_signs_of_their_own() -> None:
    """No inner product says with which sign they join a cluster; the inputs' signs must not."""
    pairs = make_pairs(0, 1, 1, [1, 1, 1, 1])
    one, _ = lego(pairs, [1.0] * 4)
    for signs in itertools.product((1, -1), repeat=4):
        flipped = [(sign * B, sign * A, s) for (B, A, s), sign in zip(pairs, signs)]
        other, _ = lego(flipped, [1.0] * 4)
        assert close(one, other, size_of(pairs, [1.0] * 4)), signs


def test_auto_takes_the_fewest_clusters_that_explain_enough() -> None:
    """Eight copies of four units need four clusters; nothing less explains them."""
    pairs = make_pairs(5, 40, 30, [4]) * 8
    _, mix = lego(pairs, [1.0] * 8, rank="auto")
    assert mix.ranks == (4,)
    _, mix = lego(pairs, [1.0] * 8, energy=0.2)
    assert mix.ranks is not None
    assert mix.ranks[0] < 4
    assert mix.reports[0]["explained"] >= 0.2


def test_zero_units_and_loud_pools_are_reported() -> None:
    (B, A, s), other = make_pairs(2, 10, 10, [3, 3])
    silent = (torch.zeros_like(B), A, s)
    found, mix = lego([silent, other], [1.0, 1.0], rank=6)
    assert mix.reports[0]["labels"][:3] == [0, 0, 0]
    assert mix.ranks == (3,)
    assert bool(torch.isfinite(found).all())
    nothing, mix = lego([silent], [1.0])
    assert float(nothing.norm()) == 0
    crowd = [(B[:, :1].repeat(1, 8), A[:1].repeat(8, 1), s), other]
    _, mix = lego(crowd, [1.0, 1.0], rank=4)
    assert "over half" in mix.reports[0]["warning"]
