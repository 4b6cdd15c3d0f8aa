"""The laws every merge method keeps, run on every registered method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorahub.kernels import lowrank
from lorahub.kernels.krylov import orthonormal
from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import Method, merged_rank, methods

METHODS = list(methods().values())
IDS = [m.name for m in METHODS]

Pair = tuple[Tensor, Tensor, float]  # B, A, scaling


def make_pairs(seed: int, d_out: int, d_in: int, ranks: Sequence[int]) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(d_out, r, generator=generator),
            torch.randn(r, d_in, generator=generator),
            float(torch.rand(1, generator=generator)) * 3 + 0.1,
        )
        for r in ranks
    ]


def make_stack(pairs: Sequence[Pair], weights: Sequence[float]) -> Stack:
    ranks = tuple(B.shape[1] for B, _, _ in pairs)
    coefficients = [w * s for (_, _, s), w, r in zip(pairs, weights, ranks) for _ in range(r)]
    return Stack(
        torch.cat([B for B, _, _ in pairs], 1)[None],
        torch.cat([A for _, A, _ in pairs], 0)[None],
        torch.tensor([coefficients], dtype=torch.float64),
        ranks,
        tuple(weights),
        seeds=(0,),
    )


def apply(method: Method, stack: Stack, **parameters: object) -> Factors:
    return method.rule(stack, **method.parameters(parameters)).apply(stack)


def merged(
    method: Method, pairs: Sequence[Pair], weights: Sequence[float], **parameters: object
) -> Tensor:
    if method.rank_bound is merged_rank:
        # Of full rank by nature: the laws are those of the delta before truncation.
        parameters = {"rank": min(len(pairs[0][0]), len(pairs[0][1][0]))} | parameters
    factors = apply(method, make_stack(pairs, weights), **parameters)
    return factors.B[0].double() @ factors.A[0].double()


def dense(pairs: Sequence[Pair], weights: Sequence[float]) -> Tensor:
    return sum((w * s * (B.double() @ A.double()) for (B, A, s), w in zip(pairs, weights)), 0.0)


def close(found: Tensor, wanted: Tensor, size: float, bound: float = 2e-6) -> bool:
    return float((found - wanted).norm()) <= bound * max(size, 1e-30)


def size_of(pairs: Sequence[Pair], weights: Sequence[float]) -> float:
    """What rounding is relative to: products may cancel, the magnitudes they add up do not."""
    norms = (abs(w * s) * float((B.abs() @ A.abs()).norm()) for (B, A, s), w in zip(pairs, weights))
    return sum(norms)


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
rank_lists = st.lists(st.integers(1, 6), min_size=1, max_size=4)
weight_values = st.sampled_from([-1.5, -1.0, -0.3, 0.0, 0.25, 0.7, 1.0, 2.0])
seeds = st.integers(0, 10_000)


def ranks_for(method: Method, ranks: Sequence[int]) -> list[int]:
    some = list(ranks[: method.most_adapters])
    return [some[0]] * len(some) if method.equal_ranks else some


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@settings(max_examples=40, deadline=None)
@given(seed=seeds, shape=shapes, rank=st.integers(1, 6))
def test_identity(method: Method, seed: int, shape: tuple[int, int], rank: int) -> None:
    pairs = make_pairs(seed, *shape, [rank])
    whole: dict[str, object] = {}
    if "identity" in method.exceptions:
        assert "identity" in method.doc
        unpruned = {"density": 1.0, "outliers": 0.0}
        whole = {name: unpruned[name] for name in unpruned.keys() & method.schema.model_fields}
    found = merged(method, pairs, [1.0], **whole)
    assert close(found, dense(pairs, [1.0]), size_of(pairs, [1.0]))
    assert method.default_scale(1) == 1.0


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@settings(max_examples=40, deadline=None)
@given(seed=seeds, shape=shapes, ranks=rank_lists, data=st.data())
def test_sum_is_the_dense_sum(
    method: Method, seed: int, shape: tuple[int, int], ranks: list[int], data: st.DataObject
) -> None:
    if "sum" in method.exceptions:
        assert "sum" in method.doc
        return
    weights = data.draw(st.lists(weight_values, min_size=len(ranks), max_size=len(ranks)))
    pairs = make_pairs(seed, *shape, ranks)
    found = merged(method, pairs, weights)
    assert close(found, dense(pairs, weights), size_of(pairs, weights))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=rank_lists)
def test_gauge(method: Method, seed: int, shape: tuple[int, int], ranks: list[int]) -> None:
    if "gauge" in method.exceptions:
        assert "gauge" in method.doc
        return
    pairs = make_pairs(seed, *shape, ranks_for(method, ranks))
    weights = [1.0] * len(pairs)
    generator = torch.Generator().manual_seed(seed)
    turned = []
    for B, A, s in pairs:
        order = torch.randperm(B.shape[1], generator=generator)
        signs = torch.randint(0, 2, (B.shape[1],), generator=generator) * 2.0 - 1
        turned.append(((B * signs)[:, order], (A * signs[:, None])[order], s))
    one, other = merged(method, pairs, weights), merged(method, turned, weights)
    assert close(one, other, size_of(pairs, weights))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=rank_lists)
def test_zero_weight_has_no_effect(
    method: Method, seed: int, shape: tuple[int, int], ranks: list[int]
) -> None:
    pairs = make_pairs(seed, *shape, ranks_for(method, [*ranks, 2]))
    weights = [1.0] * (len(pairs) - 1)
    one = merged(method, pairs, [*weights, 0.0])
    assert close(one, merged(method, pairs[:-1], weights), size_of(pairs, [*weights, 1.0]))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, rank=st.integers(1, 6))
def test_an_adapter_minus_itself_is_zero(
    method: Method, seed: int, shape: tuple[int, int], rank: int
) -> None:
    pairs = make_pairs(seed, *shape, [rank]) * 2
    found = merged(method, pairs, [1.0, -1.0])
    if "cancel" in method.exceptions:
        assert "minus itself" in method.doc
        return
    assert close(found, torch.zeros_like(found), size_of(pairs, [1.0, 1.0]))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=rank_lists)
def test_order_does_not_matter(
    method: Method, seed: int, shape: tuple[int, int], ranks: list[int]
) -> None:
    pairs = make_pairs(seed, *shape, ranks_for(method, ranks))
    weights = [0.5 + 0.25 * i for i in range(len(pairs))]
    if "order" in method.exceptions:
        assert "order" in method.doc
        return
    one = merged(method, pairs, weights)
    other = merged(method, pairs[::-1], weights[::-1])
    assert close(one, other, size_of(pairs, weights))


TRUNCATING = [m for m in METHODS if "rank" in m.schema.model_fields and "sum" not in m.exceptions]


@pytest.mark.parametrize("method", TRUNCATING)
@settings(max_examples=60, deadline=None)
@given(seed=seeds, shape=shapes, ranks=rank_lists, k=st.integers(1, 8))
def test_truncation_is_optimal_and_prefixes_are_too(
    method: Method, seed: int, shape: tuple[int, int], ranks: list[int], k: int
) -> None:
    pairs = make_pairs(seed, *shape, ranks)
    weights = [1.0] * len(ranks)
    wanted = dense(pairs, weights)
    sigma = torch.linalg.svdvals(wanted)
    factors = apply(method, make_stack(pairs, weights), rank=k)
    B, A = factors.B[0].double(), factors.A[0].double()
    assert B.shape[1] == min(k, sum(ranks), *shape)
    left, right = B.norm(dim=0), A.norm(dim=1)
    strong = left > 2e-2 * left.max()  # weaker ranks are not balanced, only exact
    assert torch.allclose(left[strong], right[strong], rtol=1e-3)
    for kept in range(1, B.shape[1] + 1):
        residual = float((wanted - B[:, :kept] @ A[:kept]).norm())
        least = float(sigma[kept:].norm())
        assert residual <= least + 2e-6 * float(sigma.norm())


@settings(max_examples=60, deadline=None)
@given(seed=seeds, shape=shapes, ranks=rank_lists, energy=st.floats(0.05, 1.0))
def test_energy_keeps_the_fewest_ranks_that_suffice(
    seed: int, shape: tuple[int, int], ranks: list[int], energy: float
) -> None:
    svd = methods()["svd"]
    pairs = make_pairs(seed, *shape, ranks)
    weights = [1.0] * len(ranks)
    share = torch.linalg.svdvals(dense(pairs, weights)).square().cumsum(0)
    share = share / share[-1]
    mix = svd.rule(make_stack(pairs, weights), **svd.parameters({"energy": energy}))
    assert mix.ranks is not None
    (kept,) = mix.ranks
    assert share[kept - 1] >= energy - 1e-5
    assert kept == 1 or share[kept - 2] <= energy + 1e-5


def test_weak_directions_are_not_lost_at_full_rank() -> None:
    """Gram matrices in float32 cannot tell singular values under 3e-4 of the largest from zero."""
    for seed in range(40):
        ((B, A, s),) = make_pairs(seed, 40, 30, [5])
        A[4] = A[:4].sum(0) + 3e-5 * A[4]
        found = merged(methods()["svd"], [(B, A, s)], [1.0])
        wanted = dense([(B, A, s)], [1.0])
        assert float((found - wanted).norm()) <= 2e-6 * float(wanted.norm()), seed


def test_near_equal_adapters_take_the_exact_path() -> None:
    """Gram matrices lose what distinguishes near-equal factors; the QR path must not."""
    (B, A, _), (E, F, _) = make_pairs(3, 64, 48, [4, 4])
    pairs = [(B, A, 1.0), (B + 1e-4 * E, A + 1e-4 * F, 1.0)]
    found = merged(methods()["svd"], pairs, [1.0, -1.0])
    wanted = dense(pairs, [1.0, -1.0])
    assert float((found - wanted).norm()) <= 1e-6 * size_of(pairs, [1.0, 1.0])
    assert float((found - wanted).norm()) <= 1e-3 * float(wanted.norm())


def many_pairs(kind: str, count: int, rank: int, d_out: int, d_in: int) -> list[Pair]:
    """Adapters with decaying spectra; in a ``family`` all are near one of them."""
    pairs = make_pairs(11, d_out, d_in, [rank] * count)
    decay = 1 / torch.arange(1, rank + 1)
    pairs = [(B * decay, A, 2.0) for B, A, _ in pairs]
    if kind == "plain":
        return pairs
    (B, A, s), share = pairs[0], {"family": 0.05, "copies": 0.0}[kind]
    return [(B + share * E, A + share * F, s) for E, F, _ in pairs]


@pytest.mark.parametrize("kind", ["plain", "family", "copies", "cancelling", "silent"])
def test_a_few_ranks_of_many_adapters_are_those_of_a_dense_svd(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some sum of ranks on, without a core: only where that is as exact."""
    k, taken = 4, []
    of_few = lowrank._leading_of_sum
    monkeypatch.setattr(
        lowrank, "_leading_of_sum", lambda *given: taken.append(of_few(*given)) or taken[-1]
    )
    pairs = many_pairs("plain" if kind in ("cancelling", "silent") else kind, 40, 8, 200, 150)
    weights = [1.0] * len(pairs)
    if kind == "cancelling":
        E = pairs[1][0]
        pairs = [(B + 1e-3 * (t % 2) * E, A, s) for t, (B, A, s) in enumerate(pairs[:1] * 40)]
        weights = [(-1.0) ** t for t in range(40)]
    if kind == "silent":
        weights = [0.0] * len(pairs)
    wanted = dense(pairs, weights)
    stack, svd = make_stack(pairs, weights), methods()["svd"]
    mix = svd.rule(stack, **svd.parameters({"rank": k}))
    factors = mix.apply(stack)
    U, sigma, Vh = torch.linalg.svd(wanted)
    best = U[:, :k] * sigma[:k] @ Vh[:k]
    found = factors.B[0].double() @ factors.A[0].double()
    term = size_of(pairs, [1.0] * len(pairs)) / len(pairs)
    assert float((found - best).norm()) <= 2e-6 * (float(wanted.norm()) + term)
    assert mix.sigma is not None
    assert torch.allclose(mix.sigma[0, :k], sigma[:k], rtol=1e-5, atol=1e-5)
    assert len(taken) == 1
    assert (taken[0] is None) == (kind in ("cancelling", "silent"))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, width=st.integers(1, 30), rows=st.integers(1, 12), known=st.integers(0, 8))
