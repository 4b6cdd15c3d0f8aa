"""PEFT itself as the oracle: what our reading and writing of its format means there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorahub import formats
from lorahub.adapter import ModuleKind
from lorahub.formats import peft
from lorahub.formats.peft_config import Pattern

pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")

D_IN, D_OUT, VOCABULARY = 6, 5, 11

# Names that end with one another, differ only where another has dots, or look like patterns.
NASTY = (
    "layers.1.q",
    "layers.11.q",
    "x.layers.1.q",
    "x.layers_1.q",
    "y.x.layers.1.q",
    "layers_1.q",
    "layers_1_q",
    "q",
    "xq",
    "layers.1.xq",
    "a+b.q",
    "a(b.q",
    "a.[q]",
    "^layers.1.k",
    "$",
)


class Tree(nn.Module):
    """A module with leaves at dotted paths."""

    def __init__(self, leaves: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for path, leaf in leaves.items():
            node: nn.Module = self
            *parents, last = path.split(".")
            for part in parents:
                if not hasattr(node, part):
                    node.add_module(part, nn.Module())
                node = getattr(node, part)
            node.add_module(last, leaf)


def load(leaves: Mapping[str, nn.Module], folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(Tree(leaves), str(folder))


def deltas(model: PeftModel, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """What PEFT would add to each module's weight; zeros where it adds nothing."""
    found = {}
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        if hasattr(layer, "get_delta_weight"):
            found[name] = layer.get_delta_weight("default").detach()
        else:
            found[name] = torch.zeros_like(layer.weight)
    return found


def our_deltas(folder: Path) -> dict[str, torch.Tensor]:
    """scaling * B @ A by module, transposed where the base weight is."""
    info = formats.inspect(folder)
    assert info.refusals == ()
    tensors = load_file(folder / info.weights_file)
    transposed = bool(info.config.get("fan_in_fan_out"))
    found = {}
    for m in info.modules:
        delta = m.scaling * (tensors[m.key_b].double() @ tensors[m.key_a].double())
        flip = m.kind is ModuleKind.EMBEDDING or transposed
        found[m.name] = delta.T if flip else delta
    return found


def assert_same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    for name, delta in theirs.items():
        expected = ours.get(name, torch.zeros_like(delta))
        torch.testing.assert_close(delta.double(), expected.double(), rtol=1e-5, atol=1e-5)


# --- patterns ---

PART = st.sampled_from(["layers", "1", "11", "q", "xq", "k"])
NAME = st.lists(PART, min_size=1, max_size=4).map(".".join)
KEY = (
    NAME
    | NAME.map(lambda name: f"^{name}")
    | NAME.map(lambda name: rf".*\.{name}")
    | NAME.map(lambda name: name.replace("1", r"\d+"))
    | st.tuples(NAME, NAME).map("|".join)
    | st.tuples(NAME, NAME).map(lambda pair: f"^{pair[0]}|{pair[1]}")
    | st.sampled_from([*NASTY[:9], "", ".", "..", ".q", "q.", "[a-z]+", "(layers|k).1.q", "q$"])
)


@settings(deadline=None, max_examples=400)
@given(keys=st.lists(KEY, unique=True, max_size=5), name=NAME | st.sampled_from(NASTY))
@example(keys=["layers.1.q"], name="x.layers_1.q")
@example(keys=["a+b.q"], name="a+b.q")
def test_patterns_match_as_in_peft(keys: list[str], name: str) -> None:
    values = {key: float(i) for i, key in enumerate(keys)}
    theirs = values.get(get_pattern_key(values.keys(), name), -1)
    assert Pattern(values).value(name, -1) == theirs


# --- reading ---

MODULES = {
    "layers.0.q": ModuleKind.LINEAR,
    "layers.1.q": ModuleKind.LINEAR,
    "layers.1.mlp.up": ModuleKind.LINEAR,
    "embed": ModuleKind.EMBEDDING,
}
PATTERN_KEYS = ["q", "layers.1.q", "^layers.0.q", r"layers\.\d+\.q", "up", ".*mlp.*", "embed", "no"]


def pattern_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, float]]:
    """Patterns in sorted order: PEFT saves them so, and the first key that matches counts."""
    found = st.dictionaries(st.sampled_from(PATTERN_KEYS), values, max_size=3)
    return found.map(lambda pattern: dict(sorted(pattern.items())))


def leaves(kinds: Mapping[str, ModuleKind], *, conv1d: bool = False) -> dict[str, nn.Module]:
    linear = (lambda: Conv1D(D_OUT, D_IN)) if conv1d else (lambda: nn.Linear(D_IN, D_OUT))
    return {
        name: nn.Embedding(VOCABULARY, D_OUT) if kind is ModuleKind.EMBEDDING else linear()
        for name, kind in kinds.items()
    }


