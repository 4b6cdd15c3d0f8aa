"""One adapter made smaller: `resize` and `prune` against float64 SVDs of its dense deltas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.errors import InvalidRecipeError, LorahubError, UsageError
from lorahub.kernels.allocation import allocate
from lorahub.merging import Merged
from lorahub.workspace import Workspace
from tests.commands import entries
from tests.conftest import write_adapter
from tests.test_extract import best, deltas, relative

# Modules of very different norms, so that pruning reaches whole ones.
SHAPES = {f"layers.{i}.{p}": (24 + 8 * i, 20, 6) for i in range(3) for p in ("q", "v")}


@pytest.fixture
def adapter(home: Path, tmp_path: Path) -> Path:
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tmp_path / "a", SHAPES, alpha=12)
    path = folder / "adapter_model.safetensors"
    scales = {name: 3.0**-i for i, name in enumerate(SHAPES)}
    tensors = {
        key: tensor * next(s for n, s in scales.items() if f".{n}." in key)
        for key, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    with Workspace.open() as workspace:
        workspace.pull([str(folder)])
    return folder


def make(verb: str, **options: Any) -> Merged:
    with Workspace.open() as workspace:
        merged: Merged = getattr(workspace, verb)("a", **({"name": "b"} | options))
        assert workspace.verify(merged.adapter.name).passed
        (parent,) = workspace.parents(merged.adapter)
        assert (parent.reference, parent.weight) == ("a", 1.0)
        return merged


def ranks(merged: Merged) -> dict[str, int]:
    return {m.name: m.rank for m in merged.adapter.info.modules}


def written(merged: Merged) -> dict[str, Tensor]:
    return deltas(merged.adapter.origin.folder)


def error(found: dict[str, Tensor], whole: dict[str, Tensor]) -> float:
    return sum(float((found.get(n, 0 * D) - D).square().sum()) for n, D in whole.items()) ** 0.5


def test_resize_is_the_best_approximation_of_every_module(adapter: Path) -> None:
    whole, merged = deltas(adapter), make("resize", rank=2)
    found = written(merged)
    assert set(ranks(merged).values()) == {2}
    for name, D in whole.items():
        assert relative(found[name], best(D, 2)) < 1e-5
    assert merged.record.method == "svd"
    assert merged.record.verification.truncation == pytest.approx(
        error(found, whole) / error({}, whole), rel=1e-5
    )


def test_resize_by_energy_takes_the_smallest_ranks(adapter: Path) -> None:
    merged = make("resize", energy=0.8, dtype="BF16")
    for name, D in deltas(adapter).items():
        share = torch.linalg.svdvals(D).square()
        share = share.cumsum(0) / share.sum()
        assert ranks(merged)[name] == int((share < 0.8).sum()) + 1
    assert merged.adapter.info.dtype == "BF16"


def test_resize_to_a_budget_keeps_every_module(adapter: Path) -> None:
    merged = make("resize", budget="70%")
    full = sum(r * (d_out + d_in) for d_out, d_in, r in SHAPES.values())
    assert ranks(merged).keys() == SHAPES.keys()
    assert 0.25 * full < merged.adapter.info.parameters <= 0.3 * full


@pytest.mark.parametrize("budget", ["5%", "60%", "80%"])
def test_prune_drops_what_holds_least_energy_per_parameter(adapter: Path, budget: str) -> None:
    from peft import PeftModel

    whole, merged = deltas(adapter), make("prune", budget=budget)
    full = sum(r * (d_out + d_in) for d_out, d_in, r in SHAPES.values())
    # The definition, literally: single ranks of all modules, most energy per parameter first.
    units = sorted(
        (
            (-(float(s) ** 2) / sum(D.shape), name, sum(D.shape))
            for name, D in whole.items()
            for s in torch.linalg.svdvals(D)[:6]
        ),
    )
    left, expected = full * (100 - int(budget[:-1])) / 100, dict.fromkeys(SHAPES, 0)
    for _, name, width in units:
        left -= width
        if left < 0:
            break
        expected[name] += 1
    assert ranks(merged) == {n: r for n, r in expected.items() if r}
    found = written(merged)
    for name in found:
        assert relative(found[name], best(whole[name], expected[name])) < 1e-5
    dropped = [n for n, r in expected.items() if not r]
    assert bool(dropped) is (budget != "5%")
    notes = [n for n in merged.record.notes if "no rank left" in n]
    assert notes == ([f"{len(dropped)} of 6 modules: has no rank left and is not in the result"]
                     if dropped else [])  # fmt: skip
    assert merged.record.modules == len(found)
    kept = sum(float(found[n].square().sum()) for n in found)
    total = sum(float(D.square().sum()) for D in whole.values())
    assert merged.record.verification.retained == (pytest.approx(kept / total, rel=1e-4),)
    if dropped:
        other = make("resize", budget=budget, name="c")
        assert error(found, whole) < error(written(other), whole)
    layers = {n: torch.nn.Linear(d_in, d_out) for n, (d_out, d_in, _) in SHAPES.items()}
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(
        torch.nn.ModuleDict({p: layers[f"layers.{i}.{p}"] for p in ("q", "v")}) for i in range(3)
    )
    loaded = PeftModel.from_pretrained(model, merged.adapter.origin.folder)
    for name, D in found.items():
        assert torch.allclose(
            loaded.get_submodule(f"base_model.model.{name}").get_delta_weight("default").double(),
            D, atol=1e-6,
        )  # fmt: skip


def test_the_rule_is_energy_without_a_floor() -> None:
    random = np.random.default_rng(0)
    spectra = [np.sort(random.exponential(size=5) * 4.0**-i)[::-1] for i in range(6)]
    for budget in range(1, 60):
        ranks = allocate(spectra, [3, 5, 4, 3, 2, 6], budget, "prune")
        assert ranks == allocate(spectra, [3, 5, 4, 3, 2, 6], budget, "energy", floor=0)


@pytest.mark.parametrize(
    ("verb", "options", "kind", "message"),
    [
        ("resize", {}, UsageError, "needs a size"),
        ("resize", {"rank": 7}, InvalidRecipeError, "above the largest possible rank, 6"),
        ("resize", {"rank": 0}, InvalidRecipeError, "rank"),
        ("resize", {"energy": 1.5}, InvalidRecipeError, "energy"),
        ("resize", {"budget": "40 parsecs"}, InvalidRecipeError, "cannot be read"),
        ("prune", {"budget": 1}, InvalidRecipeError, "leaves no rank in any module"),
        ("prune", {"budget": "100%"}, InvalidRecipeError, "leaves no parameter"),
        ("prune", {"budget": "50%", "name": None}, UsageError, "no place"),
    ],
)
def test_bad_sizes_are_refused_and_leave_nothing(
    adapter: Path, home: Path, verb: str, options: Any, kind: type[LorahubError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make(verb, **options)
    assert entries(home / "adapters") == set()


def test_the_commands(adapter: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done

    body = json.loads(run("resize", "a", "--rank", "3", "--name", "r", "--json").stdout)
    assert (body["command"], body["result"]["record"]["rank"]) == ("resize", 3)
    done = run("prune", "a", "--budget", "85%", "-o", str(tmp_path / "p"))
    assert "no rank left" in done.stdout
    assert "adapter_model.safetensors" in entries(tmp_path / "p")
    # The pinned recipe beside it makes the same again.
    again = run("merge", str(tmp_path / "p" / "recipe.yaml"), "--name", "q", "--json")
    record = json.loads(again.stdout)["result"]["record"]
    assert record["allocate"] == "prune"
    assert record["weights_sha256"] == json.loads((tmp_path / "p" / "lorahub.json").read_text())[
        "weights_sha256"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rank", "size"),
    [
        (("resize", "--rank", "3"), 3, 3 * 4 * sum(o + i for o, i, _ in SHAPES.values())),
        (
            ("resize", "--rank", "3", "--dtype", "BF16"),
            3,
            6 * sum(o + i for o, i, _ in SHAPES.values()),
        ),
        (("prune", "--budget", "400 bytes"), 6, 400),
    ],
)
def test_a_dry_run_says_what_would_be_written(
    adapter: Path, home: Path, words: tuple[str, ...], rank: int, size: int
) -> None:
    done = CliRunner().invoke(app, [words[0], "a", *words[1:], "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    assert body["command"] == f"{words[0]} --dry-run"
    plan = body["result"]
    assert (plan["modules"], plan["rank"], plan["output_bytes"]) == (len(SHAPES), rank, size)
    assert entries(home / "adapters") == set()
