"""Pickled adapters: converted with consent, and nothing in them ever runs."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorahub import formats
from lorahub.errors import InvalidAdapterError

CONFIG = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "kept": [1]}'
A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def pair(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    A_, B_ = torch.randn(4, 6, generator=generator), torch.randn(5, 4, generator=generator)
    return {A: A_.to(dtype), B: B_.to(dtype)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(CONFIG)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def refused(folder: Path, target: Path) -> str:
    with pytest.raises(InvalidAdapterError) as caught:
        formats.convert_pickle(folder, target)
    assert str(folder) in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint
    assert list(target.iterdir()) == []
    return caught.value.message


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("zipped", [True, False])
def test_conversion_keeps_every_byte(
    folder: Path, target: Path, dtype: torch.dtype, zipped: bool
) -> None:
    tensors = pair(dtype)
    torch.save(tensors, folder / "adapter_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "README.md").write_text("---\nlicense: mit\n---\ntext")
    (folder / "LICENSE").write_text("mine")
    (folder / "train.py").write_text("pass")
    formats.convert_pickle(folder, target)
    converted = load_file(target / "adapter_model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[key], tensors[key]) for key in tensors)
    assert (target / "adapter_config.json").read_text() == CONFIG
    assert sorted(p.name for p in target.iterdir()) == [
        "LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    info = formats.inspect(target)
    assert (len(info.modules), info.license, info.config["kept"]) == (1, "mit", [1])
    assert info.refusals == ()


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin", "my.pt"])
def test_the_one_pickle_is_found(folder: Path, target: Path, name: str) -> None:
    torch.save(pair(), folder / name)
    torch.save({"a": 1}, folder / "optimizer.pt")
    assert formats.find_pickle(folder) == folder / name
    formats.convert_pickle(folder, target)
    assert len(formats.inspect(target).modules) == 1


def test_adapter_model_bin_goes_first_and_other_pairs_are_ambiguous(folder: Path) -> None:
    assert formats.find_pickle(folder) is None
    assert formats.find_pickle(folder / "missing") is None
    torch.save(pair(), folder / "one.pt")
    torch.save(pair(), folder / "two.pt")
    assert formats.find_pickle(folder) is None
    torch.save(pair(), folder / "adapter_model.bin")
    assert formats.find_pickle(folder) == folder / "adapter_model.bin"
    (folder / "x.safetensors").write_bytes(b"")
    assert formats.find_pickle(folder) is None


def test_parameters_views_and_transposes_are_plain_tensors(folder: Path, target: Path) -> None:
    whole = torch.arange(48.0).reshape(8, 6)
    tensors = OrderedDict(
        {A: torch.nn.Parameter(whole[::2]), B: torch.arange(20.0).reshape(4, 5).T}
    )
    torch.save(tensors, folder / "adapter_model.bin")
    formats.convert_pickle(folder, target)
    converted = load_file(target / "adapter_model.safetensors")
    assert all(torch.equal(converted[key], tensors[key]) for key in tensors)


class Hostile:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_not_run(
    folder: Path, target: Path, tmp_path: Path, zipped: bool
) -> None:
    trace = tmp_path / "ran"
    torch.save(
        pair() | {"x": Hostile(trace)},
        folder / "adapter_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    assert "mkdir" in refused(folder, target)
    assert not trace.exists()


def test_code_in_a_bare_pickle_is_not_run(folder: Path, target: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Hostile(trace)))
    refused(folder, target)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([torch.ones(2)], "list of 1"),
        (torch.ones(2), "Tensor"),
        ({}, "dict of 0"),
        (pair() | {"state": {"nested": torch.ones(2)}}, "'state'"),
        (pair() | {"step": 3}, "'step'"),
        (pair() | {7: torch.ones(2)}, "'7'"),
        (pair() | {"ids": torch.ones(2, dtype=torch.int64)}, "'ids'"),
        (pair() | {"sparse": torch.eye(2).to_sparse()}, "'sparse'"),
        (pair() | {"meta": torch.ones(2, device="meta")}, "'meta'"),
        (pair() | {"a\x1b[31m": torch.ones(2)}, "a\\x1b[31m"),
        (pair() | {"huge": torch.ones(1).expand(1 << 40)}, "more values than the file holds"),
    ],
)
def test_anything_but_named_float_tensors(
    folder: Path, target: Path, body: object, words: str
) -> None:
    torch.save(body, folder / "adapter_model.bin")
    assert words in refused(folder, target)


def test_a_compressed_archive_could_be_a_bomb(folder: Path, target: Path, tmp_path: Path) -> None:
    torch.save({A: torch.zeros(1 << 20)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(folder / "adapter_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert "compressed" in refused(folder, target)


def test_nothing_to_convert(folder: Path, target: Path) -> None:
    assert "adapter_model.bin" in refused(folder, target)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), zipped=st.booleans(), cut=st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_refused_or_harmless(
    folder: Path, target: Path, seed: int, zipped: bool, cut: bool
) -> None:
    path = folder / "adapter_model.bin"
    torch.save(pair(), path, _use_new_zipfile_serialization=zipped)
    raw = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    if cut:
        del raw[rng.randrange(len(raw)) :]
    path.write_bytes(raw)
    try:
        formats.convert_pickle(folder, target)
        info = formats.inspect(target)
        assert all(module.name.isprintable() for module in info.modules)
    except InvalidAdapterError as error:
        assert error.message.isprintable()
    for file in target.iterdir():
        file.unlink()
