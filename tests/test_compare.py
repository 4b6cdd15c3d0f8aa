"""Comparing adapters, against dense float64 algebra, NumPy and SciPy."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.engine.compare import Comparison, Norms, Pair, compare, split_name
from lorahub.engine.pictures import chart, picture
from lorahub.errors import IncompatibleError, InvalidAdapterError, StorageError, UsageError
from lorahub.plot import block_map, sparkline
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES, write_adapter
from tests.test_engine import deltas, load

Array = NDArray[np.float64]
Q0, V0, UP1 = "model.layers.0.attn.q", "model.layers.0.attn.v", "model.layers.1.mlp.up"
# Different ranks, a wide and a tall shape, a rank above d_in, a module that one adapter lacks.
ONE = {Q0: (12, 8, 3), V0: (80, 6, 4), UP1: (7, 9, 9)}
OTHER = {Q0: (12, 8, 2), V0: (80, 6, 4), UP1: (7, 9, 2)}
THIRD = {Q0: (12, 8, 5), UP1: (7, 9, 1)}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [
        write_adapter(tmp_path / f"a{i}", modules, seed=i, alpha=alpha)
        for i, (modules, alpha) in enumerate([(ONE, 16), (OTHER, -4), (THIRD, 8)])
    ]
    # Dependent columns of B: two dimensions where the rank says three.
    file = made[0] / "adapter_model.safetensors"
    tensors = load_file(file)
    B = tensors[f"base_model.model.{Q0}.lora_B.weight"]
    B[:, 2] = -2 * B[:, 0]
    save_file(tensors, file)
    return made


def factors(folder: Path, module: str) -> tuple[Array, Array]:
    """(B, A) in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    stem = f"base_model.model.{module}.lora_"
    return tensors[f"{stem}B.weight"].double().numpy(), tensors[f"{stem}A.weight"].double().numpy()


def check_norms(found: Norms, delta: Array) -> None:
    sigma = np.linalg.svd(delta, compute_uv=False)
    energy = (sigma**2).cumsum() / (sigma**2).sum()
    shares = sigma / sigma.sum()
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    columns = np.sort(np.linalg.norm(delta, axis=0))[::-1]
    n = len(found.sigma)
    assert n <= len(sigma)
    assert found.norm == pytest.approx(np.linalg.norm(delta), rel=1e-12)
    assert found.sigma == pytest.approx(sigma[:n], abs=1e-7 * sigma[0])
    assert sigma[n:] == pytest.approx(0, abs=1e-7 * sigma[0])
    assert found.energy == pytest.approx(energy[:n], abs=1e-12)
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-5)
    assert found.nuclear == pytest.approx(sigma.sum(), rel=1e-6)
    assert found.nuclear_l12 == pytest.approx(columns[: min(delta.shape)].sum(), rel=1e-12)


def angles(one: Array, other: Array) -> Array:
    """Cosines of principal angles between column spaces, descending."""
    return np.sort(np.cos(scipy.linalg.subspace_angles(*map(scipy.linalg.orth, (one, other)))))[
        ::-1
    ]


def check_pair(found: Pair, one: Path, other: Path, module: str) -> None:
    x, y = (deltas(folder)[module].numpy() for folder in (one, other))
    (b1, a1), (b2, a2) = factors(one, module), factors(other, module)
    cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    for cosines, overlap, expected in (
        (found.cosines_a, found.overlap_a, angles(a1.T, a2.T)),
        (found.cosines_b, found.overlap_b, angles(b1, b2)),
    ):
        assert cosines == pytest.approx(expected, abs=1e-7)
        assert overlap == pytest.approx((expected**2).mean(), abs=1e-7)
    rows = np.linspace(0, len(x) - 1, min(64, len(x))).round().astype(int)
    signs = np.sign(x[rows]) * np.sign(y[rows])
    assert found.sign_conflict == pytest.approx((signs < 0).sum() / (signs != 0).sum(), abs=1e-3)


