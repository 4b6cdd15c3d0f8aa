"""Searching weights: against a known optimum, again from what was tried, and past failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.adapter import Adapter
from lorahub.cli.main import app
from lorahub.errors import EvaluationError, InvalidRecipeError, LorahubError, UsageError
from lorahub.formats.safetensors import TensorFile
from lorahub.searching import Axis, Optimiser, Search, Trial, Tried, best_of, load_search
from lorahub.suites import RunningSuite
from lorahub.workspace import Workspace
from tests.conftest import write_adapter

SHAPES = {"layers.0.q_proj": (24, 32, 3)}
RECIPE = """\
method: svd
sources: [{adapter: one, weight: 1.0}, {adapter: two, weight: 0.5}]
output: {name: best}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "best.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        for seed, name in enumerate(("one", "two")):
            write_adapter(tmp_path / name, SHAPES, seed=seed)
            opened.pull([str(tmp_path / name)])
        yield opened


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, list[list[float]]]:
    """A suite that knows the best weights, 0.8 and 0.2, and the weights it was asked about."""
    asked: list[list[float]] = []

    def run(self: RunningSuite, adapter: Adapter) -> dict[str, float]:
        record = json.loads((adapter.origin.folder / "lorahub.json").read_text())
        weights = [p["weight"] for p in record["parents"]]
        asked.append(weights)
        if weights[0] > 1.9:
            raise EvaluationError("too loud")
        return {"loss": (weights[0] - 0.8) ** 2 + (weights[1] - 0.2) ** 2, "other": 1.0}

    monkeypatch.setattr(RunningSuite, "run", run)
    path = tmp_path / "suite.yaml"
    path.write_text("command: [never-run]\n")
    return str(path), asked


def search(
    workspace: Workspace, path: Path, suite: str, budget: int, **options: Any
) -> list[Trial]:
    options = {"objective": "loss", "minimize": True} | options
    return list(workspace.search_weights(path, suite, budget=budget, **options))


def test_the_best_is_found_and_kept(
    workspace: Workspace, recipe: Path, scored: tuple[str, list[list[float]]]
) -> None:
    suite, asked = scored
    trials = search(workspace, recipe, suite, 30)
    assert asked[0] == [1.0, 0.5]  # the recipe itself comes first
    best = best_of(trials, minimize=True)
    assert best is not None
    assert best.value is not None
    assert best.value < 0.02  # of 0.13 at the start
    failed = sum(t.value is None for t in trials)
    curve = [t.best for t in trials if t.best is not None]
    assert len(curve) == 30
    assert curve == sorted(curve, reverse=True)
    kept = workspace.get("best")
    assert [p.weight for p in workspace.parents(kept)] == list(best.chosen.values())
    assert workspace.evaluations(kept)[0].figures == best.figures
    assert workspace.verify("best").passed
    # Every trial was a run, and none left its result.
    assert workspace.catalog.count_runs() == 30 + 1
    assert [row.name for row in workspace.adapters()] == ["best", "one", "two"]
    assert {p.name for p in workspace.config.adapters.iterdir()} == {"best"}
    # The same search again tries anew only what failed, a longer one goes on.
    again = search(workspace, recipe, suite, 30)
    assert [t.chosen for t in again] == [t.chosen for t in trials]
    assert len(asked) == 30 + failed
    longer = search(workspace, recipe, suite, 33)
    assert longer[:30] == trials
    assert len(asked) == 33 + 2 * failed
    assert [t.chosen for t in search(workspace, recipe, suite, 5, seed=1)] != [
        t.chosen for t in trials[:5]
    ]


def test_a_search_that_was_stopped_goes_on(
    workspace: Workspace, recipe: Path, scored: tuple[str, list[list[float]]]
) -> None:
    suite, asked = scored
    first = workspace.search_weights(recipe, suite, objective="loss", minimize=True)
    for _ in range(4):
        next(first)
    first.close()
    assert [row.name for row in workspace.adapters()] == ["one", "two"]
    kept = recipe.with_name("best.trials.jsonl")
    kept.write_text(kept.read_text()[:-20])  # as a killed process leaves it
    trials = search(workspace, recipe, suite, 5)
    assert asked[:4] == [list(t.chosen.values()) for t in trials[:4]]
    assert asked[4:] == [list(t.chosen.values()) for t in trials[3:]]
    assert len(kept.read_text().splitlines()) == 3 + 1 + 2


