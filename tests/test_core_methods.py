"""Core-space and spherical methods against literal transcriptions on dense float64 matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.engine.verify import verify
from lorahub.errors import InvalidAdapterError, InvalidRecipeError
from lorahub.methods.registry import get, methods
from tests.conftest import EXAMPLES, write_adapter
from tests.test_engine import deltas, load, merge
from tests.test_laws import Pair, apply, close, make_pairs, make_stack, size_of

Dense = NDArray[np.float64]

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(3, 24), st.integers(3, 24))
several = st.lists(st.integers(1, 6), min_size=2, max_size=4)
weight_values = st.sampled_from([-1.0, 0.5, 1.0, 2.0])

OURS = (
    "cart", "core", "ctm", "flat", "iso_c", "iso_cts", "karcher", "knots", "pico", "slerp", "tsv",
    "tsv_iso",
)  # fmt: skip


def dense_parts(pairs: Sequence[Pair], weights: Sequence[float]) -> list[Dense]:
    return [(w * s * (B.double() @ A.double())).numpy() for (B, A, s), w in zip(pairs, weights)]


def result(name: str, pairs: Sequence[Pair], weights: Sequence[float], **options: Any) -> Tensor:
    factors = apply(get(name), make_stack(pairs, weights), **options)
    return factors.B[0].double() @ factors.A[0].double()


def polar(X: Dense) -> Dense:
    P, sigma, Qh = np.linalg.svd(X, full_matrices=False)
    kept = sigma > 1e-6 * sigma[0]
    return P[:, kept] @ Qh[kept]


def leading(X: Dense, k: int) -> tuple[Dense, Dense, Dense]:
    """The first k singular triplets that are not zero."""
    U, sigma, Vh = np.linalg.svd(X, full_matrices=False)
    k = min(k, int((sigma > 1e-6 * sigma[0]).sum()))
    return U[:, :k], sigma[:k], Vh[:k]


def flat_sum(parts: Sequence[Dense], ranks: Sequence[int], **_: Any) -> Dense:
    U, sigma, Vh = leading(sum(parts), sum(ranks))
    return sigma.mean() * (U @ Vh)


def tsv(parts: Sequence[Dense], ranks: Sequence[int], keep: int = 99, **_: Any) -> Dense:
    triplets = [leading(W, min(r, keep)) for W, r in zip(parts, ranks)]
    U = np.concatenate([U for U, _, _ in triplets], 1)
    sigma = np.concatenate([s for _, s, _ in triplets])
    V = np.concatenate([Vh.T for _, _, Vh in triplets], 1)
    return polar(U) @ np.diag(sigma) @ polar(V).T


def tsv_iso(parts: Sequence[Dense], ranks: Sequence[int], **_: Any) -> Dense:
    n = len(parts)
    return 0.625 * n**-0.7 * tsv(parts, ranks) + (0.55 / n) ** (1 / 3) * flat_sum(parts, ranks)


def ties(parts: Sequence[Dense], density: float) -> Dense:
    trimmed = []
    for X in parts:
        count = max(1, int(density * X.size))
        least = np.sort(np.abs(X), axis=None)[-count]
        trimmed.append(np.where((np.abs(X) >= least) & (np.abs(X) > 1e-9), X, 0))
    merged = np.zeros_like(parts[0])
    for place in np.ndindex(merged.shape):
        values = [X[place] for X in trimmed]
        if abs(sum(values)) > 1e-9:
            agreeing = [v for v in values if v * sum(values) > 0]
            merged[place] = sum(agreeing) / len(agreeing)
    return merged


def knots(parts: Sequence[Dense], density: float, rank: int = 99, **_: Any) -> Dense:
    U, S, Vh = leading(np.concatenate(parts, 1), rank)
    _, _, axes = leading(np.concatenate(parts, 0), rank)
    aligned = np.split(np.diag(S) @ Vh, len(parts), 1)
    return U @ ties([SV @ axes.T for SV in aligned], density) @ axes


def core_space(pairs: Sequence[Pair], weights: Sequence[float], density: float) -> Dense:
    folded = [
        (
            (B.double() * math.sqrt(abs(w) * s)).numpy(),
            (A.double() * math.sqrt(abs(w) * s)).numpy() * np.sign(w),
        )
        for (B, A, s), w in zip(pairs, weights)
    ]
    U, _, _ = leading(np.concatenate([B for B, _ in folded], 1), 99)
    _, _, Vh = leading(np.concatenate([A for _, A in folded], 0), 99)
    return U @ ties([(U.T @ B) @ (A @ Vh.T) for B, A in folded], density) @ Vh


def iso_cts(parts: Sequence[Dense], common: float, **_: Any) -> Dense:
    tasks = len(parts)
    q = min(len(leading(np.concatenate(parts, axis), 99)[1]) for axis in (0, 1))
    own = min(round((1 - common) * q / tasks), q // tasks)
    U, sigma, Vh = leading(sum(parts), q - tasks * own)
    left, values, right = [U], [sigma], [Vh.T]
    for W in parts:
        rest = W - U @ U.T @ W
        u, s, vh = np.linalg.svd(rest, full_matrices=False)
        kept = min(own, int((s > 1e-6 * sigma[0]).sum()))
        left, values, right = [*left, u[:, :kept]], [*values, s[:kept]], [*right, vh[:kept].T]
    level = np.concatenate(values).mean()
    return level * polar(np.concatenate(left, 1)) @ polar(np.concatenate(right, 1)).T


def cart(parts: Sequence[Dense], keep: int, **_: Any) -> Dense:
    mean = sum(parts) / len(parts)
    total = mean.copy()
    for W in parts:
        U, sigma, Vh = np.linalg.svd(W - mean, full_matrices=False)
        total += U[:, :keep] * sigma[:keep] @ Vh[:keep]
    return total


@pytest.mark.parametrize(
    ("name", "transcription", "options"),
    [
        ("iso_c", flat_sum, {}),
        ("flat", flat_sum, {}),
        ("tsv", tsv, {}),
        ("tsv", tsv, {"keep": 2}),
        ("tsv_iso", tsv_iso, {}),
        ("knots", knots, {"density": 0.5}),
        ("knots", knots, {"density": 0.2}),
        ("ctm", knots, {"density": 0.5, "rank": 3}),
        ("iso_cts", iso_cts, {"common": 0.8}),
        ("iso_cts", iso_cts, {"common": 0.5}),
        ("cart", cart, {"keep": 2}),
    ],
)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=several, data=st.data())
def test_equals_a_literal_transcription(
    name: str,
    transcription: Callable[..., Dense],
    options: dict[str, Any],
    seed: int,
    shape: tuple[int, int],
    ranks: list[int],
    data: st.DataObject,
) -> None:
    pairs = make_pairs(seed, *shape, ranks)
    weights = data.draw(st.lists(weight_values, min_size=len(ranks), max_size=len(ranks)))
    parts = dense_parts(pairs, weights)
    wanted = torch.from_numpy(transcription(parts, ranks=ranks, **options))
    found = result(name, pairs, weights, **options)
    assert close(found, wanted, size_of(pairs, weights), 1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=several, density=st.sampled_from([0.2, 0.5, 1.0]))
def test_core_space_equals_a_literal_transcription(
    seed: int, shape: tuple[int, int], ranks: list[int], density: float
) -> None:
    pairs = make_pairs(seed, *shape, ranks)
    weights = [1.0, -0.5, 2.0, 0.7][: len(ranks)]
    wanted = torch.from_numpy(core_space(pairs, weights, density))
    found = result("core", pairs, weights, density=density)
    assert close(found, wanted, size_of(pairs, weights), 1e-5)


@pytest.mark.parametrize("rule", ["sum", "tsv"])
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=several)
def test_pico_equals_a_literal_transcription(
    rule: str, seed: int, shape: tuple[int, int], ranks: list[int]
) -> None:
    pairs = make_pairs(seed, *shape, ranks)
    weights = [1.0, -0.5, 2.0, 0.7][: len(ranks)]
    folded = [B.double().numpy() * math.sqrt(abs(w) * s) for (B, _, s), w in zip(pairs, weights)]
    U, sigma, _ = np.linalg.svd(np.concatenate(folded, 1), full_matrices=False)
    alpha = 1 / (1 + (len(ranks) - 1) * sigma**2 / (sigma**2).sum())
    parts = dense_parts(pairs, weights)
    calm = [U @ np.diag(alpha) @ U.T @ W for W in parts]
    merged = sum(calm) if rule == "sum" else tsv(calm, ranks)
    wanted = merged * np.mean([np.linalg.norm(W) for W in parts]) / np.linalg.norm(merged)
    found = result("pico", pairs, weights, rule=rule)
    assert close(found, torch.from_numpy(wanted), size_of(pairs, weights), 1e-5)


@pytest.mark.parametrize("name", ["core", "knots", "ctm"])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, ranks=several)
def test_the_rule_sum_adds(name: str, seed: int, ranks: list[int]) -> None:
    pairs = make_pairs(seed, 12, 12, ranks)
    weights = [1.0] * len(ranks)
    wanted = torch.from_numpy(sum(dense_parts(pairs, weights)))
    found = result(name, pairs, weights, rule="sum", rank=min(12, sum(ranks)))
    assert close(found, wanted, size_of(pairs, weights))


@pytest.mark.parametrize("name", sorted(set(OURS) - {"core", "pico"}))
@settings(max_examples=15, deadline=None)
@given(seed=seeds, shape=shapes, ranks=several)
def test_depends_on_the_deltas_alone(
    name: str, seed: int, shape: tuple[int, int], ranks: list[int]
) -> None:
    """Any invertible change of an adapter's own factors changes nothing but rounding."""
    pairs = make_pairs(seed, *shape, ranks[: get(name).most_adapters])
    other = []
    for i, (B, A, s) in enumerate(pairs):
        r = B.shape[1]
        generator = torch.Generator().manual_seed(seed + i)
        turn = torch.randn(r, r, generator=generator, dtype=torch.float64)
        turn = torch.linalg.qr(turn).Q * torch.linspace(0.5, 2, r, dtype=torch.float64)
        other.append((B.double() @ turn, turn.inverse() @ A.double(), s))
    weights = [1.0] * len(pairs)
    exact = [(B.double(), A.double(), s) for B, A, s in pairs]
    one, two = result(name, exact, weights), result(name, other, weights)
    assert close(one, two, size_of(exact, weights), 1e-6)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_does_not_depend_on_the_order_of_the_adapters(name: str, seed: int) -> None:
    """Flat spectra too have an order in which ranks are cut."""
    pairs = make_pairs(seed, 18, 22, [4, 3, 5][: get(name).most_adapters])
    weights = [1.0, 0.5, 0.8][: len(pairs)]
    found = []
    for some, own in ((pairs, weights), (pairs[::-1], weights[::-1])):
        factors = apply(get(name), make_stack(some, own), rank=3)
        found.append(factors.B[0, :, :3].double() @ factors.A[0, :3].double())
    assert close(*found, size_of(pairs, weights), 1e-5)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_one_adapter(name: str, copies: int) -> None:
    """Exactly dependent factors: a direction of no length is never made into one."""
    copies = min(copies, get(name).most_adapters or copies)
    pairs = make_pairs(4, 20, 16, [4])
    found = result(name, pairs * copies, [1.0] * copies)
    (one,) = dense_parts(pairs, [1.0])
    wanted = {
        "iso_c": copies * flat_sum([one], [4]),
        "flat": copies * flat_sum([one], [4]),
        "iso_cts": None,  # what is left outside the sum's own directions is rounding
        "karcher": one,
        "slerp": one,
        "tsv": one,
        "knots": None,
        "core": None,
        "ctm": None,
        "cart": one,
        "pico": None,
        "tsv_iso": 0.625 * copies**-0.7 * one
        + (0.55 / copies) ** (1 / 3) * copies * flat_sum([one], [4]),
    }[name]
    assert bool(torch.isfinite(found).all())
    assert int((torch.linalg.svdvals(found) > 1e-5 * float(found.norm())).sum()) <= 4
    if wanted is not None:
        assert close(found, torch.from_numpy(wanted), float(np.linalg.norm(wanted)), 1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)), share=st.floats(0.1, 0.9))