def test_every_module_equals_dense_algebra(folders: list[Path]) -> None:
    result = compare([load(f) for f in folders])
    dense = {f.name: deltas(f) for f in folders}
    by_name = {f.name: f for f in folders}
    assert [m.module for m in result.modules] == [Q0, V0, UP1]
    for module in result.modules:
        having = [f.name for f in folders if module.module in dense[f.name]]
        assert [n.adapter for n in module.norms] == having
        for norms in module.norms:
            check_norms(norms, dense[norms.adapter][module.module].numpy())
        check_norms(module.total, sum(dense[n][module.module].numpy() for n in having))
        assert [(p.one, p.other) for p in module.pairs] == list(combinations(having, 2))
        for pair in module.pairs:
            check_pair(pair, by_name[pair.one], by_name[pair.other], module.module)
    (first,) = (p for p in result.modules[0].pairs if (p.one, p.other) == ("a0", "a2"))
    assert (len(first.cosines_b), len(first.cosines_a)) == (2, 3)


def test_figures_over_all_modules_are_those_of_one_block_diagonal(folders: list[Path]) -> None:
    result = compare([load(f) for f in folders])
    dense = {f.name: deltas(f) for f in folders}

    def vector(name: str) -> Array:
        zeros = {m: torch.zeros(ONE[m][:2], dtype=torch.float64) for m in ONE} | dense[name]
        return torch.cat([zeros[m].flatten() for m in ONE]).numpy()

    for norms in result.norms:
        values = [torch.linalg.svdvals(d) for d in dense[norms.adapter].values()]
        squares = sum(float(v.square().sum()) for v in values)
        kept = sum(float(v[:2].square().sum()) for v in values)
        assert norms.norm == pytest.approx(float(np.linalg.norm(vector(norms.adapter))), rel=1e-9)
        assert norms.nuclear == pytest.approx(sum(float(v.sum()) for v in values), rel=1e-6)
        assert norms.kept(2) == norms.energy[1] == pytest.approx(kept / squares, rel=1e-9)
        assert norms.kept(99) == pytest.approx(1)
    for pair in result.pairs:
        x, y = vector(pair.one), vector(pair.other)
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        each = [
            p for m in result.modules for p in m.pairs if (p.one, p.other) == (pair.one, pair.other)
        ]
        assert pair.cosine == pytest.approx(cosine, abs=1e-9)
        assert pair.overlap_b == pytest.approx(np.mean([p.overlap_b for p in each]))
        assert pair.cosines_b[0] ** 2 == pytest.approx(np.mean([p.cosines_b[0] ** 2 for p in each]))


