"""Merges of single elements against PEFT and literal dense transcriptions, and their truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import Tensor

from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.engine.verify import verify
from lorahub.errors import InvalidAdapterError, InvalidRecipeError
from lorahub.kernels import delta as kernel
from lorahub.kernels.delta import Deltas, Merged, excess_residual
from lorahub.kernels.elementwise import Draws, thresholds
from lorahub.methods.registry import get
from tests.conftest import write_adapter
from tests.test_engine import deltas, load, merge, model_for, peft_deltas
from tests.test_laws import Pair, apply, make_pairs, make_stack

ELEMENTWISE = ["ties", "magnitude_prune", "dare", "dare_ties", "della", "breadcrumbs"]
seeds = st.integers(0, 10_000)
weight_values = st.sampled_from([-1.5, -0.5, 0.25, 1.0, 2.0])


def definition(
    name: str, pairs: Sequence[Pair], weights: Sequence[float], **parameters: object
) -> Merged:
    method = get(name)
    found = method.definition(make_stack(pairs, weights), [], method.parameters(parameters))
    assert isinstance(found, Merged)
    return found


def whole(merged: Merged) -> Tensor:
    return torch.cat([block.clone() for _, block in merged.blocks()])


def terms(pairs: Sequence[Pair]) -> list[Tensor]:
    """The deltas as PEFT makes them: in float32, scaled after the product."""
    return [(B @ A) * s for B, A, s in pairs]


def differing(one: Tensor, other: Tensor) -> int:
    return int(((one - other).abs() > 1e-5 * other.abs().max()).sum())


FACTORWISE = ["ties", "magnitude_prune", "dare_linear", "dare_ties"]


@settings(max_examples=60, deadline=None)
@given(seed=seeds, ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
       density=st.floats(0.05, 0.99), data=st.data(),
       sign=st.sampled_from(["total", "frequency"]))  # fmt: skip
def test_ties_and_magnitude_prune_are_pefts(
    seed: int, ranks: list[int], density: float, sign: Any, data: st.DataObject
) -> None:
    pairs = make_pairs(seed, 37, 29, ranks)
    weights = data.draw(st.lists(weight_values, min_size=len(ranks), max_size=len(ranks)))
    found = whole(definition("ties", pairs, weights, density=density, majority_sign=sign))
    wanted = merge_utils.ties(terms(pairs), torch.tensor(weights), density, sign)
    assert differing(found, wanted) <= 1  # rounding may decide one element otherwise
    found = whole(definition("magnitude_prune", pairs, weights, density=density))
    wanted = merge_utils.magnitude_prune(terms(pairs), torch.tensor(weights), density)
    assert differing(found, wanted) <= 1


def test_a_large_delta_is_pefts_too() -> None:
    """Beyond the size of which a sample brackets the thresholds."""
    pairs = make_pairs(4, 400, 300, [4, 8, 2])
    found = whole(definition("ties", pairs, [1.0, 0.5, 2.0], density=0.2))
    wanted = merge_utils.ties(terms(pairs), torch.tensor([1.0, 0.5, 2.0]), 0.2)
    assert differing(found, wanted) <= 2


@pytest.mark.parametrize("kind", ["ties", "magnitude_prune"])
def test_truncated_merges_are_as_near_as_pefts_svd_forms(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    modules = {"l.0.q": (48, 40, 4), "l.0.v": (48, 40, 4)}
    homes = [write_adapter(tmp_path / f"a{i}", modules, seed=i) for i in range(3)]
    weights = [0.5, 1.0, 0.7]
    model = PeftModel.from_pretrained(model_for(load(homes[0])), homes[0], adapter_name="a0")
    for i in (1, 2):
        model.load_adapter(homes[i], adapter_name=f"a{i}")
    model.add_weighted_adapter(
        ["a0", "a1", "a2"], weights, "m", combination_type=f"{kind}_svd", svd_rank=6, density=0.3
    )
    theirs = peft_deltas(model, "m")
    adapters = [load(h) for h in homes]
    plan = make_plan(adapters, weights, get(kind), {"rank": 6, "density": 0.3}, scale=1)
    ours = deltas(merge(plan, tmp_path / "out"))
    inputs = [deltas(h) for h in homes]
    for name, found in ours.items():
        tasks = [one[name] for one in inputs]
        rule = merge_utils.ties if kind == "ties" else merge_utils.magnitude_prune
        wanted = rule(tasks, torch.tensor(weights, dtype=torch.float64), 0.3)
        mine, peft = float((found - wanted).norm()), float((theirs[name] - wanted).norm())
        assert mine == pytest.approx(peft, rel=1e-5)
        assert float((found - theirs[name]).norm()) <= 1e-3 * float(found.norm())


@pytest.mark.parametrize("kind", ["ties", "magnitude_prune"])
@pytest.mark.parametrize("weights", [[0.5, 1.0, 0.7], [1.0, -0.5, 2.0]])
def test_factor_wise_forms_are_pefts(kind: str, weights: list[float], tmp_path: Path) -> None:
    from peft import PeftModel

    modules = {"l.0.q": (48, 40, 4), "l.0.v": (30, 40, 4)}
    homes = [write_adapter(tmp_path / f"a{i}", modules, seed=i) for i in range(3)]
    model = PeftModel.from_pretrained(model_for(load(homes[0])), homes[0], adapter_name="a0")
    for i in (1, 2):
        model.load_adapter(homes[i], adapter_name=f"a{i}")
    model.add_weighted_adapter(["a0", "a1", "a2"], weights, "m", combination_type=kind, density=0.3)
    theirs = peft_deltas(model, "m")
    method = get(f"{kind}_factors")
    plan = make_plan([load(h) for h in homes], weights, method, {"density": 0.3})
    assert plan.scale == 1
    for name, found in deltas(merge(plan, tmp_path / "out")).items():
        assert float((found - theirs[name]).norm()) <= 1e-6 * float(found.norm())


@pytest.mark.parametrize("kind", FACTORWISE)
@pytest.mark.parametrize("budget", [None, "rank 2"])
def test_factor_wise_merges_are_verified_and_keep_a_budget(
    kind: str, budget: str | None, tmp_path: Path
) -> None:
    modules = {"l.0.q": (48, 40, 4), "l.1.q": (48, 40, 4), "l.0.v": (30, 40, 4)}
    homes = [write_adapter(tmp_path / f"a{i}", modules, seed=i) for i in range(3)]
    plan = make_plan([load(h) for h in homes], [1, -0.5, 0.2], get(f"{kind}_factors"), {},
                     budget=budget, scale=0.7)  # fmt: skip
    out = merge(plan, tmp_path / "out")
    written = load(out).info.modules
    if budget:
        assert sum(m.parameters for m in written) <= 2 * sum(m.d_in + m.d_out for m in written)
    check = verify(plan, out / "adapter_model.safetensors", written, reports={})
    assert check.passed, check
    other = replace(plan, seed=1, parameters={**plan.parameters, "density": 0.4})
    assert not verify(other, out / "adapter_model.safetensors", written, reports={}).passed


def test_factors_are_dropped_with_one_draw_for_each_side() -> None:
    pairs = make_pairs(2, 40, 30, [4, 4])
    factors = apply(get("dare_linear_factors"), make_stack(pairs, [1.0, -0.5]), density=0.3125)
    B, A = torch.zeros(40, 4), torch.zeros(4, 30)
    for place, ((b, a, s), weight) in enumerate(zip(pairs, [1.0, -0.5])):
        root = (abs(weight) * s) ** 0.5
        B += root * b * (draws(place, (40, 4), 0) < 0.3125) / 0.3125
        A += (-root if weight < 0 else root) * a * (draws(place, (4, 30), 1) < 0.3125) / 0.3125
    assert differing(factors.B[0], B) == 0
    assert differing(factors.A[0], A) == 0


@pytest.mark.parametrize("shape", [(30, 20), (400, 300)])
@pytest.mark.parametrize("case", ["plain", "sparse", "equal", "outliers", "silent"])
def test_thresholds_are_exact(case: str, shape: tuple[int, int]) -> None:
    (B, A, _), _ = make_pairs(8, *shape, [3, 3])
    if case == "sparse":
        B[3:] = 0
    if case == "equal":
        B, A = torch.ones(shape[0], 1), torch.ones(1, shape[1])
    if case == "outliers":
        B[:2] *= 1e6
    if case == "silent":
        B.zero_()
    found = Deltas.of(make_stack([(B, A, 1.0)], [1.0]))
    dense = (B @ A).abs().flatten()
    for count in (0, 1, 7, len(dense) // 5, len(dense) - 1, len(dense)):
        (threshold,) = thresholds(found, count)
        if count == 0:
            assert threshold == float("inf")
        else:
            wanted = float(dense.kthvalue(len(dense) - count + 1).values)
            assert threshold == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("density", "outliers"), [(0.5, 0.1), (0.9, 0.2), (0.3, 0.0)])
def test_breadcrumbs_is_the_band_between_two_shares(density: float, outliers: float) -> None:
    pairs = make_pairs(11, 30, 25, [3, 2])
    weights = [1.0, -0.5]
    found = whole(definition("breadcrumbs", pairs, weights, density=density, outliers=outliers))
    size, wanted = 750, torch.zeros(30, 25)
    for task, weight in zip(terms(pairs), weights):
        order = task.abs().flatten().argsort(descending=True)
        first, last = int(outliers * size), int(min(1, outliers + density) * size)
        kept = torch.zeros(size)
        kept[order[first:last]] = 1
        wanted += weight * task * kept.view(30, 25)
    assert differing(found, wanted) == 0


def draws(place: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of one adapter."""
    like = Deltas((torch.zeros(shape[0], 1),), (torch.zeros(1, shape[1]),), (1.0,), (place,), seed)
    return (Draws(like).block(0, 0, shape[0]).float() + 2**15) / 2**16