def test_orthonormal_rows_span_what_is_new(seed: int, width: int, rows: int, known: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, known, generator=generator).double()).Q.mT
    X = torch.randn(rows, width, generator=generator).double()
    X[rows // 2 :] = X[: rows - rows // 2] + 1e-4 * X[rows // 2 :]
    X[-1] = basis.sum(0)  # nothing new, or zero
    found = orthonormal(X, basis)
    both = torch.cat([basis, found])
    assert torch.allclose(both @ both.mT, torch.eye(len(both)).double(), atol=1e-10)
    rest = X - (X @ both.mT) @ both
    assert float(rest.norm()) <= 1e-6 * float(X.norm())
    assert len(both) == torch.linalg.matrix_rank(torch.cat([basis, X]), rtol=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("size", [(33, 45, 3), (96, 64, 8)])
def test_no_bit_depends_on_the_batch(method: Method, size: tuple[int, int, int]) -> None:
    """One module needs the path for dependent columns; some matrices are not aligned."""
    d_out, d_in, rank = size
    ranks = [rank] * min(3, method.most_adapters or 3)
    modules = [make_pairs(seed, d_out, d_in, ranks) for seed in range(4)]
    modules[1][1] = (modules[1][0][0].clone(), *modules[1][1][1:])
    ones = [make_stack(pairs, [1.0] * len(ranks)) for pairs in modules]
    ones = [replace(one, seeds=(i,)) for i, one in enumerate(ones)]
    together = replace(
        ones[0],
        B=torch.cat([one.B for one in ones]),
        A=torch.cat([one.A for one in ones]),
        coefficients=torch.cat([one.coefficients for one in ones]),
        seeds=tuple(range(len(ones))),
    )
    for given_rank in (None, rank):
        parameters = {"rank": given_rank} if "rank" in method.schema.model_fields else {}
        batch = apply(method, together, **parameters)
        for i, one in enumerate(ones):
            alone = apply(method, one, **parameters)
            assert torch.equal(batch.B[i : i + 1, :, : alone.width], alone.B)
            assert torch.equal(batch.A[i : i + 1, : alone.width], alone.A)


def test_dependent_columns_in_one_module_leave_the_others_their_path() -> None:
    pairs = make_pairs(0, 40, 48, [4, 4])
    twins = [pairs[0], (pairs[0][0], *pairs[1][1:])]
    stacks = [make_stack(p, [1.0, 1.0]) for p in (pairs, twins, pairs)]
    together = replace(
        stacks[0],
        **{n: torch.cat([getattr(s, n) for s in stacks]) for n in ("B", "A", "coefficients")},
    )
    mix = lowrank.best_approximation(together, rank=4)
    assert mix.precise == (False, True, False)