@settings(deadline=None, max_examples=40)
@given(
    rank=st.integers(1, 4),
    alpha=st.sampled_from([1, 8, 16, 0, -2, 0.5, 2.75]),
    rank_pattern=pattern_of(st.integers(1, 5)),
    alpha_pattern=pattern_of(st.sampled_from([1, 3, 7.5])),
    rslora=st.booleans(),
    targets=st.sampled_from([["q", "up"], ["layers.1.q"], r".*\.(q|up)", ["q", "embed"]]),
    conv1d=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_adapters_peft_made_mean_the_same_here(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: torch.dtype, **fields: Any
) -> None:
    torch.manual_seed(seed)
    conv1d = fields.pop("conv1d")
    config = LoraConfig(
        r=fields.pop("rank"),
        lora_alpha=fields.pop("alpha"),
        use_rslora=fields.pop("rslora"),
        target_modules=fields.pop("targets"),
        fan_in_fan_out=conv1d,
        **fields,
    )
    base = leaves(MODULES, conv1d=conv1d)
    model = get_peft_model(Tree(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    folder = tmp_path_factory.mktemp("made")
    model.save_pretrained(str(folder))
    weights = folder / "adapter_model.safetensors"
    saved = load_file(weights)
    save_file({key: tensor.to(dtype) for key, tensor in saved.items()}, weights)
    model = load(leaves(MODULES, conv1d=conv1d), folder)
    assert_same(our_deltas(folder), deltas(model, list(MODULES)))
    for module in formats.inspect(folder).modules:
        layer = model.base_model.model.get_submodule(module.name)
        assert module.scaling == pytest.approx(layer.scaling["default"])
        assert module.rank == layer.r["default"]
        assert module.alpha == layer.lora_alpha["default"]


def test_a_rank_that_peft_cannot_load_is_refused(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.q.lora_A.weight": torch.ones(4, D_IN),
        "base_model.model.q.lora_B.weight": torch.ones(D_OUT, 4),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load({"q": nn.Linear(D_IN, D_OUT)}, tmp_path)
    assert [r.code for r in formats.inspect(tmp_path).refusals] == ["rank_mismatch"]


# --- writing ---


def emit(folder: Path, ranks: Mapping[str, int], kinds: Mapping[str, ModuleKind]) -> None:
    """Write a result as a merge does: scaling 1, standard keys."""
    generator = torch.Generator().manual_seed(len(ranks))
    tensors = {}
    for name, rank in ranks.items():
        key_a, key_b = peft.tensor_keys(name, kinds[name])
        d_in = VOCABULARY if kinds[name] is ModuleKind.EMBEDDING else D_IN
        tensors[key_a] = torch.randn(rank, d_in, generator=generator)
        tensors[key_b] = torch.randn(D_OUT, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = peft.config_for(ranks, base_model="o/base", task_type=None, fan_in_fan_out=False)
    (folder / "adapter_config.json").write_text(json.dumps(config))


@settings(deadline=None, max_examples=60)
@given(
    ranks=st.dictionaries(
        st.sampled_from(NASTY), st.integers(1, 4), min_size=1, max_size=len(NASTY)
    )
)
@example(ranks={"layers.1.q": 2, "x.layers.1.q": 4, "y.x.layers.1.q": 4, "layers.11.q": 4})
@example(ranks={"layers.1.q": 1, "layers_1.q": 2, "layers_1_q": 3, "x.layers_1.q": 4})
@example(ranks={"a(b.q": 1, "q": 2, "xq": 3, "a+b.q": 4})
@example(ranks=dict.fromkeys(NASTY, 3))
def test_emitted_adapters_mean_the_same_in_peft(
    tmp_path_factory: pytest.TempPathFactory, ranks: dict[str, int]
) -> None:
    kinds = dict.fromkeys(NASTY, ModuleKind.LINEAR)
    folder = tmp_path_factory.mktemp("emitted")
    emit(folder, ranks, kinds)
    info = formats.inspect(folder)
    assert {m.name: m.rank for m in info.modules} == ranks
    assert {m.scaling for m in info.modules} == {1}
    assert info.warnings == ()
    assert_same(our_deltas(folder), deltas(load(leaves(kinds), folder), NASTY))


def test_emitted_embeddings_mean_the_same_in_peft(tmp_path: Path) -> None:
    emit(tmp_path, {"embed": 3, "layers.0.q": 2}, MODULES)
    theirs = deltas(load(leaves(MODULES), tmp_path), list(MODULES))
    assert_same(our_deltas(tmp_path), theirs)
    assert theirs["embed"].abs().sum() > 0


def test_the_emitted_config_is_plain_and_the_same_every_time() -> None:
    ranks = {"b.q": 4, "a.q": 4, "c.q": 2}
    config = peft.config_for(
        ranks,
        base_model="o/base",
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
        auto_mapping={"base_model_class": "X"},
    )
    again = peft.config_for(
        dict(reversed(ranks.items())),
        base_model="o/base",
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
        auto_mapping={"base_model_class": "X"},
    )
    assert json.dumps(config) == json.dumps(again)
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert type(config["lora_alpha"]) is int
    assert config["target_modules"] == ["a.q", "b.q", "c.q"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {"c.q": 2}
    assert config["auto_mapping"] == {"base_model_class": "X"}
    # The fields that PEFT 0.10, of March 2024, knows; its loader fails on others.
    known = (
        "peft_type task_type base_model_name_or_path revision auto_mapping inference_mode r "
        "target_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save "
        "init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern "
        "megatron_config megatron_core loftq_config use_dora layer_replication"
    )
    assert set(config) <= set(known.split())


@settings(deadline=None, max_examples=200)
@given(ranks=st.dictionaries(NAME | st.sampled_from(NASTY), st.integers(1, 5), min_size=1))
def test_every_module_gets_its_own_rank_from_the_patterns(ranks: dict[str, int]) -> None:
    config = peft.config_for(ranks, base_model=None, task_type=None, fan_in_fan_out=False)
    pattern = Pattern({key: float(rank) for key, rank in config["rank_pattern"].items()})
    assert {name: pattern.value(name, config["r"]) for name in ranks} == ranks
    assert config["alpha_pattern"] == config["rank_pattern"]