def test_slerp_equals_the_formula(seed: int, ranks: tuple[int, int], share: float) -> None:
    pairs = make_pairs(seed, 10, 14, ranks)
    one, other = dense_parts(pairs, [1.0, 1.0])
    cosine = (one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other))
    theta = np.arccos(cosine)
    wanted = (np.sin((1 - share) * theta) * one + np.sin(share * theta) * other) / np.sin(theta)
    weights = [3 * (1 - share), 3 * share]
    found = result("slerp", pairs, weights)
    assert close(found, torch.from_numpy(wanted), size_of(pairs, [1.0, 1.0]))
    turned = result("slerp", pairs, [weights[0], -weights[1]])
    back = result("slerp", [pairs[0], (-pairs[1][0], *pairs[1][1:])], weights)
    assert close(turned, back, size_of(pairs, [1.0, 1.0]))


def test_slerp_of_parallel_and_opposite_adapters_is_straight() -> None:
    (pair,) = make_pairs(1, 9, 8, [3])
    B, A, s = pair
    (one,) = dense_parts([pair], [1.0])
    found = result("slerp", [pair, (B, A, 3 * s)], [1.0, 1.0])
    assert close(found, torch.from_numpy(2 * one), size_of([pair], [1.0]))
    found = result("slerp", [pair, (-B, A, 3 * s)], [1.0, 1.0])
    assert close(found, torch.from_numpy(-one), size_of([pair], [1.0]))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, ranks=several, data=st.data())
