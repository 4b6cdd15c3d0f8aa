"""Sketches and what is told from them, against dense float64, scipy and files compared by hand."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lorahub import similarity, sketching
from lorahub.adapter import AdapterInfo, Module, ModuleKind
from lorahub.engine.sketch import DELTA, SUBSPACE, Projection, factors_hash, project
from lorahub.errors import (
    IntegrityError,
    InvalidAdapterError,
    StorageError,
    UnsupportedAdapterError,
    UsageError,
)
from lorahub.events import Advanced, Event, PhaseStarted, Warned
from lorahub.plot import scatter
from lorahub.workspace import Workspace
from store.sketches import Sketched
from tests.conftest import EXAMPLES, write_adapter

SHAPES = {f"model.layers.{i}.{n}": (24, 20, 4) for i in range(4) for n in ("q", "v")}


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        yield opened


def pull(workspace: Workspace, *folders: Path) -> None:
    """One after the other, so that the first is the oldest."""
    for folder in folders:
        (pulled,) = workspace.pull([str(folder)])
        assert pulled.error is None, pulled.error


def module(name: str, B: Tensor, A: Tensor, scaling: float = 1.0) -> tuple[Module, Tensor, Tensor]:
    rank, d_in = A.shape
    about = Module(
        name, ModuleKind.LINEAR, rank, d_in, len(B), "F64", "F64", rank * scaling, scaling, "a", "b"
    )
    return about, B, A


def random(seed: int, d_out: int = 24, d_in: int = 20, rank: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = {"generator": generator, "dtype": torch.float64}
    return torch.randn(d_out, rank, **make), torch.randn(rank, d_in, **make)


def close(one: Projection, other: Projection) -> None:
    for name in ("delta", "subspace", "spectrum"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6 * (1 + one.norm)
        )
    assert one.norm == pytest.approx(other.norm)


# --- sketches ---


def test_inner_products_are_those_of_the_dense_matrices_on_average() -> None:
    B1, A1 = random(1)
    B2, A2 = random(2, rank=3)
    B2[:, 0], A2[0] = B1[:, 0], A1[0]
    X, Y = 0.5 * B1 @ A1, 2 * B2 @ A2
    spaces = [(torch.linalg.qr(B)[0], torch.linalg.qr(A.mT)[0]) for B, A in ((B1, A1), (B2, A2))]
    overlap = sum(float((p.mT @ q).square().sum()) for p, q in zip(*spaces))
    deltas, projectors = [], []
    for i in range(200):  # every name has hash functions of its own
        one = project([module(f"m{i}", B1, A1, 0.5)])
        other = project([module(f"m{i}", B2, A2, 2)])
        deltas.append(float(one.delta @ other.delta))
        projectors.append(float(one.subspace @ other.subspace))
        assert one.norm == pytest.approx(float(X.norm()))
    for found, exact, size in (
        (deltas, float((X * Y).sum()), float(X.norm() * Y.norm())),
        (projectors, overlap, (8 * 6) ** 0.5),
    ):
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - exact) < 4 * error
        assert error < 0.015 * size


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.8, 1.0])
def test_cosines_of_whole_adapters(shared: float) -> None:
    one, other, dots = [], [], np.zeros(3)
    for i in range(20):
        (B1, A1), (B2, A2) = random(2 * i), random(2 * i + 1)
        B2, A2 = torch.cat([B1, B2], 1), torch.cat([shared * A1, (1 - shared) * A2])
        X, Y = B1 @ A1, B2 @ A2
        dots += [float((X * Y).sum()), float((X * X).sum()), float((Y * Y).sum())]
        one.append(module(f"m{i}", B1, A1))
        other.append(module(f"m{i}", B2, A2))
    exact = dots[0] / (dots[1] * dots[2]) ** 0.5
    a, b = project(one).delta, project(other).delta
    assert float(a @ b / (a.norm() * b.norm())) == pytest.approx(exact, abs=4 / DELTA**0.5)


@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_the_sketch_of_a_sum_is_the_sum_of_sketches(seed: int, s: float, t: float) -> None:
    (B1, A1), (B2, A2) = random(seed), random(seed + 1)
    whole = project([module("m", torch.cat([s * B1, t * B2], 1), torch.cat([A1, A2]))])
    parts = s * project([module("m", B1, A1)]).delta + t * project([module("m", B2, A2)]).delta
    torch.testing.assert_close(whole.delta, parts)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_factors_of_one_delta_have_one_sketch(seed: int) -> None:
    B, A = random(seed)
    G = random(seed + 7, 4, 4)[0] + 3 * torch.eye(4, dtype=torch.float64)
    close(project([module("m", B, A)]), project([module("m", B @ G, torch.linalg.inv(G) @ A)]))
    padded = torch.cat([B, B[:, :1]], 1), torch.cat([A[:1] * 0.5, A[1:], A[:1] * 0.5])
    close(project([module("m", B, A)]), project([module("m", *padded)]))


def test_modules_of_another_name_or_shape_have_nothing_in_common() -> None:
    B, A = random(3)
    one = project([module("m", B, A)])
    for other in (project([module("n", B, A)]), project([module("m", B[:-1], A)])):
        cosine = float(one.delta @ other.delta) / one.norm / other.norm
        assert abs(cosine) < 5 / DELTA**0.5
    assert len(one.subspace) == SUBSPACE


def test_spectra_are_compared_from_the_largest_value_on() -> None:
    B, A = random(3)
    U, sigma, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    cut = project([module("m", U[:, :2] * sigma[:2], Vh[:2])]).spectrum
    whole = project([module("m", B, A)]).spectrum
    rest = project([module("m", U * torch.where(torch.arange(20) < 2, sigma, 0), Vh)]).spectrum
    torch.testing.assert_close(cut, rest)
    assert float(whole.norm()) == pytest.approx(float(sigma.norm()))


def test_the_hashes_stay_the_same() -> None:
    """Sketches in a catalog are only comparable while the code that makes them stays."""
    B, A = torch.arange(12.0).view(6, 2).double(), torch.ones(2, 5, dtype=torch.float64)
    found = project([module("model.layers.0.q_proj", B, A)])
    assert found.delta[[222, 471, 343]].round().tolist() == [-21, 21, -26]
    assert found.subspace[[447, 168]].tolist() == pytest.approx([-11 / 21, -11 / 21])
    assert int(found.spectrum.abs().argmax()) == 73
    assert sketching.VERSION == 1, "with other vectors comes another version"


# --- the catalog's sketches ---


def dense(folder: Path) -> np.ndarray:
    """All deltas of an adapter of `write_adapter` as one float64 vector."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    parts = []
    for key in sorted(k for k in tensors if k.endswith("lora_A.weight")):
        A, B = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        parts.append((config["lora_alpha"] / len(A) * B @ A).flatten().numpy())
    return np.concatenate(parts)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def moved(folder: Path, to: Path, amount: float, seed: int) -> Path:
    """A copy whose B is moved by noise of that relative size."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for key, value in tensors.items():
        if key.endswith("lora_B.weight"):
            noise = torch.randn(value.shape, generator=generator) * value.std()
            tensors[key] = value + amount * noise
    save_file(tensors, to / "adapter_model.safetensors")
    return to


def test_similar_orders_as_the_dense_deltas_do(workspace: Workspace, tmp_path: Path) -> None:
    origin = write_adapter(tmp_path / "origin", SHAPES)
    folders = {
        f"moved{i}": moved(origin, tmp_path / f"moved{i}", amount, i)
        for i, amount in enumerate((0.2, 0.7, 1.5, 4.0))
    }
    folders["other"] = write_adapter(tmp_path / "other", SHAPES, seed=9)
    pull(workspace, origin, *folders.values())
    exact = {n: cosine(dense(origin), dense(f)) for n, f in folders.items()}
    found = workspace.similar("origin")
    assert [n.name for n in found] == sorted(exact, key=lambda n: -exact[n])
    for near in found:
        assert near.delta == pytest.approx(exact[near.name], abs=4 / DELTA**0.5)
        assert near.base == "tests/base"
    assert [n.name for n in workspace.similar("origin", limit=2)] == ["moved0", "moved1"]
    by_rows = workspace.similar("origin", by="subspace")
    assert by_rows[-1].name == "other"
    assert by_rows[0].subspace > 0.9 > by_rows[-1].subspace
    with pytest.raises(UsageError, match="by 'name'"):
        workspace.similar("origin", by="name")


def test_adapters_of_other_bases_are_not_asked(workspace: Workspace, tmp_path: Path) -> None:
    bases = {"one": "gpt2", "twin": "openai-community/gpt2", "other": "Qwen/Qwen2.5-0.5B",
             "unknown": None}  # fmt: skip
    for i, (name, base) in enumerate(bases.items()):
        pull(workspace, write_adapter(tmp_path / name, SHAPES, seed=i, base=base))
    events: list[Event] = []
    found = workspace.similar("one", listener=events.append)
    assert {n.name: n.base for n in found} == {"twin": "openai-community/gpt2", "unknown": None}
    assert events[0] == PhaseStarted("sketch", 3, "adapters")
    assert len(workspace.similar("unknown")) == 3


def test_a_merge_lies_near_its_sources(workspace: Workspace) -> None:
    from lorahub.recipe import make_recipe

    pull(workspace, *(EXAMPLES / n for n in ("languages", "packages", "manuals")))
    sources = [{"adapter": "languages"}, {"adapter": "packages"}]
    body = {"method": "cat", "sources": sources, "output": {"name": "both"}}
    workspace.merge(make_recipe(body))
    assert [n.name for n in workspace.similar("both")][-1] == "manuals"


REAL = ("day21-track3-finetuning-llms__r8", "domain-skeleton-gpt2__", "smart-review-ai__lora-")


def test_real_adapters_against_their_exact_cosines(
    workspace: Workspace, shared_adapters: Path
) -> None:
    folders = [f for f in sorted(shared_adapters.iterdir()) if f.name.startswith(REAL)]
    pull(workspace, *folders)
    families = [{m.name for m in f.members} for f in workspace.cluster()]
    assert families[0] == {REAL[0], f"{REAL[0]}-checkpoint-23", f"{REAL[0]}-checkpoint-46"}
    assert {f"{REAL[2]}adapter", f"{REAL[2]}adapter-checkpoint-2500"} in families
    assert workspace.duplicates() == ()
    for family in families:
        (first, *others) = sorted(family)
        found = {n.name: n.delta for n in workspace.similar(first)}
        for pair in workspace.compare([first, *others]).pairs:
            if pair.one == first:
                assert found[pair.other] == pytest.approx(pair.cosine, abs=3 / DELTA**0.5)


def test_sketches_are_made_once(workspace: Workspace, tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / f"a{i}", SHAPES, seed=i) for i in range(3)]
    pull(workspace, *folders)
    events: list[Event] = []
    first = workspace.similar("a0", listener=events.append)
    assert events[0] == PhaseStarted("sketch", 3, "adapters")
    assert [e.done for e in events if isinstance(e, Advanced)] == [1, 2, 3]
    for folder in folders:
        shutil.rmtree(folder)
    events.clear()
    assert workspace.similar("a0", listener=events.append) == first
    assert events == []
    workspace.remove(["a1"])
    assert [n.name for n in workspace.similar("a0")] == ["a2"]


def test_what_cannot_be_sketched_is_named_and_left_out(
    workspace: Workspace, tmp_path: Path
) -> None:
    names = ("good", "better", "gone", "changed", "nan")
    for i, name in enumerate(names):
        write_adapter(tmp_path / name, SHAPES, seed=i)
    weights = tmp_path / "nan" / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, weights)
    pull(workspace, *(tmp_path / n for n in names))
    shutil.rmtree(tmp_path / "gone")
    write_adapter(tmp_path / "changed", SHAPES, seed=99)
    events: list[Event] = []
    assert [n.name for n in workspace.similar("good", listener=events.append)] == ["better"]
    warned = [e.message for e in events if isinstance(e, Warned)]
    assert len(warned) == 3
    assert "gone" in warned[0] and "changed" in warned[1] and "NaN" in warned[2]
    for name, error in (
        ("gone", IntegrityError),
        ("changed", IntegrityError),
        ("nan", InvalidAdapterError),
    ):
        with pytest.raises(error):
            workspace.similar(name)


def test_an_adapter_without_factors_is_like_none(
    workspace: Workspace, shared_adapters: Path
) -> None:
    pull(workspace, shared_adapters / "lycoris__result-smart-falcon-4-lokr")
    with pytest.raises(UnsupportedAdapterError, match="no factors"):
        workspace.similar("lycoris__result-smart-falcon-4-lokr")
    assert workspace.cluster() == ()


def test_an_interruption_keeps_what_is_done(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(workspace, *(write_adapter(tmp_path / f"a{i}", SHAPES, seed=i) for i in range(3)))
    monkeypatch.setattr("lorahub.sketching.MOST_WORKERS", 1)

    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.similar("a0", listener=stop)
    assert workspace.catalog.unsketched(sketching.VERSION) == ["a2"]
    assert len(workspace.similar("a0")) == 2


def test_a_new_version_makes_all_sketches_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(workspace, *(write_adapter(tmp_path / f"a{i}", SHAPES, seed=i) for i in range(2)))
    workspace.similar("a0")
    monkeypatch.setattr(sketching, "VERSION", 2)
    assert workspace.catalog.sketches("delta", 2) == []
    assert len(workspace.similar("a0")) == 1
    assert workspace.catalog.sketches("delta", 1) == []


def test_untrained_adapters_are_like_none(workspace: Workspace, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", SHAPES)
    zero = shutil.copytree(one, tmp_path / "zero")
    tensors = load_file(zero / "adapter_model.safetensors")
    for key in tensors:
        tensors[key] *= 0 if "lora_B" in key else 1
    save_file(tensors, zero / "adapter_model.safetensors")
    pull(workspace, one, zero)
    (near,) = workspace.similar("one")
    assert (near.delta, near.spectrum) == (0, 0)
    assert workspace.cluster() == ()


# --- duplicates ---


def cast(folder: Path, to: Path, dtype: torch.dtype) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / "adapter_model.safetensors")
    save_file({k: v.to(dtype) for k, v in tensors.items()}, to / "adapter_model.safetensors")
    return to


def test_duplicates_are_found(workspace: Workspace, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", SHAPES)
    other_keys = shutil.copytree(one, tmp_path / "keys")
    tensors = load_file(one / "adapter_model.safetensors")
    plain = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}
    save_file(plain, other_keys / "adapter_model.safetensors")
    half, brain = cast(one, tmp_path / "half", torch.float16), tmp_path / "brain"
    cast(one, brain, torch.bfloat16)
    again = shutil.copytree(half, tmp_path / "half again")
    (again / "README.md").write_text("uploaded once more\n")
    pull(workspace, one, other_keys, half, brain, again)
    found = {(d.name, d.of, d.how) for d in workspace.duplicates()}
    assert found == {
        ("keys", "one", "same"),
        ("half", "one", "cast"),
        ("brain", "one", "cast"),
        ("half again", "half", "same"),
    }


def test_near_twins_are_no_duplicates(workspace: Workspace, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", SHAPES)
    weights = "adapter_model.safetensors"
    brain = cast(one, tmp_path / "brain", torch.bfloat16)
    near = shutil.copytree(one, tmp_path / "near")  # another one that rounds to the same
    tensors = load_file(near / weights)
    key = next(
        k for k, v in tensors.items() if v[0, 0].bfloat16() == (v * 1.00001)[0, 0].bfloat16()
    )
    tensors[key][0, 0] *= 1.00001
    save_file(tensors, near / weights)
    flipped = shutil.copytree(brain, tmp_path / "flipped")
    tensors = load_file(flipped / weights)
    tensors[key].view(torch.int16)[0, 0] ^= 1
    save_file(tensors, flipped / weights)
    louder = shutil.copytree(one, tmp_path / "louder")
    config = json.loads((louder / "adapter_config.json").read_text())
    (louder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 32}))
    pull(workspace, one, near, brain, flipped, louder)
    assert {(d.name, d.of) for d in workspace.duplicates()} == {("brain", "one")}


def test_factors_that_nobody_hashed_are_like_no_others() -> None:
    def info(hashed: str, weights: str) -> AdapterInfo:
        modules = tuple(
            replace(module(n, *random(0))[0], hash_a=hashed, hash_b=hashed) for n in "mn"
        )
        return AdapterInfo(
            "peft", "LORA", None, None, modules, (), (), {}, "w.safetensors", 1, weights
        )

    assert factors_hash(info("ab", "1")) == factors_hash(info("ab", "2"))
    assert factors_hash(info("", "1")) != factors_hash(info("", "2"))


def test_a_cast_is_not_believed_once_a_file_changed(workspace: Workspace, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", SHAPES)
    brain = cast(one, tmp_path / "brain", torch.bfloat16)
    pull(workspace, one, brain)
    workspace.similar("one")
    write_adapter(brain, SHAPES, seed=5, dtype="bfloat16")
    events: list[Event] = []
    assert workspace.duplicates(listener=events.append) == ()
    assert [type(e) for e in events] == [Warned]


# --- families and places ---


def rows(vectors: np.ndarray) -> list[Sketched]:
    scaled = np.round(vectors / np.abs(vectors).max(axis=1, keepdims=True) * 127).astype(np.int8)
    return [Sketched(i, f"a{i:03}", None, v.tobytes()) for i, v in enumerate(scaled)]


@given(st.integers(0, 10_000), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_families_are_connected_components(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, 6)) if count else np.zeros((0, 6))
    given_rows = rows(points) if count else []
    found = similarity.families(given_rows, 0.7)
    unit = similarity.vectors(given_rows).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    near = unit @ unit.T
    if (np.abs(near - 0.7) < 1e-5).any():
        return
    labels = connected_components(near >= 0.7)[1] if count else np.zeros(0)
    names = np.array([r.name for r in given_rows])
    groups = {frozenset(names[labels == n]) for n in set(labels) if (labels == n).sum() > 1}
    assert {frozenset(m.name for m in f.members) for f in found} == groups
    for family in found:
        assert family.members[0].name == family.center
        assert family.members[0].cosine == pytest.approx(1)
    shuffled = [given_rows[i] for i in rng.permutation(count)]
    again = {frozenset(m.name for m in f.members) for f in similarity.families(shuffled, 0.7)}
    assert again == groups


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 40])
def test_places_for_any_count(count: int) -> None:
    points = np.random.default_rng(0).standard_normal((count, 64))
    given_rows = rows(points) if count else []
    found = similarity.places(given_rows)
    assert [p.name for p in found] == [r.name for r in given_rows]
    assert np.isfinite([[p.x, p.y] for p in found]).all()
    assert similarity.places(given_rows) == found
    same = rows(np.ones((count, 8))) if count else []
    assert {(p.x, p.y) for p in similarity.places(same)} <= {(0.0, 0.0)}


def test_like_ones_lie_together_on_the_map() -> None:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((4, 64))
    points = np.repeat(centers, 8, axis=0) + 0.3 * rng.standard_normal((32, 64))
    found = similarity.places(rows(points))
    plane = np.array([[p.x, p.y] for p in found])
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(1) // 8 == np.arange(32) // 8).all()


def test_cluster_and_map_by_base(workspace: Workspace, tmp_path: Path) -> None:
    from store import AdapterFilter

    for seed, base in enumerate(("one", "two")):
        origin = write_adapter(tmp_path / base, SHAPES, seed=seed, base=f"lab/{base}")
        pull(workspace, origin, moved(origin, tmp_path / f"{base}b", 0.2, 1))
    members = [{m.name for m in f.members} for f in workspace.cluster()]
    assert members in [[{"one", "oneb"}, {"two", "twob"}], [{"two", "twob"}, {"one", "oneb"}]]
    (family,) = workspace.cluster(AdapterFilter(base="two"))
    assert {m.name for m in family.members} == {"two", "twob"}
    with pytest.raises(UsageError, match="between 0 and 1"):
        workspace.cluster(cosine=1.5)
    plot = tmp_path / "map.svg"
    assert len(workspace.map(plot=plot)) == 4
    root = ET.parse(plot).getroot()
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[0] == "4 adapters by delta"
    assert sorted(titles[1:]) == ["one", "oneb", "two", "twob"]
    with pytest.raises(UsageError, match="SVG"):
        workspace.map(plot=tmp_path / "map.png")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        workspace.map(plot=tmp_path / "file" / "map.svg")


def test_a_picture_escapes_names_and_keeps_its_points_inside() -> None:
    points = [("<a>", "g&h", -1.0, 5.0), ("b", "g&h", 3.0, 5.5), ("c", "i", 0.0, 5.2)]
    root = ET.fromstring(scatter(points, "x < y"))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    drawn = circles[:3]
    assert [c[0].text for c in drawn] == ["<a>", "b", "c"]
    assert drawn[0].get("fill") == drawn[1].get("fill") != drawn[2].get("fill")
    xs, ys = ([float(c.get(k) or "") for c in drawn] for k in ("cx", "cy"))
    assert sorted(range(3), key=xs.__getitem__) == [0, 2, 1]
    assert sorted(range(3), key=ys.__getitem__) == [1, 2, 0]
    assert all(0 < v < 720 for v in (*xs, *ys))
    ET.fromstring(scatter([], "nothing"))
