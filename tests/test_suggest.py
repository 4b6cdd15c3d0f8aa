"""Suggestions: what follows from which figures, and merges of method ``auto``."""

from __future__ import annotations

import json
import math
import shlex
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lorahub.adapter import Adapter
from lorahub.cli.main import app
from lorahub.engine.compare import compare
from lorahub.engine.suggest import ALIKE, Suggestion, suggest
from lorahub.errors import IncompatibleError, InvalidRecipeError, UsageError
from lorahub.methods.registry import get
from lorahub.recipe import make_recipe
from lorahub.record import Record
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES, write_adapter
from tests.test_engine import load

MODULES = {f"model.layers.{i}.{t}": (96, 80, 4) for i in range(2) for t in ("q", "up")}


def invoke(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def unlike(tmp_path: Path, count: int, **options: Any) -> list[Adapter]:
    return [
        load(write_adapter(tmp_path / f"u{i}", MODULES, seed=i, **options)) for i in range(count)
    ]


def like(folder: Path, other: Path, share: float) -> Adapter:
    """An adapter with the B of ``folder``, and of its A the given share; the rest is noise."""
    tensors = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(99)
    for key, value in tensors.items():
        if "lora_A" in key:
            noise = (
                torch.randn(value.shape, generator=generator) * value.norm() / value.numel() ** 0.5
            )
            tensors[key] = share * value + (1 - share**2) ** 0.5 * noise
    write_adapter(other, MODULES)
    save_file(tensors, other / "adapter_model.safetensors")
    return load(other)


def brief(found: Suggestion) -> tuple[str, dict[str, int], tuple[float, ...]]:
    return found.choice.method, dict(found.choice.parameters), found.weights


def test_unlike_adapters(tmp_path: Path) -> None:
    five = unlike(tmp_path, 5)
    assert brief(suggest(five[:2])) == ("tsv_iso", {}, (1, 1))
    assert brief(suggest(five[:2], rank=7)) == ("tsv", {"rank": 7}, (1, 1))
    assert brief(suggest(five[:2], rank=2)) == ("task_arithmetic", {"rank": 2}, (1, 1))
    assert brief(suggest(five)) == ("iso_c", {}, (1,) * 5)
    assert brief(suggest(five, rank=20)) == ("iso_c", {}, (1,) * 5)
    assert brief(suggest(five, rank=19)) == ("flat", {"rank": 19}, (1,) * 5)
    assert brief(suggest(five, rank=6)) == ("flat", {"rank": 6}, (1,) * 5)
    assert brief(suggest(five, rank=5)) == ("task_arithmetic", {"rank": 5}, (1,) * 5)
    found = suggest(five, rank=6)
    assert found.choice.scale == get("flat").default_scale(5)
    assert found.choice.normalize is None
    methods = [found.choice.method, *(o.method for o in found.others)]
    assert len(set(methods)) == 3
    assert all(o.parameters == {"rank": 6} for o in found.others)
    assert found.findings[0].startswith("5 adapters that are unlike each other")
    kept = compare(five).total.kept(6)
    assert found.findings[-1] == f"rank 6 of 20 keeps {kept:.0%} of the energy of the sum"


def test_the_order_of_adapters_changes_nothing(tmp_path: Path) -> None:
    three = [*unlike(tmp_path, 2), like(tmp_path / "u0", tmp_path / "again", 0.8)]
    first = dict(zip((a.name for a in three), suggest(three, rank=6).weights))
    for order in permutations(three):
        found = suggest(order, rank=6)
        assert brief(found)[:2] == ("flat", {"rank": 6})
        assert dict(zip((a.name for a in order), found.weights)) == first


def test_adapters_of_one_kind_are_averaged_where_that_keeps_nearly_everything(
    tmp_path: Path,
) -> None:
    (one,) = unlike(tmp_path, 1)
    pair = [one, like(tmp_path / "u0", tmp_path / "again", 0.9)]
    found = suggest(pair)
    method, parameters, weights = brief(found)
    assert (method, weights) == ("svd", (0.5, 0.5))
    energy = compare(pair).total.energy
    rank = parameters["rank"]
    assert energy[rank - 1] >= 0.99 > energy[rank - 2]
    assert brief(suggest(pair, rank=3)) == ("svd", {"rank": 3}, (0.5, 0.5))


def test_every_kind_counts_once(tmp_path: Path) -> None:
    one, other = unlike(tmp_path, 2)
    again = like(tmp_path / "u0", tmp_path / "again", 0.8)
    found = suggest([one, other, again])
    assert brief(found) == ("iso_c", {}, (0.5, 1, 0.5))
    assert found.choice.scale == get("iso_c").default_scale(2)
    assert "'u0' and 'again' are alike" in found.findings[0]


@pytest.mark.parametrize(("share", "alike"), [(0.44, False), (0.56, True)])
def test_where_likeness_begins(tmp_path: Path, share: float, alike: bool) -> None:
    (one,) = unlike(tmp_path, 1)
    other = like(tmp_path / "u0", tmp_path / "again", share)
    (pair,) = compare([one, other]).pairs
    assert (pair.cosine >= ALIKE) is alike
    assert (suggest([one, other]).choice.method == "svd") is alike


def test_a_loud_adapter_gets_the_norm_of_the_others(tmp_path: Path) -> None:
    quiet = unlike(tmp_path, 1)
    loud = load(write_adapter(tmp_path / "loud", MODULES, seed=7, alpha=320))
    found = suggest([*quiet, loud])
    assert (found.choice.method, found.choice.normalize) == ("tsv_iso", True)
    assert "'loud' has 2" in found.findings[1]
    assert "one norm first" in found.findings[1]
    assert [(o.method, o.normalize) for o in found.others] == [("tsv", True), ("iso_c", None)]


def test_the_mean_of_two_merges_evens_small_differences_itself(tmp_path: Path) -> None:
    quiet = unlike(tmp_path, 1)
    louder = load(write_adapter(tmp_path / "louder", MODULES, seed=7, alpha=48))
    found = suggest([*quiet, louder])
    assert (found.choice.method, found.choice.normalize) == ("tsv_iso", None)
    assert (found.others[0].method, found.others[0].normalize) == ("tsv", True)
    assert "one norm first" not in found.findings[1]
    found = suggest([*quiet, louder], rank=7)
    assert (found.choice.method, found.choice.normalize) == ("tsv", True)
    assert "one norm first" in found.findings[1]


def test_adapters_with_common_factors(tmp_path: Path) -> None:
    one, other = unlike(tmp_path, 2)
    shared = load_file(one.origin.folder / "adapter_model.safetensors")
    own = load_file(other.origin.folder / "adapter_model.safetensors")
    both = {k: (shared if "lora_A" in k else own)[k] for k in own}
    save_file(both, other.origin.folder / "adapter_model.safetensors")
    found = suggest([one, load(other.origin.folder)])
    assert found.choice.method == "task_arithmetic"
    assert "same directions" in found.choice.reason


def test_budgets(tmp_path: Path) -> None:
    five = unlike(tmp_path, 5)
    whole = 20 * sum(d_out + d_in for d_out, d_in, _ in MODULES.values())
    found = suggest(five, budget="rank 8")
    assert brief(found)[:2] == ("flat", {})
    assert found.choice.budget == "rank 8"
    assert found.findings[-1].startswith("rank 8 of 20 keeps")
    assert suggest(five, budget=f"{4 * whole - 4} bytes").choice.method == "flat"
    for budget in (f"{4 * whole} bytes", "rank 20", whole):
        assert (suggest(five, budget=budget).choice.method, found.choice.parameters) == (
            "iso_c",
            {},
        )
    assert suggest(five, budget=f"{2 * whole} bytes", dtype="BF16").choice.budget is None


def test_sets_without_a_suggestion(tmp_path: Path) -> None:
    one, other = unlike(tmp_path, 2)
    with pytest.raises(UsageError, match="at least two"):
        suggest([one])
    with pytest.raises(UsageError, match="at least two"):
        suggest([])
    silent = load(write_adapter(tmp_path / "silent", MODULES, alpha=0))
    with pytest.raises(IncompatibleError, match="'silent' is zero in every module"):
        suggest([one, other, silent])
    odd = load(write_adapter(tmp_path / "odd", {"model.layers.9.k": (4, 4, 2)}))
    with pytest.raises(IncompatibleError, match="shares no target module"):
        suggest([one, odd])
    elsewhere = load(write_adapter(tmp_path / "elsewhere", MODULES, base="other/base"))
    with pytest.raises(IncompatibleError, match="different base models"):
        suggest([one, elsewhere])
    with pytest.raises(InvalidRecipeError, match="rank 0 is no rank"):
        suggest([one, other], rank=0)
    with pytest.raises(InvalidRecipeError, match="both given"):
        suggest([one, other], rank=3, budget="30%")
    with pytest.raises(InvalidRecipeError, match="cannot be read"):
        suggest([one, other], budget="much")


def recipe(name: str, **body: Any) -> Any:
    sources = [{"adapter": str(EXAMPLES / n)} for n in ("languages", "packages", "manuals")]
    return make_recipe({"method": "auto", "sources": sources, "output": {"name": name}} | body)


def test_auto_is_the_merge_that_was_suggested(home: Path) -> None:
    names = [str(EXAMPLES / n) for n in ("languages", "packages", "manuals")]
    with Workspace.open() as workspace:
        found = workspace.suggest(names, rank=8)
        auto = workspace.merge(recipe("auto", parameters={"rank": 8}))
        options = {"method": found.choice.method, "parameters": dict(found.choice.parameters)}
        named = workspace.merge(recipe("named", scale=found.choice.scale, **options))
        assert auto.record.weights_sha256 == named.record.weights_sha256
        assert auto.record.method == auto.adapter.method == "flat"
        assert auto.record.notes[0].startswith("method auto chose flat: the result has fewer ranks")
        assert [n.split(": ", 1)[1] for n in auto.record.notes[1:]] == list(found.findings)
        assert Record.read(auto.adapter.origin.folder) == auto.record
        assert workspace.merge(recipe("auto", parameters={"rank": 8})).state == "unchanged"
        assert workspace.verify("auto").passed
        assert "method: flat" in (auto.adapter.origin.folder / "recipe.yaml").read_text()


def test_what_a_recipe_says_itself_stands(tmp_path: Path, home: Path) -> None:
    folders = [write_adapter(tmp_path / f"u{i}", MODULES, seed=i) for i in range(2)]
    again = like(folders[0], tmp_path / "again", 0.8).origin.folder
    sources = [{"adapter": str(f), "weight": w} for f, w in zip((*folders, again), (0.4, 1, 0.2))]
    sources[0]["weights"] = {"up": 3}
    body = {"sources": sources, "weights": {r"layers\.0": 2}, "scale": 0.9, "normalize": True}
    with Workspace.open() as workspace:
        plan = workspace.plan(recipe("x", **body))
    assert plan.method.name == "iso_c"
    assert plan.weights == (0.2, 1, 0.1)
    assert (plan.scale, plan.normalize) == (0.9, True)
    assert {m.name.removeprefix("model.layers."): m.weights for m in plan.modules} == {
        "0.q": (1, 2, 1),
        "0.up": (1.5, 2, 1),
        "1.q": (0.2, 1, 0.1),
        "1.up": (1.5, 1, 0.1),
    }


def test_auto_recipes_that_make_no_sense(home: Path) -> None:
    with Workspace.open() as workspace:
        for body, message in (
            ({"parameters": {"density": 0.5}}, "no parameter 'density'"),
            ({"parameters": {"rank": "auto"}}, "'auto' is no whole number"),
            ({"parameters": {"rank": 8}, "budget": "30%"}, "both given"),
            ({"sources": [{"adapter": str(EXAMPLES / "languages"), "weight": -1}]}, "weight -1"),
        ):
            with pytest.raises(InvalidRecipeError, match=message):
                workspace.plan(recipe("x", **body))
        with pytest.raises(UsageError, match="at least two"):
            workspace.plan(recipe("x", sources=[{"adapter": str(EXAMPLES / "languages")}]))


def test_command_line(home: Path) -> None:
    words = [*(str(EXAMPLES / n) for n in ("languages", "packages", "manuals")), "--rank", "8"]
    body = json.loads(invoke("suggest", *words, "--json"))
    assert set(body) == {"findings", "weights", "choice", "others"}
    assert math.isclose(body["choice"]["scale"], get("flat").default_scale(3))
    command = shlex.split(body["choice"]["command"])
    assert command[:2] == ["lorahub", "merge"]
    assert "\tmerged\n" in invoke(*command[1:])
    rows = [line.split("\t") for line in invoke("suggest", *words).splitlines()]
    assert rows[0] == ["FINDING"]
    assert [r[:2] for r in rows[5:8]] == [["1", "flat"], ["2", "lego"], ["3", "task_arithmetic"]]
    assert shlex.split(rows[-1][0]) == command
    merged = invoke("merge", *words, "--method", "auto", "--name", "auto")
    assert "note\tmethod auto chose flat: " in merged
    plan = json.loads(invoke("merge", *words, "--method", "auto", "--dry-run", "--json"))["result"]
    assert (plan["method"], plan["notes"][0].split(":")[0]) == ("flat", "method auto chose flat")