def test_dare_is_a_literal_drop_and_rescale() -> None:
    pairs, weights, density = make_pairs(2, 40, 30, [3, 4]), [1.0, 0.5], 0.3125
    found = whole(definition("dare", pairs, weights, density=density))
    dropped = [t * (draws(i, (40, 30)) < density) / density for i, t in enumerate(terms(pairs))]
    assert differing(found, dropped[0] + 0.5 * dropped[1]) == 0
    found = whole(definition("dare_ties", pairs, weights, density=density))
    mask = merge_utils.calculate_majority_sign_mask(torch.stack(dropped))
    weighted = torch.stack([dropped[0], 0.5 * dropped[1]])
    assert differing(found, merge_utils.disjoint_merge(weighted, mask)) == 0


def test_della_is_a_literal_drop_by_rank() -> None:
    pairs, density, window = make_pairs(2, 20, 30, [3]), 0.4, 0.3
    found = whole(definition("della", pairs, [1.0], density=density, window=window))
    (task,) = terms(pairs)
    u, wanted = draws(0, (20, 30)), torch.zeros(20, 30)
    for i in range(20):
        for rank, j in enumerate(task[i].abs().argsort().tolist()):
            p = density + ((rank + 0.5) / 30 - 0.5) * window
            if u[i, j] < p:
                wanted[i, j] = task[i, j] / p
    assert differing(found, wanted) == 0
    same = whole(definition("della", pairs, [1.0], density=density, window=0.0))
    assert differing(same, whole(definition("dare_ties", pairs, [1.0], density=density))) == 0


