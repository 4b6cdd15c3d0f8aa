"""RobustMerge against a literal transcription, element by element, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.engine.verify import verify
from lorahub.errors import IncompatibleError, InvalidAdapterError, InvalidRecipeError
from lorahub.methods.registry import get
from tests.conftest import write_adapter
from tests.test_engine import load, merge
from tests.test_laws import Pair, apply, make_pairs, make_stack

ROBUST = get("robust")
MODULES = {"l.0.q": (40, 32, 4), "l.1.q": (40, 32, 4), "l.0.up": (24, 32, 4)}


def pruned(X: Tensor, density: float) -> list[list[float]]:
    rows = X.double().tolist()
    sizes = sorted((abs(x) for row in rows for x in row), reverse=True)
    bound = sizes[max(1, int(density * len(sizes))) - 1]
    return [[x if abs(x) >= bound else 0.0 for x in row] for row in rows]


def literal(pairs: Sequence[Pair], weights: Sequence[float], density: float) -> Tensor:
    """The merged delta, by the loops of the paper's formulas."""
    (d_out, rank), d_in = pairs[0][0].shape, pairs[0][1].shape[1]
    parts = []
    for (B, A, s), weight in zip(pairs, weights):
        if weight == 0:
            continue
        kept_b, kept_a = pruned(B, density), pruned(A, density)
        ratios = []
        for j, row in enumerate(A.double().tolist()):
            whole, left = (sum(abs(x) for x in r) for r in (row, kept_a[j]))
            ratios.append(whole / left if left else 0.0)
        floor = sorted(ratios)[int(0.8 * rank)]
        ratios = [max(ratio, floor) if ratio else 0.0 for ratio in ratios]
        parts.append((kept_b, kept_a, ratios, weight * s))
    B, A = torch.zeros(d_out, rank).double(), torch.zeros(rank, d_in).double()
    for j in range(rank):
        total = sum(ratios[j] for _, _, ratios, _ in parts)
        for kept_b, kept_a, ratios, c in parts:
            root = math.sqrt(abs(c))
            for i in range(d_out):
                B[i, j] += root * kept_b[i][j] * (ratios[j] / total if total else 0.0)
            for i in range(d_in):
                A[j, i] += math.copysign(root, c) * kept_a[j][i]
    return B @ A


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    rank=st.integers(1, 6),
    weights=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=4),
    density=st.sampled_from([0.01, 0.2, 0.5, 0.93, 1.0]),
    ties=st.booleans(),
)
def test_it_is_the_formula(
    seed: int, shape: tuple[int, int], rank: int, weights: list[float], density: float, ties: bool
) -> None:
    pairs = make_pairs(seed, *shape, [rank] * len(weights))
    if ties:
        pairs = [((2 * B).round(), (2 * A).round(), s) for B, A, s in pairs]
    factors = apply(ROBUST, make_stack(pairs, weights), density=density)
    assert factors.B.shape == (1, shape[0], rank)
    found = factors.B[0].double() @ factors.A[0].double()
    wanted = literal(pairs, weights, density)
    assert float((found - wanted).norm()) <= 2e-6 * max(float(wanted.norm()), 1e-30)


def test_units_that_lose_more_are_scaled_up_in_proportion() -> None:
    """Five of eight elements are kept: of the second adapter's first row only 5 out of 17."""
    B = torch.eye(2)
    one = (B, torch.tensor([[8.0, 0.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]]), 1.0)
    other = (2 * B, torch.tensor([[5.0, 4.0, 4.0, 4.0], [8.0, 8.0, 8.0, 8.0]]), 1.0)
    factors = apply(ROBUST, make_stack([one, other], [1.0, 1.0]), density=0.625)
    ratio = 17 / 5
    # Its second row loses nothing; the ratio of that, 1, is raised to the other's.
    assert factors.B[0].diagonal().tolist() == pytest.approx([(1 + 2 * ratio) / (1 + ratio)] * 2)
    assert factors.A[0].tolist() == [[13.0, 0.0, 0.0, 0.0], [16.0, 8.0, 8.0, 8.0]]


def test_silent_modules_stay_silent() -> None:
    (B, A, s), other = make_pairs(1, 6, 5, [2, 2])
    for pairs, weights in (
        ([(torch.zeros_like(B), A, s), (torch.zeros_like(B), other[1], 1.0)], [1.0, 1.0]),
        ([(B, torch.zeros_like(A), s)], [1.0]),
        ([(B, A, s), other], [0.0, 0.0]),
    ):
        factors = apply(ROBUST, make_stack(pairs, weights))
        assert float((factors.B @ factors.A).abs().sum()) == 0


def test_files_are_merged_alike_whatever_the_batches_and_verified(tmp_path: Path) -> None:
    folders = [
        write_adapter(tmp_path / f"a{i}", MODULES, seed=i, dtype="bfloat16") for i in range(3)
    ]
    plan = make_plan([load(f) for f in folders], [1, -0.5, 0.2], ROBUST, {}, dtype="F32")
    out = merge(plan, tmp_path / "out", workers=1, batch_bytes=1)
    weights = out / "adapter_model.safetensors"
    run(plan, tmp_path / "again.safetensors", workers=3)
    assert weights.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    check = verify(plan, weights, load(out).info.modules, reports={})
    assert check.error <= 1e-6
    other = make_plan(plan.adapters, plan.weights, ROBUST, {"density": 0.25}, dtype="F32")
    assert not verify(other, weights, load(out).info.modules, reports={}).passed


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_factor_with_nan_is_named(side: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folders = [write_adapter(tmp_path / f"a{i}", MODULES, seed=i) for i in range(2)]
    path = folders[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.l.0.q.lora_{side}.weight"][2, 1] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    plan = make_plan([load(f) for f in folders], [1, 1], ROBUST, {})
    with pytest.raises(InvalidAdapterError, match=rf"a1.*lora_{side}.weight' holds NaN"):
        run(plan, tmp_path / "out.safetensors")


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan, "much"])
def test_a_density_out_of_bounds_is_refused(density: object) -> None:
    with pytest.raises(InvalidRecipeError, match="method 'robust', parameter 'density'"):
        ROBUST.parameters({"density": density})


def test_unequal_ranks_are_refused(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", {"l.0.q": (12, 8, 3)})
    other = write_adapter(tmp_path / "b", {"l.0.q": (12, 8, 2)})
    with pytest.raises(IncompatibleError, match="method 'robust' needs equal ranks"):
        make_plan([load(one), load(other)], [1, 1], ROBUST, {})
