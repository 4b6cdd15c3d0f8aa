"""The engine around methods: ranks under a budget, adapters normalised, memory that runs out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub import formats
from lorahub.adapter import Adapter
from lorahub.engine.plan import Plan, make_plan
from lorahub.engine.run import Run, run
from lorahub.engine.verify import verify
from lorahub.errors import InvalidAdapterError, InvalidRecipeError, ResourceError
from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import get, methods
from tests.conftest import EXAMPLES, write_adapter
from tests.test_engine import deltas, distance, load, merge

NAMES = ("languages", "packages", "manuals")
ALL = [m for m in methods().values() if not m.equal_ranks]
IDS = [m.name for m in ALL]


@pytest.fixture(scope="module")
def adapters() -> list[Adapter]:
    return [load(EXAMPLES / name) for name in NAMES]


def written(folder: Path) -> int:
    return sum(m.parameters for m in load(folder).info.modules)


def checked(plan: Plan, folder: Path) -> Path:
    """Run a plan and verify what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    done = run(plan, folder / "adapter_model.safetensors")
    ranks = {m.name: m.rank for m in done.modules}
    config = formats.peft.config_for(
        ranks, base_model=plan.base_model, task_type=None, fan_in_fan_out=plan.fan_in_fan_out
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    reports = {m.name: m.report for m in done.modules}
    modules = load(folder).info.modules
    check = verify(done.plan, folder / "adapter_model.safetensors", modules, reports=reports)
    assert check.passed, (plan.method.name, check)
    return folder


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """The adapters in two of their six layers, which is where methods take their time."""
    folders = [tmp_path_factory.mktemp("layers") / name for name in NAMES]
    for name, folder in zip(NAMES, folders):
        shutil.copytree(EXAMPLES / name, folder)
        path = folder / "adapter_model.safetensors"
        tensors = {k: t for k, t in load_file(path).items() if re.search(r"\.layer\.[05]\.", k)}
        save_file(tensors, path, metadata={"format": "pt"})
    return [load(folder) for folder in folders]


@pytest.mark.parametrize("method", ALL, ids=IDS)
def test_any_method_keeps_a_budget_with_the_best_ranks(
    method: Any, layers: list[Adapter], tmp_path: Path
) -> None:
    adapters = layers[: method.most_adapters]
    weights = [1.0] * len(adapters)
    whole = make_plan(adapters, weights, method, {}, dtype="F32",
                      **({"budget": "0%"} if method.allocation else {}))  # fmt: skip
    full = deltas(merge(whole, tmp_path / "full"))
    assert len(full) == 12
    sigma = {name: torch.linalg.svdvals(delta) for name, delta in full.items()}
    budget = written(tmp_path / "full") // 3
    for rule in ("relative", "welore"):
        plan = make_plan(adapters, weights, method, {}, dtype="F32", allocate=rule, budget=budget)
        cut = checked(plan, tmp_path / rule)
        assert written(cut) <= budget, rule
        ranks = {m.name: m.rank for m in load(cut).info.modules}
        assert len(set(ranks.values())) > 1, rule
        for name, delta in deltas(cut).items():
            residual = float((full[name] - delta).norm())
            allowed = float(sigma[name][ranks[name] :].norm()) + 1e-5 * float(sigma[name].norm())
            assert residual <= allowed, (rule, name)


def test_welore_is_nearer_to_the_sum_than_one_rank_for_all(
    adapters: list[Adapter], tmp_path: Path
) -> None:
    exact = deltas(merge(make_plan(adapters, [1, 1, 1], get("cat"), {}), tmp_path / "cat"))
    errors = {}
    for rule in ("uniform", "energy"):
        plan = make_plan(adapters, [1, 1, 1], get("welore"), {}, allocate=rule, budget="rank 6")
        errors[rule] = distance(deltas(merge(plan, tmp_path / rule)), exact)
        assert written(tmp_path / rule) <= 6 * sum(m.d_in + m.d_out for m in plan.modules)
    assert errors["energy"] < errors["uniform"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "method 'welore' needs a budget"),
        ({"budget": 10}, "too small"),
        ({"budget": "a lot"}, "a lot"),
        ({"budget": "-5%"}, "-5%"),
    ],
)
def test_budgets_that_cannot_be_met(
    options: dict[str, Any], message: str, adapters: list[Adapter], tmp_path: Path
) -> None:
    with pytest.raises(InvalidRecipeError, match=message):
        run(make_plan(adapters, [1, 1, 1], get("welore"), {}, **options), tmp_path / "out")


def test_a_budget_with_silent_modules(tmp_path: Path) -> None:
    """A module whose deltas are all zero keeps rank 1 and stays zero."""
    modules = {"l.0.q": (12, 8, 3), "l.1.q": (12, 8, 3)}
    folders = [write_adapter(tmp_path / f"a{i}", modules, seed=i) for i in range(2)]
    for folder in folders:
        silence(folder, "l.1.q")
    plan = make_plan([load(f) for f in folders], [1, 1], get("welore"), {}, budget="rank 2")
    out = merge(plan, tmp_path / "out")
    ranks = {m.name: m.rank for m in load(out).info.modules}
    assert ranks["l.1.q"] == 1
    assert float(deltas(out)["l.1.q"].norm()) == 0