@pytest.mark.parametrize(("density", "share"), [(1.0, 1), (0.2, 13107 / 65536), (1e-9, 1 / 65536)])
@pytest.mark.parametrize("columns", [60, 61])
def test_a_density_is_a_share_of_the_draws(density: float, share: float, columns: int) -> None:
    """To within 2^-16, by which what is kept is divided: no density drops everything."""
    pairs = [(torch.ones(50, 1), torch.ones(1, columns), 1.0)]
    found = whole(definition("dare", pairs, [1.0], density=density))
    wanted = (draws(0, (50, columns)) < share) / share
    assert torch.equal(found, wanted.float())


@pytest.mark.parametrize("name", ["dare", "dare_ties", "della"])
def test_dropping_meets_the_delta_in_expectation(name: str) -> None:
    pairs = make_pairs(5, 12, 10, [3])
    (task,) = terms(pairs)
    total, count, density = torch.zeros(12, 10), 3000, 0.4
    method = get(name)
    for seed in range(count):
        stack = replace(make_stack(pairs, [1.0]), seeds=(seed,))
        total += whole(method.definition(stack, [], method.parameters({"density": density})))
    # Five standard errors of a rescaled coin, for the rarest coin of the window.
    bound = 5 * task.abs() * (1 / (density - 0.1) - 1) ** 0.5 / count**0.5
    assert bool(((total / count - task).abs() <= bound + 1e-6).all())


