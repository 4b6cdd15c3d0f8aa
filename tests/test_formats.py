"""Inspecting adapters: what is read, what is refused and why, and what is no adapter at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorahub import formats
from lorahub.adapter import AdapterInfo, ModuleKind
from lorahub.errors import InvalidAdapterError, UnsupportedAdapterError
from lorahub.formats import peft
from lorahub.formats.safetensors import (
    Header,
    TensorEntry,
    TensorFile,
    Writer,
    encode,
    read_header,
)
from tests.conftest import write_adapter

P = "base_model.model."
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "o/base", "r": 4, "lora_alpha": 8}


def factors(*names: str, rank: int = 4, d_in: int = 6, d_out: int = 5) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in names:
        tensors[f"{P}{name}.lora_A.weight"] = torch.ones(rank, d_in)
        tensors[f"{P}{name}.lora_B.weight"] = torch.ones(d_out, rank)
    return tensors


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = CONFIG,
    **fields: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(dict(config) | fields))
    return folder


def codes(info: AdapterInfo) -> list[str]:
    return [refusal.code for refusal in info.refusals]


def invalid(folder: Path) -> InvalidAdapterError:
    with pytest.raises(InvalidAdapterError) as caught:
        formats.inspect(folder)
    assert str(folder) in caught.value.message
    return caught.value


# --- what is read ---


def test_a_plain_adapter(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a",
        {"l.0.q": (10, 12, 4), "l.0.k": (8, 12, 2)},
        alpha=16,
        dtype="bfloat16",
        config={"task_type": "CAUSAL_LM", "something_new": {"kept": [1, None]}},
    )
    info = formats.inspect(folder)
    assert (info.format, info.peft_type, info.task_type) == ("peft", "LORA", "CAUSAL_LM")
    assert info.base_model == "tests/base"
    assert info.refusals == ()
    assert info.warnings == ()
    k, q = info.modules
    assert (q.name, q.kind, q.rank, q.d_in, q.d_out) == ("l.0.q", ModuleKind.LINEAR, 4, 12, 10)
    assert (k.name, k.rank, k.d_out) == ("l.0.k", 2, 8)
    assert (q.scaling, k.scaling) == (4, 8)
    assert {q.dtype_a, q.dtype_b, k.dtype_a, k.dtype_b} == {"BF16"}
    assert info.config == json.loads((folder / "adapter_config.json").read_text())
    assert info.config["something_new"] == {"kept": [1, None]}


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"q": (600, 700, 300), "k": (8, 12, 2)})
    info = formats.inspect(folder)
    weights = folder / "adapter_model.safetensors"
    assert info.weights_bytes == weights.stat().st_size
    assert info.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    config = (folder / "adapter_config.json").read_bytes()
    assert info.config_sha256 == hashlib.sha256(config).hexdigest()
    tensors = load_file(weights)
    for module in info.modules:
        for key, found in ((module.key_a, module.hash_a), (module.key_b, module.hash_b)):
            assert found == hashlib.sha256(tensors[key].numpy().tobytes()).hexdigest()


def test_inspecting_imports_no_torch_and_no_network(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"q": (5, 6, 4)})
    code = (
        "import sys; from pathlib import Path; from lorahub import formats\n"
        f"formats.inspect(Path({str(folder)!r}))\n"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'huggingface_hub') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("base_model.model.x.q.lora_A.weight", "base_model.model.x.q.lora_B.weight"),
        ("x.q.lora_A.weight", "x.q.lora_B.weight"),
        (
            "base_model.model.x.q.lora_A.default.weight",
            "base_model.model.x.q.lora_B.default.weight",
        ),
        ("base_model.model.x.q.lora_A.my-name.weight", "base_model.model.x.q.lora_B.weight"),
        ("x.q.lora_A", "x.q.lora_B"),
        ("x.q.lora_A.default", "x.q.lora_B.default"),
        ("module.base_model.model.x.q.lora_A.weight", "module.base_model.model.x.q.lora_B.weight"),
        (
            "base_model.model._orig_mod.x._orig_mod.q.lora_A.weight",
            "_orig_mod.base_model.model.x.q.lora_B.weight",
        ),
        (
            "_fsdp_wrapped_module.base_model.model.x._checkpoint_wrapped_module.q.lora_A.weight",
            "base_model.model.x.q.lora_B.weight",
        ),
    ],
)
def test_spellings_of_keys(tmp_path: Path, a: str, b: str) -> None:
    write(tmp_path, {a: torch.ones(4, 6), b: torch.ones(5, 4)})
    info = formats.inspect(tmp_path)
    (module,) = info.modules
    assert (module.name, module.key_a, module.key_b) == ("x.q", a, b)
    assert info.refusals == ()


def test_a_submodule_called_module_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path, factors("module.q", "encoder.module.q"))
    assert [m.name for m in formats.inspect(tmp_path).modules] == ["encoder.module.q", "module.q"]


def test_embeddings(tmp_path: Path) -> None:
    tensors = {
        f"{P}embed.lora_embedding_A": torch.ones(4, 50),
        f"{P}embed.lora_embedding_B": torch.ones(6, 4),
    }
    info = formats.inspect(write(tmp_path, tensors))
    (module,) = info.modules
    assert (module.kind, module.d_in, module.d_out) == (ModuleKind.EMBEDDING, 50, 6)
    assert info.refusals == ()


def test_frozen_copies_of_base_weights_are_left_out_with_a_warning(tmp_path: Path) -> None:
    tensors = factors("lm_head", d_out=50) | {
        f"{P}embed.lora_embedding_A": torch.ones(4, 50),
        f"{P}embed.lora_embedding_B": torch.ones(6, 4),
        f"{P}embed.base_layer.weight": torch.ones(50, 6),
        f"{P}lm_head.base_layer.weight": torch.ones(50, 6),
        f"{P}lm_head.base_layer.bias": torch.ones(50),
    }
    info = formats.inspect(write(tmp_path, tensors))
    assert info.refusals == ()
    assert "embed.base_layer.weight" in " ".join(info.warnings)


@pytest.mark.parametrize("shape", [(51, 6), (6, 50)])
def test_a_base_weight_of_another_shape_is_no_copy(tmp_path: Path, shape: tuple[int, int]) -> None:
    tensors = {
        f"{P}embed.lora_embedding_A": torch.ones(4, 50),
        f"{P}embed.lora_embedding_B": torch.ones(6, 4),
        f"{P}embed.base_layer.weight": torch.ones(shape),
    }
    assert codes(formats.inspect(write(tmp_path, tensors))) == ["extra_tensors"]


def test_the_hub_cache_is_made_of_links(tmp_path: Path) -> None:
    blobs = write_adapter(tmp_path / "blobs", {"q": (5, 6, 4)})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    info = formats.inspect(snapshot)
    assert info.weights_file == "adapter_model.safetensors"
    assert info == formats.inspect(blobs)


def test_weights_of_any_name_when_there_is_one_file(tmp_path: Path) -> None:
    write(tmp_path, factors("q"))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    info = formats.inspect(tmp_path)
    assert info.weights_file == "mine.safetensors"
    assert len(info.modules) == 1


# --- warnings ---


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target_modules": ["q", "zz"]}, ["zz", "no tensor"]),
        ({"target_modules": ["zz"]}, ["zz", "x.q"]),
        ({"target_modules": r".*\.(k|v)"}, ["target_modules", "x.q"]),
        ({"target_modules": "(("}, ["target_modules", "expression"]),
        ({"target_modules": "(x+x+)+y"}, ["target_modules does not match", "x.q"]),
        ({"lora_alpha": None}, ["lora_alpha", "8"]),
        ({"bias": "lora_only"}, ["bias", "lora_only"]),
        ({"modules_to_save": ["classifier"]}, ["modules_to_save", "classifier"]),
    ],
)
def test_oddities_are_told_but_no_reason_to_refuse(
    tmp_path: Path, fields: dict[str, Any], words: list[str]
) -> None:
    info = formats.inspect(write(tmp_path, factors("x.q"), **fields))
    assert info.refusals == ()
    text = "\n".join(info.warnings)
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    "targets",
    [None, [], ["q"], ["x.q"], "all-linear", r".*\.q", r"x\.(q|k)", {"odd": 1}],
)
def test_targets_that_fit_are_not_warned_of(tmp_path: Path, targets: object) -> None:
    fields = {} if targets is None else {"target_modules": targets}
    expected = 1 if targets == [] else 0
    info = formats.inspect(write(tmp_path, factors("x.q"), **fields))
    assert len(info.warnings) == expected


@pytest.mark.parametrize(("zero", "words"), [(["q", "k"], "all deltas"), (["k"], "1 of 2")])
def test_untrained_modules(tmp_path: Path, zero: list[str], words: str) -> None:
    tensors = factors("q", "k")
    for name in zero:
        tensors[f"{P}{name}.lora_B.weight"].zero_()
    (warning,) = formats.inspect(write(tmp_path, tensors)).warnings
    assert words in warning


def test_a_zero_behind_the_first_piece_read_is_not_taken_for_all(tmp_path: Path) -> None:
    tensors = factors("q", rank=4, d_in=6, d_out=300_000)
    B = tensors[f"{P}q.lora_B.weight"]
    B.zero_()
    B[-1, -1] = 1
    assert formats.inspect(write(tmp_path, tensors)).warnings == ()


# --- refusals: catalogued, named, never merged wrong ---


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"use_dora": True}, "dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "bdlora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora"),
        ({"arrow_config": {"top_k": 2}}, "arrow"),
        ({"kasa_config": {"beta": 1}}, "kasa"),
        ({"monteclora_config": {}}, None),
        ({"monteclora_config": {"num_samples": 2}}, "monteclora"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_tokens"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"init_lora_weights": "pissa"}, "init"),
        ({"init_lora_weights": "pissa_niter_16"}, "init"),
        ({"init_lora_weights": "olora"}, "init"),
        ({"init_lora_weights": "corda"}, "init"),
        ({"init_lora_weights": "lora_ga"}, "init"),
        ({"init_lora_weights": "loftq"}, "init"),
        ({"init_lora_weights": "something-new"}, "init"),
        ({"init_lora_weights": "gaussian"}, None),
        ({"init_lora_weights": "orthogonal"}, None),
        ({"init_lora_weights": "eva"}, None),
        ({"init_lora_weights": True}, None),
        ({"init_lora_weights": False}, None),
        ({"init_lora_weights": None}, None),
        ({"r": 8}, "rank_mismatch"),
        ({"r": 8, "rank_pattern": {"q": 4}}, None),
        ({"rank_pattern": {"q": 2}}, "rank_mismatch"),
        ({"alpha_pattern": {"(q": 4}}, "pattern"),
        ({"alpha_pattern": {"(q*)*": 4}}, None),
        ({"rank_pattern": {".*" * 50: 4}}, None),
        ({"peft_type": "ADALORA"}, "peft_type"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": "XLORA"}, "peft_type"),
        ({"peft_type": "lora"}, None),
        ({"peft_type": None}, None),
    ],
)
def test_refusals_by_config(tmp_path: Path, fields: dict[str, Any], code: str | None) -> None:
    info = formats.inspect(write(tmp_path, factors("x.q"), **fields))
    assert codes(info) == ([code] if code else [])


@pytest.mark.parametrize(
    ("key", "shape", "fields", "code"),
    [
        ("x.q.lora_magnitude_vector", (5,), {}, "dora"),
        ("x.q.lora_magnitude_vector.weight", (5,), {}, "dora"),
        ("x.q.lora_magnitude_vector.default.weight", (5,), {}, "dora"),
        ("x.q.lora_B.bias", (5,), {}, "lora_bias"),
        ("x.q.lora_B.default.bias", (5,), {}, "lora_bias"),
        ("x.q.lora_diag", (4,), {}, "kasa"),
        ("x.q.base_layer.bias", (5,), {"bias": "all"}, "bias"),
        ("x.o.bias", (5,), {"bias": "all"}, "bias"),
        ("x.o.bias", (5,), {"bias": "lora_only"}, "bias"),
        ("x.o.bias", (5,), {}, "extra_tensors"),
        ("score.weight", (2, 5), {}, "extra_tensors"),
        ("score.weight", (2, 5), {"modules_to_save": ["score"]}, "modules_to_save"),
        ("score.bias", (2,), {"modules_to_save": ["score"], "bias": "all"}, "modules_to_save"),
        ("underscore.weight", (2, 5), {"modules_to_save": ["score"]}, "extra_tensors"),
        ("embed.trainable_tokens_delta", (2, 5), {}, "trainable_tokens"),
        ("embed.token_adapter.trainable_tokens_delta", (2, 5), {}, "trainable_tokens"),
        ("x.q.alpha", (), {}, "extra_tensors"),
    ],
)
def test_refusals_by_tensors_name_them(
    tmp_path: Path, key: str, shape: tuple[int, ...], fields: dict[str, Any], code: str
) -> None:
    tensors = factors("x.q") | {P + key: torch.ones(shape)}
    info = formats.inspect(write(tmp_path, tensors, **fields))
    assert codes(info) == [code]
    assert key in info.refusals[0].message


@pytest.mark.parametrize(
    ("a", "b", "code"),
    [
        ((4, 3, 3, 3), (5, 4, 1, 1), "conv"),
        ((4, 3, 3), (5, 4, 1), "conv"),
        ((4, 3, 3, 3, 3), (5, 4, 1, 1, 1), "conv"),
        ((16, 1024), (2048, 8, 1), "enable_lora"),
    ],
)
def test_factors_that_are_no_matrices(
    tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], code: str
) -> None:
    tensors = factors("q") | {
        f"{P}c.lora_A.weight": torch.ones(a),
        f"{P}c.lora_B.weight": torch.ones(b),
    }
    info = formats.inspect(write(tmp_path, tensors))
    assert codes(info) == [code]
    assert "'c'" in info.refusals[0].message
    assert [m.name for m in info.modules] == ["q"]


def test_tied_embeddings_are_refused_and_tied_layers_alone_are_not(tmp_path: Path) -> None:
    embedding = {
        f"{P}embed.lora_embedding_A": torch.ones(4, 50),
        f"{P}embed.lora_embedding_B": torch.ones(6, 4),
    }
    tied = write(tmp_path / "a", embedding, ensure_weight_tying=True)
    assert codes(formats.inspect(tied)) == ["weight_tying"]
    assert (
        codes(formats.inspect(write(tmp_path / "b", factors("q"), ensure_weight_tying=True))) == []
    )


def test_without_a_config_the_scaling_is_unknown(tmp_path: Path) -> None:
    info = formats.inspect(write(tmp_path, factors("q"), config=None))
    assert codes(info) == ["no_config"]
    assert len(info.modules) == 1


def test_many_reasons_are_all_given_once(tmp_path: Path) -> None:
    tensors = factors("q", "k") | {
        f"{P}{n}.lora_magnitude_vector": torch.ones(5) for n in ("q", "k")
    }
    info = formats.inspect(write(tmp_path, tensors, r=2, use_dora=True, lora_bias=True))
    assert sorted(codes(info)) == ["dora", "lora_bias", "rank_mismatch"]


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "kohya"),
        ("lora_te1_text_model_0.lora_up.weight", "kohya"),
        ("lora_unet_mid.lokr_w1", "lycoris"),
        ("lora_unet_mid.hada_w1_a", "lycoris"),
        ("unet.a.attn1.processor.to_q_lora.down.weight", "diffusers"),
        ("unet.a.attn1.to_q.lora_A.weight", "diffusers"),
        ("text_encoder_2.a.q_proj.lora_A.weight", "diffusers"),
        ("transformer.transformer_blocks.0.to_q.lora_A.weight", "diffusers"),
        ("unet:0:up", "cloneofsimo"),
        ("model.layers.0.q_proj.lora_a", "mlx"),
        ("w_a_000", "raw"),
        ("bert.output.adapters.md.adapter_down.0.weight", "bottleneck"),
        ("prompt_embeddings", "prompt"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, key: str, label: str) -> None:
    info = formats.inspect(write(tmp_path, {key: torch.ones(4, 6)}, config=None))
    assert info.format == label
    assert codes(info) == ["format"]
    assert info.modules == ()


# --- bad input ---


def test_no_folder_and_no_adapter(tmp_path: Path) -> None:
    assert "not a folder" in invalid(tmp_path / "missing").message
    assert "cannot be read" in invalid(tmp_path / ("x" * 5000)).message
    assert "adapter_model.safetensors" in invalid(tmp_path).message
    (tmp_path / "model.py").write_text("pass")
    (tmp_path / "adapter_model.safetensors").mkdir()
    error = invalid(tmp_path)
    assert "not an adapter" in error.message
    assert error.hint


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    write(tmp_path, {"model.layers.0.q_proj.weight": torch.ones(4, 6)}, config={"model_type": "x"})
    error = invalid(tmp_path)
    assert "model.layers.0.q_proj.weight" in error.message
    assert "save_pretrained" in str(error.hint)


def test_two_weights_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(factors("q"), tmp_path / f"{name}.safetensors")
    error = invalid(tmp_path)
    assert "a.safetensors" in error.message
    assert "one adapter per folder" in str(error.hint)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin", "mine.pt"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not even a pickle")
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(UnsupportedAdapterError, match="pickle") as caught:
        formats.inspect(tmp_path)
    assert name in caught.value.message
    assert "--allow-pickle" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "rng_state_0.pth"])
def test_the_state_of_a_trainer_is_no_adapter(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "not an adapter" in invalid(tmp_path).message


def test_safetensors_beside_a_pickle_win(tmp_path: Path) -> None:
    write(tmp_path, factors("q"))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert formats.inspect(tmp_path).weights_file == "adapter_model.safetensors"


def test_npz(tmp_path: Path) -> None:
    (tmp_path / "adapters.npz").write_bytes(b"PK")
    with pytest.raises(UnsupportedAdapterError, match="MLX"):
        formats.inspect(tmp_path)


def change(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Good factors of module ``q`` with some tensors replaced or (None) removed."""
    tensors = factors("q") | {f"{P}q.lora_{side}.weight": t for side, t in changes.items()}
    return {key: t for key, t in tensors.items() if t is not None}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (change(B=None), ["q.lora_A.weight", "no lora_B"]),
        (change(A=None), ["q.lora_B.weight", "no lora_A"]),
        (change(A=torch.ones(8, 6)), ["ranks of module 'q' disagree", "8 rows", "4 columns"]),
        (change(A=torch.ones(24)), ["q.lora_A.weight", "[24]"]),
        (change(B=torch.ones(())), ["q.lora_B.weight", "[]"]),
        (change(A=torch.ones(0, 6), B=torch.ones(5, 0)), ["q.lora_A.weight", "[0, 6]"]),
        (change(B=torch.ones(0, 4)), ["q.lora_B.weight", "[0, 4]"]),
        (change(A=torch.ones(4, 6).to(torch.int8)), ["q.lora_A.weight", "I8"]),
        (change(B=torch.ones(5, 4).to(torch.float8_e4m3fn)), ["q.lora_B.weight", "F8_E4M3"]),
        (factors("q") | {"q.lora_A.weight": torch.ones(4, 6)}, ["both", "module 'q'"]),
        (
            factors("q") | {f"{P}q.lora_A.other.weight": torch.ones(4, 6)},
            ["both", "lora_A.other.weight"],
        ),
        (
            factors("q")
            | {
                f"{P}q.lora_embedding_A": torch.ones(4, 6),
                f"{P}q.lora_embedding_B": torch.ones(5, 4),
            },
            ["both", "lora_embedding_A"],
        ),
        (
            change(B=None) | {f"{P}q.lora_embedding_B": torch.ones(5, 4)},
            ["no lora_B"],
        ),
    ],
)
def test_factors_that_are_no_pair(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: list[str]
) -> None:
    error = invalid(write(tmp_path, tensors))
    assert "adapter_model.safetensors" in error.message
    assert all(word in error.message for word in words), error.message
    assert error.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_alpha", "16"),
        ("lora_alpha", [16]),
        ("lora_alpha", True),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 10**400),
        ("r", "4"),
        ("r", 4.5),
        ("r", 0),
        ("r", -4),
        ("use_rslora", "true"),
        ("use_rslora", 1),
        ("fan_in_fan_out", "no"),
        ("rank_pattern", ["q"]),
        ("rank_pattern", {"q": "8"}),
        ("alpha_pattern", {"q": None}),
        ("alpha_pattern", {"q": 10**400}),
    ],
)
def test_config_fields_of_a_wrong_type(tmp_path: Path, field: str, value: object) -> None:
    error = invalid(write(tmp_path, factors("q"), **{field: value}))
    assert "adapter_config.json" in error.message
    assert f"'{field}'" in error.message
    assert len(error.message) < 400 + len(str(tmp_path))
    assert error.hint


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"r": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":' * 200_000, "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git LFS pointer"),
        (b" " * (16 << 20) + b"{}", "larger than 16 MiB"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, raw: bytes, words: str) -> None:
    write(tmp_path, factors("q"))
    (tmp_path / "adapter_config.json").write_bytes(raw)
    error = invalid(tmp_path)
    assert "adapter_config.json" in error.message
    assert words in error.message
    assert error.hint


