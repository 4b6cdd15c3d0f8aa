"""Exports with one rank and scaling 1: the deltas stay, by the rules of every reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from lorahub import formats
from lorahub.cli.main import app
from lorahub.errors import ExitCode, UnsupportedAdapterError
from lorahub.formats.equal_ranks import write_equal_ranks

from .conftest import EXAMPLES, write_adapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """``s * B @ A`` by module in float64, ``s`` as inspection finds it."""
    tensors = load_file(folder / WEIGHTS)
    return {
        m.name: m.scaling * tensors[m.key_b].double() @ tensors[m.key_a].double()
        for m in formats.inspect(folder).modules
    }


def without_patterns(folder: Path) -> dict[str, torch.Tensor]:
    """The same by llama.cpp's rule: one alpha over the columns of each B, nothing else read."""
    tensors = load_file(folder / WEIGHTS)
    alpha = json.loads((folder / CONFIG).read_text())["lora_alpha"]
    found = {}
    for key, B in tensors.items():
        if ".lora_B." in key:
            A = tensors[key.replace(".lora_B.", ".lora_A.")]
            name = key.removeprefix("base_model.model.").partition(".lora_B")[0]
            found[name] = alpha / B.shape[1] * B.double() @ A.double()
    return found


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    alpha=st.sampled_from([1, 4, 7.5, 16]),
    rslora=st.booleans(),
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
)
def test_deltas_stay(
    tmp_path_factory: pytest.TempPathFactory,
    ranks: list[int],
    alpha: float,
    rslora: bool,
    dtype: str,
) -> None:
    place = tmp_path_factory.mktemp("x")
    modules = {f"layers.{n}.q": (6, 7, rank) for n, rank in enumerate(ranks)}
    config = {"use_rslora": rslora, "alpha_pattern": {"layers.0.q": 3}}
    folder = write_adapter(place / "a", modules, alpha=alpha, config=config, dtype=dtype)
    out = place / "out"
    out.mkdir()
    write_equal_ranks(formats.inspect(folder), folder / WEIGHTS, out)
    info = formats.inspect(out)
    assert info.ranks == (max(ranks),)
    assert {m.scaling for m in info.modules} == {1.0}
    assert info.refusals == ()
    written = json.loads((out / CONFIG).read_text())
    assert (written["rank_pattern"], written["alpha_pattern"]) == ({}, {})
    wanted, tolerance = deltas(folder), 2.0**-8 if dtype == "bfloat16" else 1e-6
    for read in (deltas(out), without_patterns(out)):
        assert read.keys() == wanted.keys()
        for name, delta in wanted.items():
            assert (read[name] - delta).norm() <= tolerance * delta.norm()


def test_an_export_on_the_command_line(home: Path, tmp_path: Path) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, list(map(str, words)))

    modules = {"a.q": (6, 7, 2), "b.q": (6, 7, 4)}
    assert run("pull", write_adapter(tmp_path / "a", modules)).exit_code == 0
    done = run("export", "a", tmp_path / "out", "--format", "equal-ranks")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {WEIGHTS, CONFIG}
    assert "equal-ranks" in run("show", "a").stdout
    again = run("export", "a", tmp_path / "out", "--format", "equal-ranks")
    assert again.exit_code == ExitCode.CONFLICT
    unknown = run("export", "a", tmp_path / "other", "--format", "gguf")
    assert unknown.exit_code == ExitCode.USAGE
    assert "peft, equal-ranks" in unknown.output


def test_peft_reads_it(tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import load_peft_weights

    info = formats.inspect(EXAMPLES / "languages")
    write_equal_ranks(info, EXAMPLES / "languages" / WEIGHTS, tmp_path)
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha) == (8, 8)
    weights = load_peft_weights(str(tmp_path), device="cpu")
    before = deltas(EXAMPLES / "languages")
    assert len(weights) == 2 * len(before)
    for name, delta in before.items():
        stem = f"base_model.model.{name}.lora_"
        product = weights[f"{stem}B.weight"].double() @ weights[f"{stem}A.weight"].double()
        assert (product - delta).norm() <= 1e-6 * delta.norm()


def test_what_cannot_be_written_so_is_named(tmp_path: Path) -> None:
    dora = write_adapter(tmp_path / "dora", {"q": (4, 4, 2)}, config={"use_dora": True})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        write_equal_ranks(formats.inspect(dora), dora / WEIGHTS, out)
    large = write_adapter(tmp_path / "large", {"q": (4, 4, 2)}, dtype="float16", alpha=1e6)
    with pytest.raises(UnsupportedAdapterError, match="does not fit F16"):
        write_equal_ranks(formats.inspect(large), large / WEIGHTS, out)