def test_draws_are_uniform_and_independent() -> None:
    one, other = draws(0, (600, 500), 1), draws(1, (600, 500), 1)
    for half in (one[:, ::2], one[:, 1::2]):
        counts = torch.histc(half.contiguous(), 50, 0, 1)
        chi = float((counts - 3000).square().sum() / 3000)
        assert 20 < chi < 95  # 49 degrees of freedom
    later, shifted = draws(0, (600, 500), 2), one.roll(1, 1)
    low, high = one[:, ::2], one[:, 1::2]  # of one hash
    pairs = [(one, p) for p in (other, later, shifted, one.roll(1, 0), one.roll((7, 3), (0, 1)))]
    for one_of_two, pair in (*pairs, (low, high)):
        joint = torch.stack([one_of_two.flatten() < 0.2, pair.flatten() < 0.2]).double()
        assert abs(float(torch.corrcoef(joint)[0, 1])) < 5 / pair.numel() ** 0.5
    # No structure of rows against columns: the four corners of rectangles are independent.
    mask = (one < 0.5).double() * 2 - 1
    corners = mask[:-1, :-1] * mask[1:, :-1] * mask[:-1, 1:] * mask[1:, 1:]
    assert abs(float(corners.mean())) < 5 / 300_000**0.5


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elements_do_not_depend_on_the_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, weights = make_pairs(6, 70, 50, [3, 5]), [1.0, 0.4]
    one = whole(definition(name, pairs, weights))
    monkeypatch.setattr(kernel, "_BLOCK_BYTES", {"cpu": 1})
    assert sum(1 for _ in definition(name, pairs, weights).blocks()) > 1
    assert differing(one, whole(definition(name, pairs, weights))) == 0


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(300, 260), (90, 400)])
def test_truncation_is_within_its_promise(name: str, shape: tuple[int, int]) -> None:
    pairs, weights, k = make_pairs(9, *shape, [4, 6, 4]), [1.0, 0.5, 1.0], 5
    wanted = whole(definition(name, pairs, weights)).double()
    sigma = torch.linalg.svdvals(wanted)
    factors = apply(get(name), make_stack(pairs, weights), rank=k)
    B, A = factors.B[0].double(), factors.A[0].double()
    least = float(sigma[k:].norm())
    residual = float((wanted - B @ A).norm())
    assert residual <= least * (1 + 2e-6)
    assert factors.reports[0]["truncation"] == pytest.approx(
        residual / float(sigma.norm()), abs=1e-5
    )
    for kept in range(1, k):
        residual = float((wanted - B[:, :kept] @ A[:kept]).norm())
        assert residual <= float(sigma[kept:].norm()) * (1 + 1e-5)
    assert factors.sigma is not None
    assert torch.allclose(factors.sigma[0], sigma[:k], rtol=1e-3)


def float64(pairs: Sequence[Pair]) -> list[Pair]:
    return [(B.double(), A.double(), s) for B, A, s in pairs]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_truncation_should_not_cost_is_found(name: str) -> None:
    pairs, weights, k = make_pairs(3, 120, 100, [4, 4]), [1.0, 0.7], 4
    factors = apply(get(name), make_stack(pairs, weights), rank=k + 1)
    B, A = factors.B[0].double(), factors.A[0].double()
    wanted = definition(name, float64(pairs), weights)
    dense = whole(wanted)
    size = float(dense.norm())
    assert excess_residual(wanted, 1.0, B[:, :k], A[:k]) <= 1e-6 * size
    assert excess_residual(wanted, 0.5, B[:, :k] / 2, A[:k]) <= 1e-6 * size
    # A leading direction that is missing, and one that is off.
    for bad in (B[:, 1:] @ A[1:], B[:, :k] @ A[:k] + 0.05 * B[:, :1] @ A[1:2]):
        U, s, Vh = torch.linalg.svd(bad)
        excess = excess_residual(wanted, 1.0, U[:, :k] * s[:k], Vh[:k])
        least = float(torch.linalg.svdvals(dense)[k:].norm())
        truly = float((dense - bad).norm()) - least
        assert 0.8 * truly <= excess <= truly + 1e-9
        assert excess > 1e-4 * size