def test_types_gather_their_modules(tmp_path: Path) -> None:
    modules = {f"model.layers.{i}.{t}": (6, 5, 2) for i in (0, 2, 10) for t in ("attn.q", "up")}
    ones = [load(write_adapter(tmp_path / n, modules, seed=i)) for i, n in enumerate("ab")]
    result = compare(ones)
    assert [m.layer for m in result.modules[::2]] == [f"model.layers.{i}" for i in (0, 2, 10)]
    assert [(t.type, t.modules) for t in result.types] == [("attn.q", 3), ("up", 3)]
    squares = [m.norms[1].norm ** 2 for m in result.modules if m.type == "up"]
    assert result.types[1].norms[1].norm ** 2 == pytest.approx(sum(squares))
    assert result.types[1].pairs[0].sign_conflict == pytest.approx(
        np.mean([m.pairs[0].sign_conflict for m in result.modules if m.type == "up"])
    )


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        ("model.layers.3.self_attn.q_proj", ("model.layers.3", "self_attn.q_proj")),
        ("encoder.layer.0.attention.output.dense", ("encoder.layer.0", "attention.output.dense")),
        ("unet.down_blocks.0.attentions.1.attn1.to_out.0", ("unet.down_blocks.0.attentions.1",
                                                            "attn1.to_out.0")),
        ("blocks.7", ("", "blocks.7")),
        ("lm_head", ("", "lm_head")),
        ("3.q", ("3", "q")),
    ],
)  # fmt: skip
def test_layer_and_type_of_a_name(module: str, parts: tuple[str, str]) -> None:
    assert split_name(module) == parts


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_how_a_delta_is_split_into_factors_changes_nothing(
    tmp_path: Path, seed: int, size: float
) -> None:
    one = write_adapter(tmp_path / "one", ONE, seed=1)
    other = write_adapter(tmp_path / "other", OTHER, seed=2)
    before = compare([load(one), load(other)])
    file = other / "adapter_model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(seed)
    for module, (_, _, rank) in OTHER.items():
        key_b, key_a = (f"base_model.model.{module}.lora_{x}.weight" for x in "BA")
        turn = size * torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
        tensors[key_b] = tensors[key_b] @ turn
        tensors[key_a] = torch.linalg.solve(turn, tensors[key_a]).contiguous()
    save_file(tensors, file)
    after = compare([load(one), load(other)])
    for x, y in zip(before.modules, after.modules):
        assert x.norms[1].sigma == pytest.approx(y.norms[1].sigma, rel=1e-4, abs=1e-5)
        assert x.pairs[0].cosine == pytest.approx(y.pairs[0].cosine, abs=1e-5)
        assert x.pairs[0].cosines_a == pytest.approx(y.pairs[0].cosines_a, abs=1e-3)
        assert x.pairs[0].cosines_b == pytest.approx(y.pairs[0].cosines_b, abs=1e-3)


def test_equal_and_opposite(tmp_path: Path) -> None:
    one = load(write_adapter(tmp_path / "one", ONE, seed=4))
    other = load(write_adapter(tmp_path / "other", ONE, seed=4, alpha=-16))
    result = compare([one, other])
    (pair,) = result.pairs
    assert (pair.cosine, pair.sign_conflict) == (pytest.approx(-1), 1)
    assert pair.cosines_a == pytest.approx([1] * len(pair.cosines_a), abs=1e-9)
    assert pair.overlap_b == pytest.approx(1)
    assert result.total.norm == pytest.approx(0, abs=1e-12)


