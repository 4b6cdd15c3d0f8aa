"""The engine on files, against dense float64 algebra and against PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.plan import Plan, make_plan
from lorahub.engine.run import run
from lorahub.engine.verify import verify
from lorahub.errors import (
    IncompatibleError,
    InvalidAdapterError,
    InvalidRecipeError,
    LorahubError,
    StorageError,
    UnsupportedAdapterError,
    UsageError,
)
from lorahub.methods.registry import get
from tests.conftest import EXAMPLES, write_adapter

MODULES = {
    "model.layers.0.q": (12, 8, 3),
    "model.layers.0.v": (12, 8, 3),
    "model.layers.1.q": (12, 8, 3),
    "model.layers.1.up": (20, 8, 3),
    "model.layers.11.q": (12, 8, 3),
}


def load(folder: Path) -> Adapter:
    return Adapter(folder.name, Origin(Source.FOLDER, folder), formats.inspect(folder))


def deltas(folder: Path) -> dict[str, Tensor]:
    """Every delta in float64, read by safetensors and plain algebra, with PEFT's scaling rule."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found: dict[str, Tensor] = {}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
        for key in keys:
            if "lora_A" not in key:
                continue
            A = file.get_tensor(key).double()
            B = file.get_tensor(key.replace("lora_A", "lora_B")).double()
            name = key.removeprefix("base_model.model.").split(".lora_A")[0]
            alpha = (config.get("alpha_pattern") or {}).get(name, config["lora_alpha"])
            rank = A.shape[0]
            scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
            found[name] = scale * (B @ A)
    return found