def test_elements_that_rounding_decides_are_no_error() -> None:
    """Magnitudes equal up to rounding: float32 and float64 keep different halves of them."""
    shares = torch.arange(64) / 63.7
    B, A = torch.stack([shares, 1 - shares], 1), torch.ones(2, 48)
    A *= 1 + torch.arange(48) % 3
    pairs = [(B, A, 1.0)]
    factors = apply(get("magnitude_prune"), make_stack(pairs, [1.0]), density=0.5, rank=2)
    wanted = definition("magnitude_prune", float64(pairs), [1.0], density=0.5)
    dense = whole(wanted)
    found = factors.B[0].double() @ factors.A[0].double()
    least = float(torch.linalg.svdvals(dense)[2:].norm())
    assert float((dense - found).norm()) - least > 1e-3 * float(dense.norm())
    excess = excess_residual(wanted, 1.0, factors.B[0].double(), factors.A[0].double())
    assert excess <= 1e-6 * float(dense.norm())


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_merges_to_files_are_verified_and_report_their_truncation(
    name: str, tmp_path: Path
) -> None:
    modules = {"l.0.q": (80, 64, 4), "l.1.q": (80, 64, 4), "l.0.up": (120, 64, 4)}
    homes = [write_adapter(tmp_path / f"a{i}", modules, seed=i, dtype="bfloat16") for i in range(3)]
    plan = make_plan([load(h) for h in homes], [1, -0.5, 0.2], get(name), {"rank": 20}, dtype="F32")
    out = merge(plan, tmp_path / "out")
    done = run(plan, tmp_path / "again.safetensors")
    weights = out / "adapter_model.safetensors"
    assert weights.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert {m.rank for m in done.modules} == {20}  # above the sum of the ranks
    assert all(0 < m.report["truncation"] < 1 for m in done.modules)
    check = verify(done.plan, weights, load(out).info.modules, reports={})
    assert check.passed
    assert check.error <= 1e-6


def test_a_damaged_result_does_not_pass(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    modules = {"l.0.q": (80, 64, 4), "l.1.q": (80, 64, 4)}
    homes = [write_adapter(tmp_path / f"a{i}", modules, seed=i) for i in range(2)]
    plan = make_plan([load(h) for h in homes], [1, 1], get("ties"), {"rank": 4}, dtype="F32")
    out = merge(plan, tmp_path / "out")
    path = out / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.l.1.q.lora_A.weight"][0] *= 1.05
    save_file(tensors, path, metadata={"format": "pt"})
    check = verify(plan, path, load(out).info.modules, reports={})
    assert not check.passed
    assert check.worst_module == "l.1.q"


@pytest.mark.parametrize("name", [*ELEMENTWISE, *(f"{kind}_factors" for kind in FACTORWISE)])
@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan"), "much"])
def test_a_density_out_of_bounds_is_refused(name: str, density: object) -> None:
    with pytest.raises(InvalidRecipeError, match=f"method '{name}', parameter 'density'"):
        get(name).parameters({"density": density})


def test_a_rank_above_the_smaller_side_is_refused(tmp_path: Path) -> None:
    home = write_adapter(tmp_path / "a", {"l.0.q": (12, 8, 3)})
    with pytest.raises(InvalidRecipeError, match="rank 9 is above the largest possible rank, 8"):
        make_plan([load(home)], [1], get("ties"), {"rank": 9})


@pytest.mark.parametrize("name", [*ELEMENTWISE, *(f"{kind}_factors" for kind in FACTORWISE)])
def test_a_factor_with_nan_is_named(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    homes = [write_adapter(tmp_path / f"a{i}", {"l.0.q": (30, 20, 3)}, seed=i) for i in range(2)]
    path = homes[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.l.0.q.lora_B.weight"][2, 1] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    plan = make_plan([load(h) for h in homes], [1, 1], get(name), {})
    with pytest.raises(InvalidAdapterError, match=r"a1.*lora_B.weight' holds NaN"):
        run(plan, tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_silent_and_tiny_modules(name: str, shape: tuple[int, int]) -> None:
    (B, A, s), other = make_pairs(1, *shape, [1, 2])
    silent = [(torch.zeros_like(B), A, s), (torch.zeros_like(other[0]), other[1], 1.0)]
    factors = apply(get(name), make_stack(silent, [1.0, 1.0]))
    assert float((factors.B @ factors.A).abs().sum()) == 0
    assert factors.reports == [{"truncation": 0.0}]
    factors = apply(get(name), make_stack([(B, A, s), other], [0.0, 0.0]))
    assert float((factors.B @ factors.A).abs().sum()) == 0