def test_weights_that_are_a_pointer(tmp_path: Path) -> None:
    write(tmp_path, factors("q"))
    (tmp_path / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec\n")
    assert "git lfs pull" in str(invalid(tmp_path).hint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    write(tmp_path, factors("q"), config=None)
    os.mkfifo(tmp_path / "README.md")
    assert formats.inspect(tmp_path).card == ""
    os.mkfifo(tmp_path / "adapter_config.json")
    assert "not a regular file" in invalid(tmp_path).message


# --- whatever a stranger writes into a config ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
FIELDS = [
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "target_modules", "modules_to_save", "bias", "init_lora_weights", "base_model_name_or_path",
    "task_type", "fan_in_fan_out", "layer_replication", "model", "auto_mapping",
]  # fmt: skip
HEADER = Header(
    {
        f"{P}x.q.lora_A.weight": TensorEntry("F32", (4, 6), 0, 96),
        f"{P}x.q.lora_B.weight": TensorEntry("F32", (5, 4), 96, 176),
        f"{P}x.o.bias": TensorEntry("F32", (5,), 176, 196),
    },
    {},
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(config=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_config_is_read_or_refused_in_words(config: dict[str, Any]) -> None:
    try:
        if not peft.is_peft(HEADER, config):
            return
        info = peft.inspect(Path("folder/adapter_model.safetensors"), HEADER, config)
    except InvalidAdapterError as error:
        assert error.message.isprintable()
        return
    assert info.config is config
    assert all(text.isprintable() for text in info.warnings)
    assert all(refusal.message.isprintable() for refusal in info.refusals)
    assert (info.base_model or "x").isprintable()


# --- writing ---


def test_the_writer_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(4, 6, generator=generator) for name in ("q", "é.k", "empty")}
    tensors["empty"] = torch.empty(0, 6)
    for name in ("one", "two"):
        with Writer(tmp_path / name, header_room=1001) as writer:
            for key, tensor in tensors.items():
                writer.write(key, encode(tensor, "BF16"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    header = read_header(tmp_path / "one")
    # Readers that map the file want tensors aligned.
    assert min(entry.start for entry in header.tensors.values()) % 8 == 0
    read = load_file(tmp_path / "one")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], t.bfloat16()) for key, t in tensors.items())


def test_the_writer_never_overwrites_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        Writer(path, header_room=100)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("refused", [False, True])
def test_the_disk_is_told_of_every_byte_once_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    advised: list[tuple[int, int]] = []

    def advise(file: int, start: int, size: int, advice: int) -> None:
        assert os.fstat(file).st_size >= start + size
        advised.append((start, start + size))
        if refused:
            raise OSError(errno.EINVAL, "no advice here")

    monkeypatch.setattr("lorahub.formats.safetensors._FLUSH_BYTES", 1 << 22)
    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    tensors = {f"t{i}": torch.full((1 << 19, 1 + i), float(i)) for i in range(4)}
    with Writer(tmp_path / "x", header_room=1000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, encode(tensor, "F32"))
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    first = read_header(tmp_path / "x").tensors["t0"].start
    assert [start for start, _ in advised] == [first, *(stop for _, stop in advised[:-1])]
    assert advised[-1][1] == (tmp_path / "x").stat().st_size


def test_a_header_without_room_leaves_no_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(AssertionError, match="header_room"), Writer(path, header_room=8) as writer:
        writer.write("x", encode(torch.ones(2, 3), "F32"))
    with pytest.raises(InvalidAdapterError):
        read_header(path)


def test_a_file_that_shrinks_while_open_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    write(tmp_path, factors("q"))
    path = tmp_path / "adapter_model.safetensors"
    reader = TensorFile(path)
    name, entry = list(reader.header.tensors.items())[-1]
    os.truncate(path, entry.stop - 1)
    with pytest.raises(InvalidAdapterError, match="became shorter") as caught:
        reader.read_into(name, torch.empty(entry.shape))
    reader.close()
    assert str(path) in caught.value.message
    assert name in caught.value.message


# --- cards ---


def test_a_card_states_licence_tags_and_base(tmp_path: Path) -> None:
    write(tmp_path, factors("q"), base_model_name_or_path="/home/me/models/x")
    (tmp_path / "README.md").write_bytes(
        b"\xef\xbb\xbf---\r\nlicense: mit\r\nbase_model:\r\n- o/real\r\ntags: [lora, 1, gpt2]\r\n"
        b"---\r\n# Title\r\n\r\nText --- \x1b[31mred\r\n---\r\n"
    )
    info = formats.inspect(tmp_path)
    assert info.license == "mit"
    assert info.tags == ("lora", "gpt2")
    assert info.base_model == "o/real"
    assert info.card == "# Title\n\nText --- [31mred\n---"


@pytest.mark.parametrize(
    ("config", "card", "expected"),
    [
        ("o/config", "o/card", "o/config"),
        (None, "o/card", "o/card"),
        ("", "o/card", "o/card"),
        ("./local", "o/card", "o/card"),
        ("/abs/path", None, "/abs/path"),
        (None, None, None),
        ("o/x\x1b[31m", None, None),
    ],
)
def test_the_base_model_is_one_that_others_can_find(
    tmp_path: Path, config: str | None, card: str | None, expected: str | None
) -> None:
    write(tmp_path, factors("q"), base_model_name_or_path=config)
    if card:
        (tmp_path / "README.md").write_text(f"---\nbase_model: {card}\n---\n")
    assert formats.inspect(tmp_path).base_model == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no metadata",
        "---\nlicense: mit\n",
        "---\n- a\n---\n",
        "---\n: : :\n---\n",
        "---\n[" * 3000 + "\n---\n",
        "---\nlicense: !!python/object/apply:os.system [ls]\n---\n",
        "---\nlicense: !!timestamp x\n---\n",
        "---\nlicense: !!int ''\n---\n",
        "---\nlicense: !!bool x\n---\n",
        "---\nlicense: 2020-99-99\n---\n",
        "---\nlicense: 2020-01-01 00:00:00 +99:99\n---\n",
        "---\n? [a]\n: b\n---\n",
        "---\nlicense: [a, b]\ntags: 3\nbase_model: {a: b}\n---\n",
        "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: *b\n---\n",
        "---\nlicense: mit" + " " * 70_000 + "\n---\n",
        "---\n---\n",
    ],
)
def test_a_malformed_card_states_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, factors("q"))
    (tmp_path / "README.md").write_text(text)
    info = formats.inspect(tmp_path)
    assert (info.license, info.tags) == (None, ())