def test_an_adapter_of_zeros(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", ONE)
    zero = write_adapter(tmp_path / "zero", ONE, alpha=0)
    file = write_adapter(tmp_path / "empty", ONE) / "adapter_model.safetensors"
    save_file({k: v * ("lora_A" in k) for k, v in load_file(file).items()}, file)
    result = compare([load(one), load(zero), load(tmp_path / "empty")])
    silent = result.norms[1:]
    assert [(n.norm, n.effective_rank, n.nuclear, n.nuclear_l12) for n in silent] == [(0,) * 4] * 2
    by_pair = {(p.one, p.other): p for p in result.pairs}
    assert by_pair["one", "empty"].cosines_b == ()
    assert len(by_pair["one", "empty"].cosines_a) == 9
    assert all(p.cosine == p.sign_conflict == 0 for p in result.pairs)


def test_workers_and_batches_change_nothing() -> None:
    adapters = [load(EXAMPLES / n) for n in ("languages", "packages", "manuals")]
    assert compare(adapters, workers=1) == compare(adapters, workers=3)


def test_sets_that_cannot_be_compared(tmp_path: Path) -> None:
    one = load(write_adapter(tmp_path / "one", ONE))
    with pytest.raises(UsageError, match="at least two"):
        compare([one])
    with pytest.raises(UsageError, match="'one' is named twice"):
        compare([one, one])
    with pytest.raises(UsageError, match="65 adapters are too many"):
        compare([one] * 65)
    odd = load(write_adapter(tmp_path / "odd", {"model.layers.9.q": (4, 4, 2)}))
    with pytest.raises(IncompatibleError, match="'one' shares no target module"):
        compare([one, odd])
    wide = load(write_adapter(tmp_path / "wide", {Q0: (12, 9, 3)}))
    with pytest.raises(IncompatibleError, match=f"'{Q0}' is .*12x8 in 'one' but .*12x9 in 'wide'"):
        compare([one, wide])
    elsewhere = load(write_adapter(tmp_path / "elsewhere", ONE, base="other/base"))
    with pytest.raises(
        IncompatibleError, match="'one' is for tests/base; 'elsewhere' is for other"
    ):
        compare([one, elsewhere])
    unnamed = load(write_adapter(tmp_path / "unnamed", OTHER, base=None))
    assert len(compare([unnamed, elsewhere]).pairs) == 1
    file = write_adapter(tmp_path / "ill", ONE) / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{V0}.lora_A.weight"][1, 2] = math.nan
    save_file(tensors, file)
    with pytest.raises(InvalidAdapterError, match=f"{V0}.lora_A.weight' holds NaN"):
        compare([one, load(tmp_path / "ill")])


@pytest.fixture(scope="module")
def examples() -> Comparison:
    return compare([load(EXAMPLES / n) for n in ("languages", "packages", "manuals")])


def test_chart_shows_every_value(examples: Comparison) -> None:
    root = ET.fromstring(chart(examples))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    module = examples.modules[0]
    conflict = np.mean([p.sign_conflict for p in module.pairs])
    assert f"{conflict:.3g}" in texts
    assert {"languages", "intermediate.dense", "sum", "5"} <= set(texts)
    cells = root.findall(".//{http://www.w3.org/2000/svg}rect[@class='cell']")
    assert len(cells) == 4 * (36 + 6)
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    points = [len(line.attrib["points"].split()) for line in lines]
    assert points == 2 * [8, 4, 4, 16]


def test_picture_in_block_characters(examples: Comparison) -> None:
    lines = picture(examples).splitlines()
    assert lines[0].startswith("sign conflict")
    assert [line.split()[0] for line in lines[2:8]] == list("012345")
    assert all(
        len(line.split()[1]) == 18 and set(line.split()[1]) <= set("░▒▓█") for line in lines[2:8]
    )
    assert sparkline([8, 4, 0]) == "█▅▁"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
    drawn = block_map(["a", "bb"], ["x", "y"], [[0.0, None], [2.0, 1.0]])
    assert drawn.splitlines()[1:3] == [" a  ░░░", "bb  ███▓▓▓"]


def test_command_line(home: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    plot.write_text("old")
    words = ["compare", *(str(EXAMPLES / n) for n in ("languages", "packages"))]
    done = CliRunner().invoke(app, [*words, "--types", "--modules", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [r[1] for r in rows[1:4]] == ["languages", "packages", "sum"]
    assert len(rows) == 1 + 3 * 43 + 1 + 43 + 1 + 5  # all, 6 types and 36 modules; ranks
    assert rows[-1] == ["12", "100.0%", "100.0%", "100.0%"]
    assert ET.fromstring(plot.read_text()).tag.endswith("svg")
    body: dict[str, Any] = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert len(body["modules"]) == 36
    assert body["modules"][0]["pairs"][0]["cosines_b"][0] <= 1
    assert len(body["norms"][0]["energy"]) == 8


def test_a_plot_that_cannot_be_written(home: Path, tmp_path: Path) -> None:
    names = [str(EXAMPLES / n) for n in ("languages", "packages")]
    with Workspace.open() as workspace:
        with pytest.raises(UsageError, match="SVG"):
            workspace.compare(names, plot=tmp_path / "x.png")
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="file"):
            workspace.compare(names, plot=tmp_path / "file" / "x.svg")
    assert not list(tmp_path.glob("*.svg"))


def test_quantised_twins_of_one_base_are_compared(tmp_path: Path) -> None:
    one, other = (
        load(write_adapter(tmp_path / name, {"q": (4, 4, 2)}, seed=seed, base=base))
        for seed, (name, base) in enumerate(
            (("one", "meta-llama/Llama-2-7b-hf"), ("other", "unsloth/llama-2-7b-bnb-4bit"))
        )
    )
    assert [n.adapter for n in compare([one, other]).norms] == ["one", "other"]
