"""k-means in Gram space against scikit-learn's, on the points themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from lorahub.kernels.kmeans import Clusters, cluster, lloyd, sign_of

seeds = st.integers(0, 10_000)


def blobs(seed: int, count: int, width: int, groups: int = 4) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((groups, width)) * 1.5
    return centres[random.integers(0, groups, count)] + random.standard_normal((count, width))


def gram_of(X: np.ndarray) -> Tensor:
    return torch.from_numpy(X @ X.T)[None]


def nearest(X: np.ndarray, centres: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    distances = ((X[:, None] - X[centres][None]) ** 2).sum(-1)
    labels = torch.from_numpy(distances.argmin(1))[None, :, None]
    signs = torch.ones(1, len(X), 1, dtype=torch.float64)
    return labels, signs, torch.from_numpy(distances.min(1))[None, :, None]


def ours(X: np.ndarray, centres: np.ndarray, weights: np.ndarray) -> Clusters:
    start = nearest(X, centres)
    return lloyd(gram_of(X), torch.from_numpy(weights)[None], start, len(centres), align=False)


def theirs(X: np.ndarray, centres: np.ndarray, weights: np.ndarray) -> KMeans:
    model = KMeans(len(centres), init=X[centres], n_init=1, tol=0, algorithm="lloyd")
    return model.fit(X, sample_weight=weights)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, count=st.integers(6, 40), width=st.integers(2, 30), k=st.integers(1, 6))
def test_same_start_same_labels_as_scikit_learn(seed: int, count: int, width: int, k: int) -> None:
    X = blobs(seed, count, width)
    random = np.random.default_rng(seed + 1)
    centres = random.choice(count, k, replace=False)
    weights = random.uniform(0.2, 2.0, count)
    found, wanted = ours(X, centres, weights), theirs(X, centres, weights)
    assert found.labels[0].tolist() == wanted.labels_.tolist()
    assert float(found.inertia[0]) == pytest.approx(wanted.inertia_, rel=1e-9, abs=1e-9)


def test_empty_clusters_take_the_farthest_points_as_in_scikit_learn() -> None:
    X = np.concatenate([blobs(1, 20, 8, groups=1), blobs(2, 3, 8, groups=3) * 8])
    # Three equal points as centres: two clusters are empty from the start.
    X[1], X[2] = X[0], X[0]
    centres = np.array([0, 1, 2, 5])
    found, wanted = ours(X, centres, np.ones(23)), theirs(X, centres, np.ones(23))
    assert len(set(found.labels[0].tolist())) == 4
    assert float(found.inertia[0]) == pytest.approx(wanted.inertia_, rel=1e-9)


def test_seeding_is_as_good_as_scikit_learns() -> None:
    ratios = []
    for seed in range(30):
        X = blobs(seed, 64, 200, groups=12)
        found = cluster(gram_of(X), torch.ones(1, 64, dtype=torch.float64), 16, seeds=[seed],
                        align=False)  # fmt: skip
        ratios.append(
            float(found.inertia[0]) / KMeans(16, n_init=10, random_state=seed).fit(X).inertia_
        )
    assert np.mean(ratios) <= 1.002


def least_inertia(X: np.ndarray, weights: np.ndarray, k: int) -> float:
    """The least over all partitions and signs."""
    best = np.inf
    for labels in itertools.product(range(k), repeat=len(X)):
        mine = [[i for i in range(len(X)) if labels[i] == j] for j in range(k)]
        for signs in itertools.product((1, -1), repeat=len(X) - 1):
            signed = X * np.array((1, *signs))[:, None]
            total = 0.0
            for members in filter(None, mine):
                mean = np.average(signed[members], axis=0, weights=weights[members])
                total += (weights[members] * ((signed[members] - mean) ** 2).sum(1)).sum()
            best = min(best, float(total))
    return best


def test_aligned_clusters_are_nearly_always_the_best_there_are() -> None:
    best = 0
    for seed in range(30):
        X = blobs(seed, 5, 3)
        weights = np.random.default_rng(seed).uniform(0.5, 1.5, 5)
        least = least_inertia(X, weights, 2)
        found = cluster(gram_of(X), torch.from_numpy(weights)[None], 2, seeds=[seed])
        assert float(found.inertia[0]) >= least - 1e-9
        best += float(found.inertia[0]) <= least + 1e-9
    assert best >= 28


@settings(max_examples=30, deadline=None)
@given(seed=seeds, k=st.integers(1, 6))
def test_flipped_points_change_nothing_when_aligned(seed: int, k: int) -> None:
    X = blobs(seed, 20, 10)
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], 20)
    weights = torch.ones(1, 20, dtype=torch.float64)
    one = cluster(gram_of(X), weights, k, seeds=[seed])
    other = cluster(gram_of(X * flips[:, None]), weights, k, seeds=[seed])
    assert torch.equal(one.labels, other.labels)
    product = one.signs * other.signs * torch.from_numpy(flips)
    for j in range(k):
        assert len(set(product[one.labels == j].tolist())) <= 1


def test_points_without_weight_change_nothing() -> None:
    X = blobs(3, 30, 10)
    extra = np.concatenate([X, blobs(9, 5, 10) * 3])
    weights = torch.ones(1, 35, dtype=torch.float64)
    weights[:, 30:] = 0
    one = cluster(gram_of(X), weights[:, :30], 4, seeds=[7])
    other = cluster(gram_of(extra), weights, 4, seeds=[7])
    assert torch.equal(one.labels, other.labels[:, :30])
    assert float(one.inertia[0]) == pytest.approx(float(other.inertia[0]))


def test_a_module_does_not_depend_on_its_batch() -> None:
    grams = torch.cat([gram_of(blobs(i, 24, 16)) for i in range(5)])
    weights = torch.ones(5, 24, dtype=torch.float64)
    together = cluster(grams, weights, 6, seeds=range(5))
    for i in range(5):
        alone = cluster(grams[i : i + 1], weights[i : i + 1], 6, seeds=[i])
        assert torch.equal(alone.labels[0], together.labels[i])
        assert torch.equal(alone.inertia[0], together.inertia[i])


def test_more_clusters_than_distinct_points() -> None:
    X = np.repeat(blobs(1, 3, 6), 4, axis=0)
    found = cluster(gram_of(X), torch.ones(1, 12, dtype=torch.float64), 6, seeds=[0])
    assert float(found.inertia[0]) == pytest.approx(0, abs=1e-9)
    for i in range(0, 12, 4):
        others = {int(label) for j, label in enumerate(found.labels[0]) if j // 4 != i // 4}
        assert not others & {int(label) for label in found.labels[0, i : i + 4]}


def test_sign_of_zero_is_positive() -> None:
    assert sign_of(torch.tensor([-0.5, 0.0, 2.0])).tolist() == [-1.0, 1.0, 1.0]