def merge(plan: Plan, folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    merged = run(plan, folder / "adapter_model.safetensors", **options)
    config = formats.peft.config_for(
        {m.name: m.rank for m in merged.modules},
        base_model=plan.base_model,
        task_type=None,  # PEFT then asks nothing more of the model than its modules
        fan_in_fan_out=plan.fan_in_fan_out,
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def weighted(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for folder, weight in zip(folders, weights):
        for name, delta in deltas(folder).items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    error = sum(float((one[n] - other[n]).square().sum()) for n in one)
    return math.sqrt(error / max(sum(float(d.square().sum()) for d in other.values()), 1e-300))


def model_for(adapter: Adapter) -> nn.Module:
    """A module tree with the adapter's target modules and nothing else."""
    from transformers.pytorch_utils import Conv1D

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    root = Root()
    conv = bool(adapter.info.config.get("fan_in_fan_out"))
    for m in adapter.info.modules:
        parent: nn.Module = root
        *path, leaf = m.name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        layer = Conv1D(m.d_out, m.d_in) if conv else nn.Linear(m.d_in, m.d_out, bias=False)
        parent.add_module(leaf, layer)
    return root


def peft_deltas(model: nn.Module, name: str) -> dict[str, Tensor]:
    from peft.tuners.lora import LoraLayer

    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            B, A = layer.lora_B[name].weight, layer.lora_A[name].weight
            delta = layer.scaling[name] * (B.double() @ A.double())
            found[path.removeprefix("base_model.model.")] = delta.detach()
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_merges_of_any_adapters_equal_dense_algebra(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    count = data.draw(st.integers(1, 3))
    folders, weights = [], []
    for i in range(count):
        rank = data.draw(st.integers(1, 5))
        names = data.draw(st.sets(st.sampled_from(sorted(MODULES)), min_size=1)) | {
            "model.layers.0.q"
        }
        modules = {n: (MODULES[n][0], MODULES[n][1], rank) for n in sorted(names)}
        pattern = data.draw(st.sampled_from([{}, {"model.layers.0.q": 4.5}]))
        folders.append(
            write_adapter(
                folder / f"a{i}",
                modules,
                seed=data.draw(st.integers(0, 999)),
                dtype=data.draw(st.sampled_from(["float32", "bfloat16", "float16"])),
                alpha=data.draw(st.sampled_from([1, 8, 16, 7.5])),
                config={
                    "use_rslora": data.draw(st.booleans()),
                    "alpha_pattern": pattern,
                    "made_up_field": 1,
                },
            )
        )
        weights.append(data.draw(st.sampled_from([-1.0, 0.0, 0.3, 1.0])))
    method = data.draw(st.sampled_from(["cat", "svd"]))
    plan = make_plan([load(f) for f in folders], weights, get(method), {}, dtype="F32", scale=0.7)
    out = merge(plan, folder / "out")
    wanted = {n: 0.7 * d for n, d in weighted(folders, weights).items()}
    whole = math.sqrt(
        sum(
            float((w * d).square().sum())
            for f, w in zip(folders, weights)
            for d in deltas(f).values()
        )
    )
    found = deltas(out)
    assert found.keys() == wanted.keys()
    error = math.sqrt(sum(float((found[n] - wanted[n]).square().sum()) for n in wanted))
    assert error <= 1e-6 * max(whole, 1e-30)
    check = verify(plan, out / "adapter_model.safetensors", load(out).info.modules, reports={})
    assert check.passed


@pytest.mark.parametrize("method", ["cat", "svd", "linear_factors"])
def test_equals_peft_on_the_same_adapters(method: str, tmp_path: Path) -> None:
    from peft import PeftModel

    ranks = (4, 4, 4) if method == "linear_factors" else (2, 4, 3)
    folders = [
        write_adapter(
            tmp_path / f"a{i}",
            {n: (o, d, r) for n, (o, d, _) in MODULES.items()},
            seed=i,
            alpha=2 * r,
        )
        for i, r in enumerate(ranks)
    ]
    weights = [0.5, 1.25, 0.8]
    options = {"rank": 5} if method == "svd" else {}
    adapters = [load(f) for f in folders]
    plan = make_plan(adapters, weights, get(method), options)
    out = merge(plan, tmp_path / "out")
    model = PeftModel.from_pretrained(model_for(adapters[0]), folders[0], adapter_name="a0")
    for i in (1, 2):
        model.load_adapter(folders[i], adapter_name=f"a{i}")
    kind = {"linear_factors": "linear"}.get(method, method)
    extra = {"svd_rank": 5} if method == "svd" else {}
    model.add_weighted_adapter(
        ["a0", "a1", "a2"], weights, "merged", combination_type=kind, **extra
    )
    assert distance(deltas(out), peft_deltas(model, "merged")) <= 1e-5


def test_results_load_in_peft_as_the_same_delta(tmp_path: Path) -> None:
    """Including names of which one ends like another, and modules of different ranks."""
    from peft import PeftModel

    one = write_adapter(tmp_path / "one", MODULES, seed=1)
    some = {n: MODULES[n] for n in list(MODULES)[:3]}
    other = write_adapter(tmp_path / "other", some, seed=2)
    plan = make_plan([load(one), load(other)], [1, 1], get("cat"), {})
    out = merge(plan, tmp_path / "out")
    adapter = load(out)
    assert adapter.info.ranks == (3, 6)
    model = PeftModel.from_pretrained(model_for(adapter), out, adapter_name="m")
    assert distance(peft_deltas(model, "m"), deltas(out)) <= 1e-6


def test_identity_on_every_real_adapter(shared_adapters: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    tried = 0
    for folder in sorted(p for p in shared_adapters.iterdir() if p.is_dir()):
        try:
            adapter = load(folder)
            plan = make_plan([adapter], [1.0], get("svd"), {}, dtype="F32", base_model="any/base")
        except LorahubError:
            continue
        tried += 1
        out = merge(plan, tmp_path / folder.name)
        assert distance(deltas(out), deltas(folder)) <= 1e-6, folder.name
        model = PeftModel.from_pretrained(model_for(load(out)), out, adapter_name="m")
        assert distance(peft_deltas(model, "m"), deltas(folder)) <= 1e-6, folder.name
    assert tried >= 12


def test_same_bytes_for_any_unit_size_and_worker_count(tmp_path: Path) -> None:
    adapters = [load(EXAMPLES / n) for n in ("languages", "packages", "manuals")]
    for options in ({"rank": 6}, {"energy": 0.8}):
        plan = make_plan(adapters, [0.5, 0.7, 0.2], get("svd"), options, dtype="BF16")
        settings_ = [(1, 1), (4, 1 << 30), (2, 200_000)]
        files = [
            merge(plan, tmp_path / f"{w}-{u}-{min(options)}", workers=w, batch_bytes=u)
            for w, u in settings_
        ]
        bodies = {(f / "adapter_model.safetensors").read_bytes() for f in files}
        assert len(bodies) == 1


def test_power_of_two_scalings_lose_nothing_in_bf16(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", MODULES, dtype="bfloat16", alpha=6)
    plan = make_plan([load(folder)], [1.0], get("cat"), {})
    assert plan.dtype == "BF16"
    out = merge(plan, tmp_path / "out")
    assert distance(deltas(out), deltas(folder)) == 0


def test_verify_finds_a_wrong_result(tmp_path: Path) -> None:
    adapters = [load(EXAMPLES / n) for n in ("languages", "packages")]
    plan = make_plan(adapters, [1, 1], get("svd"), {"rank": 8})
    wrong = make_plan(adapters, [1, 1.01], get("svd"), {"rank": 8})
    out = merge(wrong, tmp_path / "out")
    check = verify(plan, out / "adapter_model.safetensors", load(out).info.modules, reports={})
    # The excess residual is of second order in an error of one percent.
    assert not check.passed
    assert check.worst_error > 1e-5


def bad(tmp_path: Path, **changes: Any) -> Adapter:
    return load(write_adapter(tmp_path / "bad", MODULES, **changes))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"base": "other/base"}, IncompatibleError, ["different base models", "other/base"]),
        ({"base": None}, IncompatibleError, ["unknown", "base_model_name_or_path"]),
        ({"base": "/home/me/llama"}, IncompatibleError, ["unknown", "bad"]),
        ({"config": {"use_dora": True}}, UnsupportedAdapterError, ["bad", "use_dora"]),
        (
            {"config": {"init_lora_weights": "pissa"}},
            UnsupportedAdapterError,
            ["init_lora_weights", "pissa"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, changes: Any, error: type[LorahubError], words: list[str]
) -> None:
    good = load(write_adapter(tmp_path / "good", MODULES))
    with pytest.raises(error) as caught:
        make_plan([good, bad(tmp_path, **changes)], [1, 1], get("svd"), {})
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


def test_different_shapes_and_disjoint_modules_are_refused(tmp_path: Path) -> None:
    good = load(write_adapter(tmp_path / "good", MODULES))
    wide = load(write_adapter(tmp_path / "wide", {"model.layers.0.q": (12, 9, 2)}))
    with pytest.raises(IncompatibleError, match=r"model\.layers\.0\.q.*12x8.*12x9"):
        make_plan([good, wide], [1, 1], get("svd"), {})
    apart = load(write_adapter(tmp_path / "apart", {"head": (3, 3, 1)}))
    with pytest.raises(IncompatibleError, match="'good' shares no target module"):
        make_plan([good, apart], [1, 1], get("svd"), {})


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("svd", {"rank": 0}, "'rank'"),
        ("svd", {"rank": 7}, "rank 7 is above the largest possible rank, 6"),
        ("svd", {"energy": 1.5}, "'energy'"),
        ("svd", {"rnak": 4}, "no parameter 'rnak'"),
        ("cat", {"rank": 4}, "no parameter 'rank'"),
        ("svd", {"rank": "many"}, "'rank'"),
    ],
)
def test_wrong_parameters_are_refused(
    tmp_path: Path, method: str, parameters: dict[str, Any], words: str
) -> None:
    adapters = [load(write_adapter(tmp_path / n, MODULES, seed=i)) for i, n in enumerate("ab")]
    with pytest.raises(InvalidRecipeError) as caught:
        make_plan(adapters, [1, 1], get(method), parameters)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_must_be_numbers(tmp_path: Path, weight: float) -> None:
    adapter = load(write_adapter(tmp_path / "a", MODULES))
    with pytest.raises(InvalidRecipeError, match="weight of 'a'"):
        make_plan([adapter], [weight], get("svd"), {})


def test_unknown_method_suggests_one() -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        get("svdd")
    assert "did you mean 'svd'" in str(caught.value.hint)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_named(tmp_path: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tmp_path / "a", MODULES)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.1.up.lora_B.weight"
    tensors[key][3, 1] = value
    save_file(tensors, path)
    plan = make_plan([load(folder)], [1], get("cat"), {})
    with pytest.raises(InvalidAdapterError) as caught:
        run(plan, tmp_path / "out.safetensors")
    assert key in caught.value.message
    assert str(path) in caught.value.message


def test_overflow_of_the_dtype_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", MODULES, alpha=1e12)
    plan = make_plan([load(folder)], [1], get("cat"), {}, dtype="F16")
    with pytest.raises(InvalidRecipeError, match="overflow F16") as caught:
        run(plan, tmp_path / "out.safetensors")
    assert caught.value.hint == "use --dtype F32"
    plan = make_plan([load(folder)], [1e200], get("cat"), {}, dtype="F32")
    with pytest.raises(InvalidRecipeError, match="overflow F32") as caught:
        run(plan, tmp_path / "again.safetensors")
    assert "smaller weights" in (caught.value.hint or "")


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    plan = make_plan([load(EXAMPLES / "packages")], [1], get("cat"), {})
    with pytest.raises(StorageError, match="cannot be written"):
        run(plan, Path("/dev/full/out.safetensors"))


def test_unknown_device_is_refused(tmp_path: Path) -> None:
    plan = make_plan([load(EXAMPLES / "packages")], [1], get("cat"), {})
    with pytest.raises(UsageError, match="device 'warp'"):
        run(plan, tmp_path / "out.safetensors", device="warp")
