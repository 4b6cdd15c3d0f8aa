"""Packs: budgets kept, members back, shards found again, collections, damage, real adapters."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorahub import formats
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidAdapterError,
    LorahubError,
    NotFoundError,
    StorageError,
    UnsupportedAdapterError,
    UsageError,
)
from lorahub.packing import (
    PackInfo,
    PackInput,
    expand,
    pack,
    read_info,
    unpack,
)
from lorahub.packing.container import PackFile, Section, assemble
from tests.conftest import EXAMPLES, ROOT, write_adapter
from tests.mos_adapters import write_mos

P = "base_model.model."


def given_folder(folder: Path, name: str | None = None) -> PackInput:
    return PackInput(name or folder.name, folder, formats.inspect(folder))


def example(name: str = "packages") -> PackInput:
    return given_folder(EXAMPLES / name)


def deltas_of(folder: Path) -> dict[str, np.ndarray]:
    """Dense deltas in float64, by module, read by safetensors itself."""
    info = formats.inspect(folder)
    tensors = load_file(folder / info.weights_file)
    return {
        m.name: m.scaling * (tensors[m.key_b].double() @ tensors[m.key_a].double()).numpy()
        for m in info.modules
    }


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    left = sum(np.square(one[k] - other[k]).sum() for k in one)
    return math.sqrt(left / sum(np.square(v).sum() for v in one.values()))


def unpacked(info: PackInfo, name: str, folder: Path) -> Path:
    folder.mkdir()
    unpack(info.path, name, folder)
    return folder


# --- one adapter ---


@pytest.mark.parametrize("ratio", [4, 8, 16])
def test_a_ratio_is_kept_and_the_error_is_true(ratio: float, tmp_path: Path) -> None:
    source = example()
    info = pack([source], tmp_path / "a.mos", ratio=ratio)
    assert info.bytes == (tmp_path / "a.mos").stat().st_size
    assert ratio <= info.ratio < 1.03 * ratio
    (member,) = info.members
    assert member.codec == "waterfill"
    back = unpacked(info, "packages", tmp_path / "back")
    true = distance(deltas_of(source.folder), deltas_of(back))
    assert member.error == pytest.approx(true, rel=1e-3)
    found = formats.inspect(back)
    assert not found.refusals
    assert not found.warnings
    assert {m.scaling for m in found.modules} == {1.0}
    assert max(found.ranks) <= max(source.info.ranks)
    assert found.base_model == source.info.base_model


def test_an_error_is_kept(tmp_path: Path) -> None:
    info = pack([example()], tmp_path / "a.mos", error=0.2)
    assert 0.19 < info.members[0].error <= 0.2
    less = pack([example()], tmp_path / "b.mos", error=0.1)
    assert less.bytes > info.bytes


@pytest.mark.parametrize("budget", [450_000, 600_000])
def test_a_budget_beyond_the_finest_table_is_used(budget: int, tmp_path: Path) -> None:
    (source,) = sources = [example("languages")]
    info = pack(sources, tmp_path / "a.mos", bytes_budget=budget)
    assert 0.97 * budget < info.bytes <= budget
    (member,) = info.members
    assert member.codec == "fine integers"
    assert member.error < min(c.error for c in member.table if c.codec != member.codec)
    back = unpacked(info, "languages", tmp_path / "back")
    true = distance(deltas_of(source.folder), deltas_of(back))
    assert member.error == pytest.approx(true, rel=1e-3)


def test_more_bytes_than_the_finest_integers_take_are_left(tmp_path: Path) -> None:
    source = example("languages")
    info = pack([source], tmp_path / "a.mos", bytes_budget=1 << 20)
    values = 2 * source.info.parameters
    assert 15 / 16 * values < info.bytes < values
    assert info.members[0].error < 2e-4


def test_a_collection_uses_a_large_budget(tmp_path: Path) -> None:
    sources = [example(n) for n in ("languages", "packages", "manuals")]
    info = pack(sources, tmp_path / "a.mos", bytes_budget=1 << 20)
    assert 0.97 * (1 << 20) < info.bytes <= 1 << 20
    assert max(m.error for m in info.members) < 1e-3


def test_no_baseline_does_better_at_these_bytes(tmp_path: Path) -> None:
    (member,) = pack([example()], tmp_path / "a.mos", bytes_budget=20_000).members
    assert [c.codec for c in member.table] == [
        "waterfill", "truncation", "int8", "truncation+int4", "mixed bits",
    ]  # fmt: skip
    assert member.error == min(c.error for c in member.table)
    assert all(c.bytes <= member.table[0].bytes for c in member.table)


def signs(folder: Path) -> PackInput:
    """An adapter of rank 1 whose factors are +1 and -1: two bits a value hold it exactly."""
    write_adapter(folder, {"m": (1500, 2000, 1), "n": (1000, 500, 1)}, alpha=1)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v.sign() for k, v in weights.items()}, folder / "adapter_model.safetensors")
    return given_folder(folder)


def test_a_baseline_that_does_better_is_written(tmp_path: Path) -> None:
    source = signs(tmp_path / "signs")
    info = pack([source], tmp_path / "a.mos", bytes_budget=2400)
    (member,) = info.members
    assert member.codec == "mixed bits"
    assert member.error < 1e-4
    assert info.bytes <= 2400
    back = unpacked(info, "signs", tmp_path / "back")
    assert distance(deltas_of(source.folder), deltas_of(back)) < 1e-4


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, hashlib; from pathlib import Path; from lorahub import formats;"
        "from lorahub.packing import PackInput, expand, pack;"
        "f = Path(sys.argv[1]); out = Path(sys.argv[2]);"
        "pack([PackInput('a', f, formats.inspect(f))], out, ratio=8);"
        "h = hashlib.sha256(out.read_bytes());"
        "[h.update(m.A.tobytes() + m.B.tobytes()) for m in expand(out, 'a')];"
        "print(h.hexdigest(), 'torch' in sys.modules)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script, str(EXAMPLES / "packages"), str(tmp_path / f"{i}.mos")],
            capture_output=True, text=True, check=True,
        ).stdout
        for i in range(2)
    }  # fmt: skip
    (line,) = found
    assert line.split()[1] == "False", "packing and decoding need no torch"


def test_protecting_modules_lowers_the_worst_error(tmp_path: Path) -> None:
    loud = write_adapter(tmp_path / "loud", {"a": (64, 48, 4), "b": (64, 48, 4)})
    weights = load_file(loud / "adapter_model.safetensors")
    weights[f"{P}a.lora_B.weight"] *= 8
    save_file(weights, loud / "adapter_model.safetensors")
    plain = pack([given_folder(loud)], tmp_path / "p.mos", bytes_budget=1500).members[0]
    fair = pack([given_folder(loud)], tmp_path / "f.mos", bytes_budget=1500, protect=True).members[
        0
    ]
    assert plain.worst_module == fair.worst_module == "b"
    assert fair.worst_error < plain.worst_error
    assert fair.error > plain.error


def test_odd_shapes_and_kinds_come_back(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "odd", {"x.q": (13, 7, 3), "x.k": (1, 101, 1), "y": (5, 3, 9)}
    )
    weights = load_file(folder / "adapter_model.safetensors")
    weights[f"{P}emb.lora_embedding_A"] = torch.randn(3, 50)
    weights[f"{P}emb.lora_embedding_B"] = torch.randn(6, 3)
    save_file(weights, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["rank_pattern"]["emb"] = 3
    (folder / "adapter_config.json").write_text(json.dumps(config))
    source = given_folder(folder)
    assert not source.info.refusals
    info = pack([source], tmp_path / "a.mos", error=0.3)
    back = unpacked(info, "odd", tmp_path / "back")
    assert distance(deltas_of(folder), deltas_of(back)) == pytest.approx(
        info.members[0].error, rel=1e-2, abs=1e-6
    )
    assert {m.kind for m in formats.inspect(back).modules} == {m.kind for m in source.info.modules}


# --- lossless ---


@pytest.mark.parametrize(
    ("shards", "private", "tied", "dtype"),
    [
        (4, 1, False, torch.float32),
        (4, 1, False, torch.bfloat16),
        (4, 1, True, torch.float32),
        (4, 0, False, torch.float32),
        (1, 1, False, torch.float32),
        (2, 2, False, torch.bfloat16),
    ],
)
def test_mixture_of_shards_is_found_again(
    shards: int, private: int, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = write_mos(
        tmp_path / "mos",
        {"q_proj": (768, 768), "v_proj": (768, 512)},
        layers=12, rank=16, equivalent=4, shards=shards, private=private, tied=tied, dtype=dtype,
    )  # fmt: skip
    source = given_folder(folder)
    info = pack([source], tmp_path / "a.mos")
    assert info.members[0].codec == "exact"
    back = unpacked(info, "mos", tmp_path / "back")
    before = load_file(folder / "adapter_model.safetensors")
    after = load_file(back / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before
    )
    one, other = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, back))
    assert one == other
    stored = source.info.parameters * before[next(iter(before))].element_size()
    assert stored / info.bytes >= 0.94 * 16 / 4


def test_an_ordinary_adapter_is_left_as_it_is(tmp_path: Path) -> None:
    source = example()
    info = pack([source], tmp_path / "a.mos")
    weights = source.folder / source.info.weights_file
    assert info.bytes < weights.stat().st_size + 1000
    names = read_names(info.path)
    assert not [n for n in names if n.startswith("pool")]
    back = unpacked(info, "packages", tmp_path / "back")
    before, after = load_file(weights), load_file(back / "adapter_model.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    exact = {m.name: (m.A, m.B) for m in expand(info.path, "packages")}
    for name, dense in deltas_of(source.folder).items():
        A, B = exact[name]
        assert np.allclose(B.astype(float) @ A, dense, rtol=0, atol=1e-6 * np.abs(dense).max())


def test_rows_in_common_are_not_mistaken_for_shards(tmp_path: Path) -> None:
    """One pair of equal rows saves less than the five percent that a pool must."""
    folder = write_adapter(tmp_path / "a", {f"l{i}.q": (32, 64, 8) for i in range(4)})
    weights = load_file(folder / "adapter_model.safetensors")
    weights[f"{P}l1.q.lora_A.weight"][3] = weights[f"{P}l0.q.lora_A.weight"][5]
    save_file(weights, folder / "adapter_model.safetensors")
    info = pack([given_folder(folder)], tmp_path / "a.mos")
    assert not [n for n in read_names(info.path) if n.startswith("pool")]


def test_what_is_the_same_in_a_collection_is_stored_once(tmp_path: Path) -> None:
    folder = write_mos(
        tmp_path / "one", {"q": (256, 256)}, layers=8, rank=8, equivalent=2, shards=2, private=1
    )
    one, twin = given_folder(folder), given_folder(folder, "twin")
    alone = pack([one], tmp_path / "a.mos")
    both = pack([one, twin], tmp_path / "b.mos")
    assert both.bytes < alone.bytes + 1200
    assert both.members[1].parameters == both.members[0].parameters
    lossy = pack([one, twin], tmp_path / "c.mos", error=0.2)
    assert lossy.members[1].same_as == "one"
    assert [m.B.tobytes() for m in expand(lossy.path, "twin")] == [
        m.B.tobytes() for m in expand(lossy.path, "one")
    ]


def test_nothing_lost_wins_where_it_meets_the_target(tmp_path: Path) -> None:
    folder = write_mos(
        tmp_path / "mos", {"q": (512, 512)}, layers=16, rank=16, equivalent=2, shards=2, private=1,
        dtype=torch.bfloat16,
    )  # fmt: skip
    info = pack([given_folder(folder)], tmp_path / "a.mos", ratio=7)
    assert info.members[0].codec == "exact"
    assert info.members[0].error == 0
    assert info.ratio > 7
    tiny = pack([given_folder(folder)], tmp_path / "b.mos", ratio=40)
    assert tiny.members[0].codec == "waterfill"


@pytest.mark.parametrize("target", [{"ratio": 30}, {"error": 0.9}])
def test_ranks_of_one_size_need_not_all_go(target: dict[str, Any], tmp_path: Path) -> None:
    """A flat spectrum: no step has anything between all ranks and none."""
    folder = write_adapter(tmp_path / "flat", {f"l{i}.q": (512, 512, 8) for i in range(4)})
    weights = load_file(folder / "adapter_model.safetensors")
    for key, value in weights.items():
        tall = value if "lora_B" in key else value.T
        basis = torch.linalg.qr(tall)[0]
        weights[key] = (basis if "lora_B" in key else basis.T).contiguous()
    save_file(weights, folder / "adapter_model.safetensors")
    info = pack([given_folder(folder)], tmp_path / "a.mos", **target)
    assert 0.8 < info.members[0].error < 0.97
    if "ratio" in target:
        assert info.ratio >= 30


# --- collections ---


def checkpoint(folder: Path, seed: int, drift: float) -> Path:
    """The adapter of ``seed`` 0, moved by ``drift`` of another."""
    modules = {f"l{i}.q": (96, 128, 8) for i in range(4)}
    write_adapter(folder, modules, seed=0)
    other = load_file(
        write_adapter(folder.parent / "x", modules, seed=seed) / "adapter_model.safetensors"
    )
    weights = load_file(folder / "adapter_model.safetensors")
    moved = {k: v + drift * other[k] for k, v in weights.items()}
    save_file(moved, folder / "adapter_model.safetensors")
    return folder


def test_checkpoints_of_one_run_share(tmp_path: Path) -> None:
    inputs = [given_folder(checkpoint(tmp_path / f"c{i}", i + 1, 0.05 * i)) for i in range(3)]
    alone = sum(pack([i], tmp_path / f"{i.name}.mos", error=0.2).bytes for i in inputs)
    info = pack(inputs, tmp_path / "all.mos", error=0.2)
    assert info.bytes < 0.6 * alone  # a fifth of so small a file is its index
    for source, member in zip(inputs, info.members, strict=True):
        back = unpacked(info, source.name, tmp_path / f"back-{source.name}")
        true = distance(deltas_of(source.folder), deltas_of(back))
        assert true <= 0.2001
        assert member.error == pytest.approx(true, rel=1e-3)


def flags(path: Path) -> set[int]:
    members = PackFile(path).index["members"]
    return {flag for m in members for flag in m.get("predicted", [])}


def one_start(folder: Path, seed: int) -> Path:
    """An adapter whose A is that of seed 0: it was initialised alike and hardly moved."""
    modules = {f"l{i}.q": (96, 128, 8) for i in range(4)}
    start = load_file(
        write_adapter(folder.parent / "s", modules, seed=0) / "adapter_model.safetensors"
    )
    write_adapter(folder, modules, seed=seed)
    weights = load_file(folder / "adapter_model.safetensors")
    mixed = {k: start[k] + 0.05 * v if "lora_A" in k else v for k, v in weights.items()}
    save_file(mixed, folder / "adapter_model.safetensors")
    return folder


def test_adapters_of_one_start_share_rows_only(tmp_path: Path) -> None:
    inputs = [given_folder(one_start(tmp_path / f"a{i}", i + 1)) for i in range(2)]
    alone = sum(pack([i], tmp_path / f"{i.name}.mos", error=0.2).bytes for i in inputs)
    info = pack(inputs, tmp_path / "all.mos", error=0.2)
    assert 1 in flags(info.path)
    assert info.bytes < 0.85 * alone
    for source in inputs:
        back = unpacked(info, source.name, tmp_path / f"back-{source.name}")
        assert distance(deltas_of(source.folder), deltas_of(back)) <= 0.2001


def test_siblings_share_public_rows(tmp_path: Path) -> None:
    """None is nearer to the others than the rest: what they have in common is stored once."""
    inputs = [given_folder(checkpoint(tmp_path / f"c{i}", i + 1, 0.05)) for i in range(4)]
    alone = sum(pack([i], tmp_path / f"{i.name}.mos", error=0.2).bytes for i in inputs)
    info = pack(inputs, tmp_path / "all.mos", error=0.2)
    assert flags(info.path) == {7}
    assert info.bytes < 0.5 * alone
    for source in inputs:
        back = unpacked(info, source.name, tmp_path / f"back-{source.name}")
        assert distance(deltas_of(source.folder), deltas_of(back)) <= 0.2001


def test_unrelated_adapters_lose_nothing(tmp_path: Path) -> None:
    modules = {f"l{i}.q": (96, 128, 8) for i in range(4)}
    inputs = [given_folder(write_adapter(tmp_path / f"u{i}", modules, seed=i)) for i in range(8)]
    alone = [pack([i], tmp_path / f"{i.name}.mos", ratio=8) for i in inputs]
    info = pack(inputs, tmp_path / "all.mos", bytes_budget=sum(a.bytes for a in alone))
    assert max(m.error for m in info.members) <= 1.001 * max(a.members[0].error for a in alone)
    assert flags(info.path) == set()
    alone = [pack([i], tmp_path / f"{i.name}-e.mos", error=0.3) for i in inputs]
    info = pack(inputs, tmp_path / "all-e.mos", error=0.3)
    assert info.bytes <= 1.001 * sum(a.bytes for a in alone)


def test_sources_may_differ_in_modules_and_ranks(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one", 1, 0.0)
    other = write_adapter(
        tmp_path / "other", {"l0.q": (96, 128, 2), "l1.q": (96, 64, 4), "z": (4, 4, 1)}
    )
    twin = checkpoint(tmp_path / "twin", 2, 0.02)
    inputs = [given_folder(f) for f in (one, other, twin)]
    info = pack(inputs, tmp_path / "a.mos", error=0.15)
    for source in inputs:
        back = unpacked(info, source.name, tmp_path / f"back-{source.name}")
        assert distance(deltas_of(source.folder), deltas_of(back)) <= 0.1501


# --- bad input ---


def test_all_zero_factors(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "zero", {"a.q": (8, 16, 4), "b.q": (8, 16, 4)})
    weights = load_file(folder / "adapter_model.safetensors")
    zero = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()}
    save_file(zero, folder / "adapter_model.safetensors")
    info = pack([given_folder(folder)], tmp_path / "a.mos", error=0.1)
    assert info.members[0].error == 0
    back = unpacked(info, "zero", tmp_path / "back")
    assert all(not d.any() for d in deltas_of(back).values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "nan", {"a.q": (8, 16, 4)})
    weights = load_file(folder / "adapter_model.safetensors")
    weights[f"{P}a.q.lora_A.weight"][1, 2] = value
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapterError, match=r"a\.q\.lora_A\.weight.*not finite|NaN"):
        pack([given_folder(folder)], tmp_path / "a.mos", ratio=8)
    assert not (tmp_path / "a.mos").exists()


def test_a_rank_one_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "one", {"q": (300, 200, 1)})
    info = pack([given_folder(folder)], tmp_path / "a.mos", error=0.1)
    assert distance(deltas_of(folder), deltas_of(unpacked(info, "one", tmp_path / "b"))) <= 0.1001


@pytest.mark.parametrize("budget", [1, 400])
def test_a_budget_that_cannot_be_met(budget: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"do not fit into {budget} bytes") as caught:
        pack([example()], tmp_path / "a.mos", bytes_budget=budget)
    assert caught.value.hint is not None
    assert int(re.search(r"\d+", caught.value.hint)[0]) > budget
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [["packages"], ["packages", "manuals"]])
@pytest.mark.parametrize("target", [{"ratio": 1e6}, {"ratio": 1e300}, {"bytes_budget": 100}])
def test_a_target_below_any_value(names: list[str], target: dict[str, Any], tmp_path: Path) -> None:
    adapters = [example(name) for name in names]
    with pytest.raises(UsageError, match="nothing would be left of them"):
        pack(adapters, tmp_path / "a.mos", **target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target",
    [{"ratio": 0}, {"ratio": -1}, {"ratio": math.nan}, {"bytes_budget": 0}, {"error": 0.0},
     {"error": 1.0}, {"error": math.nan}, {"ratio": 8, "error": 0.1}],
)  # fmt: skip
def test_targets_that_make_no_sense(target: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        pack([example()], tmp_path / "a.mos", **target)


def test_names_and_kinds_that_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to pack"):
        pack([], tmp_path / "a.mos")
    with pytest.raises(UsageError, match="two adapters are named 'packages'"):
        pack([example(), example()], tmp_path / "a.mos")
    dora = write_adapter(tmp_path / "dora", {"q": (8, 8, 2)}, config={"use_dora": True})
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        pack([given_folder(dora)], tmp_path / "a.mos")


def test_files_in_the_way(tmp_path: Path) -> None:
    out = tmp_path / "a.mos"
    out.write_text("mine")
    with pytest.raises(ConflictError, match="already exists"):
        pack([example()], out, ratio=16)
    assert out.read_text() == "mine"
    pack([example()], out, ratio=16, replace=True)
    assert read_info(out).members[0].name == "packages"
    with pytest.raises(StorageError, match="cannot be written"):
        pack([example()], tmp_path / "no" / "folder.mos", ratio=16)
    assert {p.name for p in tmp_path.iterdir()} == {"a.mos"}


# --- damage ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with a member of every kind but plain: waterfill, predicted, and a twin."""
    folder = tmp_path_factory.mktemp("small")
    one = checkpoint(folder / "one", 1, 0.0)
    two = checkpoint(folder / "two", 2, 0.05)
    inputs = [given_folder(one), given_folder(two), given_folder(one, "again")]
    info = pack(inputs, folder / "a.mos", error=0.3)
    assert [m.codec for m in info.members] == ["waterfill"] * 3
    return info.path


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with public rows."""
    folder = tmp_path_factory.mktemp("siblings")
    inputs = [given_folder(checkpoint(folder / f"c{i}", i + 1, 0.02)) for i in range(3)]
    return pack(inputs, folder / "a.mos", error=0.3).path


def read_names(path: Path) -> list[str]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return [k for k in json.loads(raw[8 : 8 + length]) if k != "__metadata__"]


def rewritten(
    path: Path, out: Path, change: Callable[[dict[str, Any]], None], version: str = "1"
) -> Path:
    """The pack with a changed index and a right checksum: what a hostile author could write."""
    pack_file = PackFile(path)
    change(pack_file.index)
    sections = [
        Section(name, entry.dtype, entry.shape, pack_file.section(name))
        for name, entry in pack_file._entries.items()
        if name != "index"
    ]
    body = assemble(pack_file.index, sections)
    if version != "1":
        digest = re.search(rb'"sha256":"(\w+)"', body)[1]
        body = body.replace(digest, b"0" * 64).replace(
            b'"version":"1"', f'"version":"{version}"'.encode()
        )
        body = body.replace(b"0" * 64, hashlib.sha256(body).hexdigest().encode())
    out.write_bytes(body)
    return out


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_every_changed_byte_is_noticed(
    small: Path, tmp_path: Path, where: float, flip: int
) -> None:
    raw = bytearray(small.read_bytes())
    raw[int(where * len(raw))] ^= flip
    damaged = tmp_path / "damaged.mos"
    damaged.write_bytes(raw)
    with pytest.raises(LorahubError) as caught:
        read_info(damaged)
    assert str(damaged) in caught.value.message


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True))
def test_truncation_is_noticed(small: Path, tmp_path: Path, where: float) -> None:
    raw = small.read_bytes()
    damaged = tmp_path / "damaged.mos"
    damaged.write_bytes(raw[: int(where * len(raw))])
    with pytest.raises(InvalidAdapterError, match=r"truncated|too short"):
        read_info(damaged)


def test_tampered_and_newer_packs_are_named(small: Path, tmp_path: Path) -> None:
    raw = bytearray(small.read_bytes())
    raw[-5] ^= 1
    (tmp_path / "t.mos").write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"t\.mos: does not match its checksum"):
        read_info(tmp_path / "t.mos")
    newer = rewritten(small, tmp_path / "n.mos", lambda index: None, version="2")
    with pytest.raises(InvalidAdapterError, match=r"n\.mos: pack version '2' is not 1") as caught:
        read_info(newer)
    assert caught.value.hint == "upgrade lorahub to read it"
    weights = EXAMPLES / "packages" / "adapter_model.safetensors"
    with pytest.raises(InvalidAdapterError, match="is a safetensors file but no pack"):
        read_info(weights)
    with pytest.raises(NotFoundError, match="no member 'three'") as missing:
        expand(small, "three")
    assert missing.value.hint == "it has one, two, again"


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, value = path

    def change(index: dict[str, Any]) -> None:
        at: Any = index
        for key in keys:
            at = at[key]
        at[last] = value

    return change


HOSTILE = {
    "layouts": _set("layouts", None),
    "layout line": _set("layouts", 0, 0, ["q", "linear", 0, 5]),
    "dimension": _set("layouts", 0, 0, 2, 1 << 40),
    "kind": _set("layouts", 0, 0, 1, "conv"),
    "member": _set("members", 0, 7),
    "name": _set("members", 0, "name", "a\x1b[2J"),
    "twice": _set("members", 1, "name", "one"),
    "layout": _set("members", 0, "layout", 9),
    "parameters": _set("members", 0, "parameters", -1),
    "codec": _set("members", 0, "codec", "magic"),
    "as": _set("members", 2, "as", 2),
    "error": _set("members", 0, "error", "big"),
    "worst": _set("members", 0, "worst", [99, 0.1]),
    "table": _set("members", 0, "table", [[1, 2]]),
    "base_model": _set("members", 0, "base_model", 5),
    "ranks": _set("members", 0, "ranks", [8, 8]),
    "ranks high": _set("members", 0, "ranks", [1 << 30] * 4),
    "ranks wrong": _set("members", 0, "ranks", [8, 8, 8, 7]),
    "exponent": _set("members", 0, "exponent", 1e400),
    "streams": _set("members", 0, "streams", [[[64, 1 << 30, 0]]]),
    "no streams": _set("members", 0, "streams", []),
    "lanes": _set("members", 0, "streams", [[[0, 5, 0]]]),
    "predicted": _set("members", 0, "predicted", [3, 3, 3, 3]),
    "exact": _set("members", 0, "codec", "exact"),
    "plain": _set("members", 0, "codec", "plain"),
}


HOSTILE_PUBLIC = {
    "public": _set("public", "modules", 0, ["q", 1, 2]),
    "public counts": _set("public", "modules", 0, 3, 1 << 30),
    "public dimension": _set("public", "modules", 0, 1, 1 << 30),
    "public stream": _set("public", "stream", None),
    "public missing": _set("public", None),
    "public many": _set("public", "modules", [["q", 1 << 24, 1 << 24, 99, 99]]),
}


@pytest.mark.parametrize("name", list(HOSTILE_PUBLIC))
def test_public_rows_that_lie_are_refused(name: str, siblings: Path, tmp_path: Path) -> None:
    assert flags(siblings) == {7}
    hostile = rewritten(siblings, tmp_path / "h.mos", HOSTILE_PUBLIC[name])
    with pytest.raises(InvalidAdapterError, match="public"):
        expand(hostile, "c1")


@pytest.mark.parametrize("name", list(HOSTILE))
def test_an_index_that_lies_is_refused(name: str, small: Path, tmp_path: Path) -> None:
    hostile = rewritten(small, tmp_path / "h.mos", HOSTILE[name])
    with pytest.raises(InvalidAdapterError) as caught:
        read_info(hostile)
        expand(hostile, "one")
        expand(hostile, "again")
    assert str(hostile) in caught.value.message
    assert "field" in caught.value.message or "section" in caught.value.message


def test_a_layout_cannot_claim_more_than_the_file_holds(small: Path, tmp_path: Path) -> None:
    def claim(index: dict[str, Any]) -> None:
        index["layouts"][0] = [[f"m{i}", "linear", 1 << 24, 1 << 24] for i in range(99)]
        index["members"][0]["ranks"] = [0] * 99
        index["members"][0]["streams"] = [[]]

    hostile = rewritten(small, tmp_path / "h.mos", claim)
    with pytest.raises(InvalidAdapterError, match="more than the file can hold"):
        expand(hostile, "one")


def test_an_index_that_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    from lorahub.packing import container

    monkeypatch.setattr(container, "MAX_INDEX_BYTES", 1 << 10)
    body = container.assemble({"members": [], "x": "y" * 2000}, [])
    (tmp_path / "bomb.mos").write_bytes(body)
    with pytest.raises(InvalidAdapterError, match="section 'index': is larger"):
        read_info(tmp_path / "bomb.mos")


# --- real adapters ---

TASKS = ("langid", "debsec", "codelang", "mansec", "bshift")


@pytest.mark.parametrize(("ratio", "bar"), [(4, 0.060), (8, 0.215), (16, 0.395)])
def test_five_public_adapters(
    shared_adapters: Path, tmp_path: Path, ratio: float, bar: float
) -> None:
    home = shared_adapters.parent / "quality" / "public" / "adapters"
    errors = []
    for task in TASKS:
        source = given_folder(home / f"{task}_r8_s0")
        info = pack([source], tmp_path / f"{task}.mos", ratio=ratio)
        assert info.bytes <= source.info.parameters * 2 / ratio
        errors.append(info.members[0].error)
    assert sum(errors) / len(errors) <= bar


def test_three_checkpoints_of_one_run(shared_adapters: Path, tmp_path: Path) -> None:
    run = "day21-track3-finetuning-llms__r8"
    inputs = [
        given_folder(shared_adapters / f"{run}{s}")
        for s in ("-checkpoint-23", "-checkpoint-46", "")
    ]
    alone = [pack([i], tmp_path / f"{i.name}.mos", error=0.21) for i in inputs]
    info = pack(inputs, tmp_path / "all.mos", error=max(a.members[0].error for a in alone))
    assert info.bytes <= 0.55 * sum(a.bytes for a in alone)
    assert max(m.error for m in info.members) <= max(a.members[0].error for a in alone)


def test_every_real_adapter_beats_the_baselines(shared_adapters: Path, tmp_path: Path) -> None:
    packed = 0
    for folder in sorted(p for p in shared_adapters.iterdir() if p.is_dir()):
        try:
            info = formats.inspect(folder)
        except LorahubError:
            continue
        if info.refusals or any("all deltas are zero" in w for w in info.warnings):
            continue
        packed += 1
        (member,) = pack(
            [PackInput("a", folder, info)], tmp_path / f"{folder.name}.mos", ratio=8
        ).members
        assert member.codec == "waterfill"
        assert all(member.error < c.error for c in member.table[1:]), folder.name
    assert packed >= 8


# --- the document ---


def test_the_documents_decoder_needs_numpy_alone(
    small: Path, siblings: Path, tmp_path: Path
) -> None:
    """It gives the same bits as lorahub, for every codec, in a Python that sees only numpy."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "mos-format.md").read_text(), re.DOTALL
    )
    script = tmp_path / "decoder.py"
    script.write_text(code)
    mos = write_mos(
        tmp_path / "mos", {"q": (64, 96)}, layers=8, rank=8, equivalent=2, shards=2, private=1,
        dtype=torch.bfloat16,
    )  # fmt: skip
    starts = [given_folder(one_start(tmp_path / f"a{i}", i + 1)) for i in range(2)]
    before = pack(starts, tmp_path / "before.mos", error=0.2).path
    assert 1 in flags(before)
    assert 7 in flags(siblings)
    exact = pack([given_folder(mos), example()], tmp_path / "exact.mos").path
    lossy = pack([example()], tmp_path / "lossy.mos", ratio=5).path
    plain = pack([signs(tmp_path / "signs")], tmp_path / "plain.mos", bytes_budget=2400).path
    site = tmp_path / "site"
    site.mkdir()
    for part in Path(np.__file__).parent.parent.glob("numpy*"):
        (site / part.name).symlink_to(part)
    for path in (small, siblings, before, exact, lossy, plain):
        done = subprocess.run(
            [sys.executable, "-S", str(script), str(path)],
            env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
        for member in read_info(path).members:
            whole = hashlib.sha256()
            for m in expand(path, member.name):
                whole.update(m.A.astype("<f4").tobytes() + m.B.astype("<f4").tobytes())
            assert lines[member.name] == whole.hexdigest(), (path.name, member.name)