def silence(folder: Path, module: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{module}.lora_B.weight"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})


def norms(plan: Plan, folder: Path) -> Run:
    folder.mkdir()
    return run(plan, folder / "out.safetensors")


def test_normalising_gives_all_adapters_one_norm(tmp_path: Path) -> None:
    """As if every input had been scaled by hand; a loud one then counts like the others."""
    modules = {f"l.{i}.q": (24, 16, 4) for i in range(3)}
    loud = {"lora_alpha": 1600}
    folders = [
        write_adapter(tmp_path / f"a{i}", modules, seed=i, config=loud if i == 1 else {})
        for i in range(3)
    ]
    inputs = [deltas(f) for f in folders]
    energies = [sum(float(d.square().sum()) for d in one.values()) for one in inputs]
    factors = [(sorted(energies)[1] / e) ** 0.5 for e in energies]
    assert max(energies) > 1000 * sorted(energies)[1]
    plan = make_plan([load(f) for f in folders], [1, 1, 1], get("svd"), {}, normalize=True)
    done = norms(plan, tmp_path / "n")
    assert done.plan.factors == pytest.approx(factors, rel=1e-5)
    found = deltas(merge(plan, tmp_path / "out"))
    for name, delta in found.items():
        wanted = sum(f * one[name] for f, one in zip(factors, inputs))
        assert float((delta - wanted).norm()) <= 1e-5 * float(wanted.norm())
    checked(plan, tmp_path / "checked")


@pytest.mark.parametrize(("alpha", "ranks", "wanted"), [
    (16, (4, 4), False), (16 * 5, (4, 4), True), (16, (2, 8), True), (24, (4, 6), False),
])  # fmt: skip
def test_lego_normalises_when_norms_or_ranks_differ_much(
    alpha: int, ranks: Sequence[int], wanted: bool, tmp_path: Path
) -> None:
    folders = [
        write_adapter(tmp_path / f"a{i}", {f"l.{j}.q": (64, 64, r) for j in range(4)}, seed=i,
                      config={"lora_alpha": (16, alpha)[i] * r / 4})
        for i, r in enumerate(ranks)
    ]  # fmt: skip
    plan = make_plan([load(f) for f in folders], [1, 1], get("lego"), {})
    assert plan.normalize is None
    assert norms(plan, tmp_path / "out").plan.normalize is wanted


@pytest.mark.parametrize("options", [
    {"method": "lego"}, {"method": "lego", "normalize": True, "budget": "40%"},
    {"method": "welore", "budget": "rank 5"},
    {"method": "ties", "parameters": {"rank": 6}},
    {"method": "dare_ties", "budget": "rank 5"},
    {"method": "svd", "parameters": {"energy": 0.7}, "budget": "rank 9", "allocate": "welore"},
])  # fmt: skip
def test_same_bytes_for_any_batch_and_worker_count(
    options: dict[str, Any], adapters: list[Adapter], tmp_path: Path
) -> None:
    options = dict(options)
    method, parameters = get(options.pop("method")), options.pop("parameters", {})
    plan = make_plan(adapters, [0.5, 0.7, 0.2], method, parameters, dtype="BF16", **options)
    bodies = {
        (merge(plan, tmp_path / f"{w}-{b}", workers=w, batch_bytes=b) / "adapter_model.safetensors")
        .read_bytes()
        for w, b in [(1, 1), (4, 1 << 30), (2, 200_000)]
    }  # fmt: skip
    assert len(bodies) == 1


def test_the_seed_decides_and_nothing_else(adapters: list[Adapter], tmp_path: Path) -> None:
    def bytes_for(seed: int, name: str) -> bytes:
        plan = make_plan(adapters, [1, 1, 1], get("lego"), {"restarts": 1}, seed=seed)
        return (merge(plan, tmp_path / name) / "adapter_model.safetensors").read_bytes()

    torch.manual_seed(1)
    one = bytes_for(3, "a")
    torch.manual_seed(2)
    assert one == bytes_for(3, "b")
    assert one != bytes_for(4, "c")


def scarce(limit: int) -> Any:
    """`svd` on a device that has room for ``limit`` modules at a time."""
    rule = get("svd").rule

    def small(stack: Stack, **parameters: Any) -> Mix:
        if len(stack.seeds) > limit:
            raise torch.OutOfMemoryError("no room")
        return rule(stack, **parameters)

    return replace(get("svd"), rule=small)


def test_out_of_memory_falls_back_to_smaller_batches(
    adapters: list[Adapter], tmp_path: Path
) -> None:
    plans = [make_plan(adapters, [1, 1, 1], m, {"rank": 4}) for m in (get("svd"), scarce(2))]
    one, other = (
        merge(plan, tmp_path / str(i), batch_bytes=1 << 30) / "adapter_model.safetensors"
        for i, plan in enumerate(plans)
    )
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("method", ALL, ids=IDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named_by_every_method(
    method: Any, value: float, tmp_path: Path
) -> None:
    folders = [
        write_adapter(tmp_path / f"a{i}", {"l.0.q": (12, 8, 3), "l.1.q": (12, 8, 3)}, seed=i)
        for i in range(2)
    ]
    path = folders[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.l.1.q.lora_B.weight"
    tensors[key][2, 1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    budget = {"budget": "rank 2"} if method.allocation else {}
    plan = make_plan([load(f) for f in folders], [1, 1], method, {}, **budget)
    with pytest.raises(InvalidAdapterError, match=rf"{key}.*NaN or Inf"):
        merge(plan, tmp_path / "out")


def test_a_module_that_does_not_fit_is_named(adapters: list[Adapter], tmp_path: Path) -> None:
    plan = make_plan(adapters, [1, 1, 1], scarce(0), {"rank": 4})
    with pytest.raises(ResourceError, match=r"encoder\.layer.* does not fit") as error:
        merge(plan, tmp_path / "out")
    assert "cpu" in (error.value.hint or "")