def test_karcher_mean_is_where_the_pulls_balance(
    seed: int, ranks: list[int], data: st.DataObject
) -> None:
    pairs = make_pairs(seed, 12, 10, ranks)
    values = st.sampled_from([0.5, 1.0, 2.0])
    weights = data.draw(st.lists(values, min_size=len(ranks), max_size=len(ranks)))
    shares = np.array(weights) / sum(weights)
    parts = dense_parts(pairs, [1.0] * len(ranks))
    norms = [np.linalg.norm(W) for W in parts]
    found = result("karcher", pairs, weights).numpy()
    assert np.linalg.norm(found) == pytest.approx(shares @ norms, rel=1e-5)
    u = found / np.linalg.norm(found)
    pull = np.zeros_like(u)
    for share, W, norm in zip(shares, parts, norms):
        cosine = (u * W).sum() / norm
        pull += share * np.arccos(cosine) / np.sqrt(1 - cosine**2) * (W / norm - cosine * u)
    assert np.linalg.norm(pull) <= 1e-5


@settings(max_examples=20, deadline=None)
@given(seed=seeds, ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_karcher_of_two_of_one_norm_is_slerp(seed: int, ranks: tuple[int, int]) -> None:
    pairs = make_pairs(seed, 10, 14, ranks)
    norms = [np.linalg.norm(W) for W in dense_parts(pairs, [1.0, 1.0])]
    pairs = [(B, A, s / n) for (B, A, s), n in zip(pairs, norms)]
    for weights in ([1.0, 1.0], [1.0, 3.0]):
        found = result("karcher", pairs, weights)
        assert close(found, result("slerp", pairs, weights), 1.0, 1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, ranks=several, k=st.integers(1, 8))
def test_a_cut_keeps_the_level_of_the_full_spectrum(
    seed: int, shape: tuple[int, int], ranks: list[int], k: int
) -> None:
    pairs = make_pairs(seed, *shape, ranks)
    weights = [1.0] * len(ranks)
    U, sigma, Vh = leading(sum(dense_parts(pairs, weights)), sum(ranks))
    k = min(k, len(sigma))
    wanted = torch.from_numpy(sigma.mean() * (U[:, :k] @ Vh[:k]))
    assert close(result("iso_c", pairs, weights, rank=k), wanted, size_of(pairs, weights), 1e-5)


SHAPES = {"a.q": (12, 8), "a.up": (20, 8), "b.q": (12, 8), "b.down": (8, 20)}


def some_adapters(folder: Path, ranks: Sequence[int] = (3, 2, 4)) -> list[Path]:
    return [
        write_adapter(
            folder / f"a{i}",
            {n: (*shape, r) for n, shape in SHAPES.items()},
            seed=i,
            alpha=(i + 1) * r,
        )
        for i, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("rule", ["energy", "uniform"])
def test_flat_spends_its_budget_over_modules(rule: Any, tmp_path: Path) -> None:
    """Section by section: equal norms, one spectrum per module, greedy ranks, one level each."""
    folders = some_adapters(tmp_path)
    sources = [deltas(f) for f in folders]
    energies = [sum(float(d.square().sum()) for d in s.values()) for s in sources]
    w = [math.sqrt(sorted(energies)[1] / e) for e in energies]
    spectra = {n: leading(sum(x * s[n].numpy() for x, s in zip(w, sources)), 99) for n in SHAPES}
    width = {n: sum(shape) for n, shape in SHAPES.items()}
    k, spent = dict.fromkeys(SHAPES, 1), sum(width.values())
    order = sorted(((s**2 / width[n], n) for n in SHAPES for s in spectra[n][1][1:]), reverse=True)
    budget = 4 * sum(width.values())
    for _, n in order:
        if spent + width[n] > budget:
            break
        k[n], spent = k[n] + 1, spent + width[n]
    if rule == "uniform":
        k = dict.fromkeys(SHAPES, 4)
    allocate = None if rule == "energy" else rule
    plan = make_plan([load(f) for f in folders], [1, 1, 1], get("flat"), {"rank": 4},
                     allocate=allocate)  # fmt: skip
    assert plan.budget is not None
    assert (plan.budget.parameters, plan.budget.rule) == (budget, rule)
    out = merge(plan, tmp_path / "out")
    assert {m.name: m.rank for m in load(out).info.modules} == k
    scale = (4.4 / 3) ** (1 / 3)
    for n, found in deltas(out).items():
        U, s, Vh = spectra[n]
        wanted = scale * s.mean() * (U[:, : k[n]] @ Vh[: k[n]])
        assert close(found, torch.from_numpy(wanted), float(np.linalg.norm(wanted)), 1e-5)


def test_flat_with_every_rank_is_iso_c(tmp_path: Path) -> None:
    adapters = [load(f) for f in some_adapters(tmp_path)]
    flat = make_plan(adapters, [1, 1, 1], get("flat"), {"rank": 8}, allocate="uniform")
    iso = make_plan(adapters, [1, 1, 1], get("iso_c"), {})
    one, other = (deltas(merge(p, tmp_path / p.method.name)) for p in (flat, iso))
    for name, wanted in other.items():
        assert close(one[name], wanted, float(wanted.norm()))


def test_flat_without_a_rank_is_as_large_as_the_mean_adapter(tmp_path: Path) -> None:
    adapters = [load(f) for f in some_adapters(tmp_path)]
    plan = make_plan(adapters, [1, 1, 1], get("flat"), {})
    assert plan.budget is not None
    assert plan.budget.parameters == 3 * sum(sum(s) for s in SHAPES.values())
    given_one = make_plan(adapters, [1, 1, 1], get("flat"), {"rank": 5}, budget=200)
    assert given_one.budget is not None
    assert given_one.budget.parameters == 200


def test_an_adapter_of_zeros_changes_nothing_and_is_named(tmp_path: Path) -> None:
    folders = some_adapters(tmp_path)
    silent = write_adapter(tmp_path / "silent", {n: (*s, 2) for n, s in SHAPES.items()}, alpha=0)
    sources = [load(f) for f in folders]
    one = make_plan(sources, [1] * 3, get("flat"), {"rank": 3}, scale=1.0)
    other = make_plan([*sources, load(silent)], [1] * 4, get("flat"), {"rank": 3}, scale=1.0)
    wanted = deltas(merge(one, tmp_path / "one"))
    for name, found in deltas(merge(other, tmp_path / "other")).items():
        assert close(found, wanted[name], float(wanted[name].norm()), 1e-5)
    done = run(other, tmp_path / "again.safetensors")
    assert "'silent' is zero in every module and adds nothing" in done.plan.notes


def test_slerp_of_three_is_refused(tmp_path: Path) -> None:
    adapters = [load(f) for f in some_adapters(tmp_path)]
    with pytest.raises(InvalidRecipeError, match="'slerp' merges 2 adapters, not 3") as error:
        make_plan(adapters, [1, 1, 1], get("slerp"), {})
    assert "karcher" in str(error.value.hint)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_real_merges_pass_verification(name: str, dtype: str, tmp_path: Path) -> None:
    """Whole, cut and under a budget; the same bytes for any batch size and worker count."""
    names = ("languages", "packages", "manuals")[: get(name).most_adapters]
    adapters = [load(EXAMPLES / n) for n in names]
    for i, options in enumerate(({}, {"rank": 5})):
        budget = "rank 3" if i and name != "flat" else None
        plan = make_plan(adapters, [1.0] * len(names), get(name), options, dtype=dtype,
                         budget=budget)  # fmt: skip
        bodies = []
        for workers, size in ((1, 1), (2, 1 << 30)):
            folder = tmp_path / f"{i}-{workers}"
            folder.mkdir()
            path = folder / "adapter_model.safetensors"
            done = run(plan, path, workers=workers, batch_bytes=size)
            bodies.append(path.read_bytes())
        assert bodies[0] == bodies[1]
        merge(plan, tmp_path / f"{i}-m")
        out = load(tmp_path / f"{i}-m")
        check = verify(done.plan, out.weights_path, out.info.modules, reports={})
        assert check.passed
        assert check.error <= {"F32": 1e-6, "BF16": 1e-2}[dtype]


@pytest.mark.parametrize("name", ["flat", "iso_c", "iso_cts"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_other_directions_than_the_leading_ones_do_not_verify(
    name: str, dtype: str, tmp_path: Path
) -> None:
    """Of a flat spectrum any directions are as near to the whole as the leading ones."""
    adapters = [
        load(write_adapter(tmp_path / str(seed), {"a.q": (40, 30, 4)}, seed=seed))
        for seed in (1, 2)
    ]
    bodies = {}
    for k in (3, 8):
        plan = make_plan(adapters, [1, 1], get(name), {"rank": k}, dtype=dtype)
        path = merge(plan, tmp_path / f"{k}") / "adapter_model.safetensors"
        bodies[k] = load_file(path)
    plan = make_plan(adapters, [1, 1], get(name), {"rank": 3}, dtype=dtype)
    plan = run(plan, tmp_path / "again").plan
    path = tmp_path / "3" / "adapter_model.safetensors"
    modules = load(tmp_path / "3").info.modules
    assert verify(plan, path, modules, reports={}).passed
    for kept in ([5, 6, 7], [0, 1, 7]):
        save_file(
            {
                key: (value[kept] if "lora_A" in key else value[:, kept]).contiguous()
                for key, value in bodies[8].items()
            },
            path,
        )
        assert not verify(plan, path, modules, reports={}).passed, kept


def test_a_module_of_one_adapter_stays_as_it_is(tmp_path: Path) -> None:
    both = {"a.q": (12, 8, 3)}
    one = write_adapter(tmp_path / "one", both | {"a.up": (20, 8, 3)}, seed=1)
    other = write_adapter(tmp_path / "other", both, seed=2)
    for name in OURS:
        plan = make_plan([load(one), load(other)], [1, 1], get(name), {}, normalize=False,
                         scale=1.0, allocate="uniform" if name == "flat" else None)  # fmt: skip
        found = deltas(merge(plan, tmp_path / name))["a.up"]
        wanted = deltas(one)["a.up"]
        assert close(found, wanted, float(wanted.norm()), 1e-6), name


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_are_named(name: str, value: float, tmp_path: Path) -> None:
    folders = some_adapters(tmp_path)[: get(name).most_adapters]
    path = folders[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.b.q.lora_B.weight"
    tensors[key][3, 1] = value
    save_file(tensors, path)
    plan = make_plan([load(f) for f in folders], [1.0] * len(folders), get(name), {})
    with pytest.raises(InvalidAdapterError, match=r"b\.q\.lora_B\.weight' holds NaN or Inf"):
        run(plan, tmp_path / "out.safetensors")


def test_every_method_here_is_registered() -> None:
    assert set(OURS) <= set(methods())