def test_what_fails_is_passed_over(
    workspace: Workspace, recipe: Path, scored: tuple[str, list[list[float]]]
) -> None:
    suite, _ = scored
    recipe.write_text(RECIPE + "search: {sources.0.weight: [1.5, 2.5], parameters.rank: [6, 9]}\n")
    trials = search(workspace, recipe, suite, 12)
    failed = [t for t in trials if t.value is None]
    assert 0 < len(failed) < 12
    assert all(t.why and ("rank" in t.why or "too loud" in t.why) for t in failed)
    assert all(isinstance(t.chosen["parameters.rank"], int) for t in trials)
    recipe.write_text(RECIPE + "search: {parameters.rank: [7, 9]}\n")
    with pytest.raises(LorahubError, match="rank"):
        search(workspace, recipe, suite, 3)


def test_figures_that_are_not_there(
    workspace: Workspace, recipe: Path, scored: tuple[str, list[list[float]]]
) -> None:
    with pytest.raises(UsageError, match="2 figures") as caught:
        search(workspace, recipe, scored[0], 2, objective=None)
    assert "loss, other" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no figure 'gain'"):
        search(workspace, recipe, scored[0], 2, objective="gain")
    with pytest.raises(UsageError, match="budget of 0"):
        search(workspace, recipe, scored[0], 0)
    with pytest.raises(UsageError, match="-1 is no seed"):
        Optimiser(load_search(recipe), seed=-1, minimize=False)
    assert [row.name for row in workspace.adapters()] == ["one", "two"]


def test_the_space(recipe: Path) -> None:
    assert load_search(recipe).axes == (
        Axis("sources.0.weight", 0.0, 2.0),
        Axis("sources.1.weight", 0.0, 1.0),
    )
    recipe.write_text(
        RECIPE
        + "search: {method: {choices: [svd, cat]}, scale: [0.5, 1], parameters.rank: [2, 4]}\n"
    )
    found: Search = load_search(recipe)
    assert [a.whole for a in found.axes] == [False, False, True]
    assert found.start() is None  # the recipe has no rank
    made = found.recipe({"method": "cat", "scale": 0.75})
    assert (made.method, made.scale) == ("cat", 0.75)


@pytest.mark.parametrize(
    "space",
    [
        "3",
        "{}",
        "{scale: 1}",
        "{scale: [1, 0]}",
        "{scale: [a, b]}",
        "{scale: {choices: []}}",
        "{scale: {choices: [[1]]}}",
        "{output.name: [0, 1]}",
        "{3: [0, 1]}",
        "{sources.9.weight: [0, 1]}",
        "{sources.weight: [0, 1]}",
    ],
)
def test_what_is_no_space(recipe: Path, space: str) -> None:
    recipe.write_text(RECIPE + f"search: {space}\n")
    with pytest.raises(InvalidRecipeError, match=r"best\.yaml, line 4, key 'search"):
        load_search(recipe)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("search: {parameters.rnk: [1, 2]}", "has no parameter 'rnk'"),
        ("search: {sed: [1, 2]}", "'sed': there is no such key"),
        ("search: {seed: [-2, -1]}", "'seed': .*greater than or equal to 0"),
        ("matrix: {seed: [1, 2]}", "line 4, key 'matrix': is for a batch, not for a search"),
    ],
)
def test_what_no_trial_could_do_is_refused_before_the_first(
    recipe: Path, text: str, says: str
) -> None:
    recipe.write_text(RECIPE + f"{text}\n")
    with pytest.raises(InvalidRecipeError, match=says):
        load_search(recipe)
    recipe.write_text(RECIPE.replace("method: svd", "method: svdd"))
    with pytest.raises(InvalidRecipeError, match="no merge method 'svdd'"):
        load_search(recipe)


def test_a_method_that_is_searched_decides_which_parameters_fit(recipe: Path) -> None:
    axes = "{method: {choices: [svd, ties]}, parameters.density: [0.1, 0.9]}"
    recipe.write_text(RECIPE + f"search: {axes}\n")
    assert load_search(recipe).recipe({"method": "ties", "parameters.density": 0.5})


def test_what_was_tried_survives(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    Tried(path).add("a", {"x": 1}, {"f": 0.1})
    path.write_text(path.read_text() + "rubbish\n[]\n")
    again = Tried(path)
    assert again.get("a") == {"f": 0.1}
    assert again.get("b") is None


def test_the_command_draws_the_curve(workspace: Workspace, recipe: Path) -> None:
    plot = recipe.with_name("curve.svg")
    words = ["search-weights", str(recipe), "--budget", "4", "--objective", "retained"]
    done = CliRunner().invoke(app, [*words, "--plot", str(plot), "--json"])
    assert done.exit_code == 0, done.stderr
    body = json.loads(done.stdout)["result"]
    assert body["best"] == max(t["value"] for t in body["trials"])
    assert "trial 4" in plot.read_text()
    done = CliRunner().invoke(app, [*words, "--plot", "curve.png"])
    assert done.exit_code == 2


SOME = {"layers.0.q_proj": (24, 32, 3), "layers.1.q_proj": (24, 32, 3), "up": (40, 16, 3)}


@pytest.mark.parametrize(
    "body",
    [
        "{method: svd, parameters: {rank: 3}, scale: 0.7}",
        "{method: svd, parameters: {energy: 0.7}}",
        "{method: cat, normalize: true}",
        "{method: lego, parameters: {rank: 3}}",
        "{method: tsv, parameters: {rank: 4}}",
        "{method: iso_c, parameters: {rank: 4}}",
        "{method: karcher, parameters: {rank: 3}, normalize: true}",
        "{method: knots, parameters: {rank: 3}}",
        "{method: ties, parameters: {rank: 3}}",  # merged element by element: it has to be made
        "{method: svd, budget: rank 2}",  # and so has what takes all modules together
    ],
)
def test_figures_of_a_trial_are_those_of_the_merge(
    workspace: Workspace, recipe: Path, tmp_path: Path, body: str
) -> None:
    """Modules of one source only, and one in which the sources' columns depend, among them."""
    for seed, (name, shapes) in enumerate((("three", SOME), ("four", {**SOME, **SHAPES}))):
        write_adapter(tmp_path / name, shapes, seed=7, alpha=2 + seed)
    write_adapter(tmp_path / "five", dict(list(SOME.items())[:2]), seed=9)
    workspace.pull([str(tmp_path / name) for name in ("three", "four", "five")])
    sources = "[{adapter: three}, {adapter: four, weight: -0.4}, {adapter: five, weight: 0.8}]"
    recipe.write_text(f"{{{body[1:-1]}, dtype: F32, sources: {sources}, output: {{name: best}}}}\n")
    trials = search(workspace, recipe, "factors", 1, objective="drift")
    found = trials[0].figures
    assert found is not None
    kept = workspace.evaluations(workspace.get("best"))[0].figures
    assert found == pytest.approx(dict(kept), rel=2e-5, abs=2e-5)
    made = any(s in body for s in ("ties", "budget", "lego"))
    assert {r.state for r in workspace.catalog.runs()} == {"finished"}
    assert workspace.catalog.count_runs() == 2
    assert workspace.verify("best").passed
    assert sum(r.record is not None for r in workspace.catalog.runs()) == 1 + made


def test_a_trial_of_factors_reads_the_sources_once(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    whole = TensorFile.read_into

    def counting(self: TensorFile, name: str, out: Any) -> None:
        reads.append(name)
        whole(self, name, out)

    monkeypatch.setattr(TensorFile, "read_into", counting)
    recipe.write_text(RECIPE + "verify: {retained: 0.2}\n")
    trials = workspace.search_weights(recipe, "factors", budget=12, objective="retained")
    found = [next(trials) for _ in range(12)]
    assert len(reads) == 2 * 2 * len(SHAPES)
    assert not workspace.config.adapters.exists()
    failed = [t for t in found if t.value is None]
    assert all("retained" in str(t.why) for t in failed)
    assert workspace.catalog.count_runs() == 12
    states = [r.state for r in workspace.catalog.runs()]
    assert states.count("failed") == len(failed)


@pytest.mark.parametrize(
    "body",
    [
        "sources: [{adapter: one}, {adapter: nowhere}]\noutput: {name: best}\n",
        RECIPE.removeprefix("method: svd\n")
        + "search: {sources.0.adapter: {choices: [one, nowhere]}, sources.0.weight: [0, 1]}\n",
    ],
)
def test_a_missing_source_is_one_error_before_the_first_trial(
    workspace: Workspace, recipe: Path, scored: tuple[str, list[list[float]]], body: str
) -> None:
    suite, asked = scored
    recipe.write_text(f"method: svd\n{body}")
    for chosen in ("factors", suite):
        done = CliRunner().invoke(app, ["search-weights", str(recipe), "--with", chosen])
        assert done.exit_code == 3, done.output
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
        assert "'nowhere'" in done.stderr
    assert asked == []
    assert workspace.catalog.count_runs() == 0


def test_sources_that_are_searched_over_are_looked_up_where_they_are_tried(
    workspace: Workspace, recipe: Path
) -> None:
    """What stands in the file is not asked for where no trial has it."""
    recipe.write_text(
        "method: svd\nsources: [{adapter: any}]\noutput: {name: best}\n"
        "search: {sources.0.adapter: {choices: [one, two]}}\n"
    )
    trials = search(workspace, recipe, "factors", 6, objective="retained", minimize=False)
    assert {t.chosen["sources.0.adapter"] for t in trials} == {"one", "two"}
    assert [t.why for t in trials if t.why is not None] == []


def test_without_optuna(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError) as caught:
        workspace.search_weights(recipe, "factors")
    assert "lorahub-kit[search]" in (caught.value.hint or "")
