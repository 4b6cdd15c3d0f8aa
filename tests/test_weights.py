"""Weights by pattern: what they mean, that every method takes them, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

import lorahub
from lorahub.adapter import Adapter
from lorahub.cli.composing import parse_source, parse_weights
from lorahub.cli.main import app
from lorahub.engine.plan import make_plan
from lorahub.engine.verify import verify
from lorahub.errors import IntegrityError, InvalidRecipeError
from lorahub.methods.registry import Method, get, methods
from lorahub.record import Record
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.test_engine import deltas, distance, load, merge

MODULES = {
    "model.layers.0.q": (12, 8, 3),
    "model.layers.0.up": (20, 8, 3),
    "model.layers.1.q": (12, 8, 3),
    "model.layers.1.up": (20, 8, 3),
    "model.layers.11.q": (12, 8, 3),
}
WEIGHTS = (1.0, 0.5)
FIRST = r"layers\.0\."
WEIGHING = [m for m in methods().values() if not m.equal_weights]
# A budget is distributed over all modules: the rank of one depends on the weights of the others.
SEPARATE = [m for m in WEIGHING if m.allocation is None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [write_adapter(folder / n, MODULES, seed=i) for i, n in enumerate("ab")]


@pytest.fixture(scope="module")
def adapters(folders: list[Path]) -> list[Adapter]:
    return [load(f) for f in folders]


@pytest.fixture
def workspace(home: Path, folders: list[Path]) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        opened.pull([str(f) for f in folders])
        yield opened


def factors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    stems = {k.split(".lora_A")[0] for k in tensors if ".lora_A" in k}
    return {
        stem.removeprefix("base_model.model."): (
            tensors[f"{stem}.lora_A.weight"],
            tensors[f"{stem}.lora_B.weight"],
        )
        for stem in stems
    }


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("others", [(0.2, 2.0), (0.0, 1.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("method", SEPARATE, ids=[m.name for m in SEPARATE])
def test_it_is_a_merge_of_every_module_with_its_own_weights(
    method: Method, others: tuple[float, float], adapters: list[Adapter], tmp_path: Path
) -> None:
    def made(name: str, weights: Sequence[float], patterns: Sequence[Mapping[str, float]]) -> Path:
        plan = make_plan(adapters, weights, method, {}, patterns=patterns, seed=3)
        return merge(plan, tmp_path / name)

    found = factors(made("both", WEIGHTS, [{FIRST: w} for w in others]))
    plain, first = factors(made("plain", WEIGHTS, [])), factors(made("first", others, []))
    for name, pair in found.items():
        assert same(pair, (first if name.startswith("model.layers.0.") else plain)[name]), name


@settings(max_examples=25, deadline=None)
@given(
    patterns=st.lists(
        st.dictionaries(
            st.sampled_from([FIRST, "q$", "up", r"layers\.1", "."]),
            st.sampled_from([-1.0, 0.0, 0.3, 2.0]),
            max_size=3,
        ),
        min_size=2,
        max_size=2,
    ),
    batch_bytes=st.sampled_from([1, 2000, 1 << 20]),
    workers=st.integers(1, 3),
)
def test_the_sum_is_the_dense_sum_whatever_the_batches(
    patterns: list[dict[str, float]],
    batch_bytes: int,
    workers: int,
    folders: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import re

    out = tmp_path_factory.mktemp("out")
    adapters = [load(f) for f in folders]
    plan = make_plan(adapters, WEIGHTS, get("svd"), {}, patterns=patterns)
    one = merge(plan, out / "one", batch_bytes=batch_bytes, workers=workers)
    other = merge(plan, out / "other")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    wanted: dict[str, Tensor] = {}
    for folder, weight, some in zip(folders, WEIGHTS, patterns):
        for name, delta in deltas(folder).items():
            decides = [w for p, w in some.items() if re.search(p, name)]
            part = (decides or [weight])[0] * delta
            wanted[name] = wanted.get(name, torch.zeros_like(part)) + part
    sizes = [sum(float(d.norm()) for d in deltas(f).values()) for f in folders]
    error = math.sqrt(sum(float((deltas(one)[n] - d).square().sum()) for n, d in wanted.items()))
    assert error <= 2e-6 * sum(sizes)
    check = verify(plan, one / "adapter_model.safetensors", load(one).info.modules, reports={})
    assert check.passed


@pytest.mark.parametrize("method", ["flat", "welore"])
def test_budgets_are_distributed_over_the_weighted_modules(
    method: str, adapters: list[Adapter], tmp_path: Path
) -> None:
    patterns = [{FIRST: 0.0}, {FIRST: 0.0}]
    plan = make_plan(
        adapters, WEIGHTS, get(method), {}, patterns=patterns, budget="rank 3", normalize=False
    )
    out = merge(plan, tmp_path / "out")
    for name, (A, _) in factors(out).items():
        assert (len(A) == 1) == name.startswith("model.layers.0."), name
        assert deltas(out)[name].any() == (not name.startswith("model.layers.0."))


def test_what_was_weighted_is_recorded_and_made_again(workspace: Workspace) -> None:
    recipe = lorahub.make_recipe(
        {
            "method": "ties",
            "sources": [{"adapter": "a", "weight": 0.5, "weights": {"q$": 0.2}}, {"adapter": "b"}],
            "weights": {r"layers\.11": 0.0, "q$": 0.7},
            "output": {"name": "m"},
        }
    )
    merged = workspace.merge(recipe)
    folder = merged.adapter.origin.folder
    record = Record.read(folder)
    assert record is not None
    assert [list(p.weights.items()) for p in record.parents] == [
        [("q$", 0.2), (r"layers\.11", 0.0)],
        [(r"layers\.11", 0.0), ("q$", 0.7)],
    ]
    assert r"0.2 at q$, 0 at layers" in (folder / "README.md").read_text()
    assert workspace.verify("m").passed
    pinned = lorahub.load_recipe(folder / "recipe.yaml")
    assert workspace.plan(pinned).digest == record.digest
    again = pinned.model_copy(update={"output": recipe.output.model_copy(update={"name": "n"})})
    repeated = workspace.merge(again).adapter.origin.folder
    for name in ("adapter_model.safetensors", "lorahub.json"):
        assert (repeated / name).read_bytes() == (folder / name).read_bytes()
    assert workspace.merge(recipe).state == "unchanged"
    other = recipe.model_copy(update={"weights": {"q$": 0.7, r"layers\.11": 0.0}})
    assert workspace.plan(other).digest != record.digest


def test_a_record_of_other_weights_is_found_wrong(workspace: Workspace) -> None:
    body = {"method": "svd", "sources": [{"adapter": "a"}, {"adapter": "b"}]}
    recipe = lorahub.make_recipe(body | {"weights": {"q$": 0.5}, "output": {"name": "m"}})
    folder = workspace.merge(recipe).adapter.origin.folder
    path = folder / "lorahub.json"
    text = json.loads(path.read_text())
    text["parents"][0]["weights"]["q$"] = 0.6
    path.write_text(json.dumps(text))
    with pytest.raises(lorahub.errors.VerificationError, match=r"\.q'"):
        workspace.verify("m")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights": ["q"]}, r"parents\.0\.weights"),
        ({"weights": {"q$": "much"}}, r"parents\.0\.weights\.q"),
        ({"weight": None}, r"parents\.0\.weight"),
        ({"factor": "x"}, r"parents\.0\.factor"),
    ],
)
def test_a_record_that_is_damaged_is_refused(
    workspace: Workspace, change: dict[str, Any], field: str
) -> None:
    body = {"method": "cat", "sources": [{"adapter": "a"}], "output": {"name": "m"}}
    folder = workspace.merge(lorahub.make_recipe(body)).adapter.origin.folder
    path = folder / "lorahub.json"
    text = json.loads(path.read_text())
    text["parents"][0] |= change
    path.write_text(json.dumps(text))
    with pytest.raises(IntegrityError, match=rf"lorahub\.json: not a lorahub record \({field}"):
        workspace.verify("m")


def test_auto_multiplies_them_by_what_it_suggests(workspace: Workspace, tmp_path: Path) -> None:
    workspace.pull([str(write_adapter(tmp_path / "c", MODULES, seed=0, alpha=17))])
    sources = [{"adapter": "a"}, {"adapter": "b"}, {"adapter": "c", "weights": {"up": 4.0}}]
    body = {"method": "auto", "sources": sources, "weights": {"q$": 0.2}}
    plan = workspace.plan(lorahub.make_recipe(body))
    assert plan.weights == (0.5, 1.0, 0.5)  # a and c are alike
    assert plan.patterns == ({"q$": 0.1}, {"q$": 0.2}, {"up": 2.0, "q$": 0.1})
    refused(
        workspace, "'auto' adds adapters, but 'q' has weight -1", **body | {"weights": {"q": -1}}
    )
    refused(workspace, "'k' matches no module of any source", **body | {"weights": {"k": 1}})


def test_the_command_line(workspace: Workspace) -> None:
    words = ["merge", "a:0.5", "b", "--method", "svd", "--weights-for", "q$=0.2"]
    words += ["--weights-for", r"b:layers\.(0|1)\.=-1", "--name", "m"]
    planned = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    sources = json.loads(planned.stdout)["result"]["sources"]
    assert [s["weights"] for s in sources] == [
        {"q$": 0.2},
        {r"layers\.(0|1)\.": -1.0, "q$": 0.2},
    ]
    shown = CliRunner().invoke(app, [*words, "--dry-run"])
    assert "a:0.5 q$=0.2" in shown.stdout
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    folder = Path(json.loads(done.stdout)["result"]["folder"])
    found, one, other = (deltas(f) for f in (folder, *_folders(workspace)))
    weights = {"model.layers.11.q": (0.2, 0.2), "model.layers.0.up": (0.5, -1.0)}
    for name, (w, v) in weights.items():
        assert distance({name: found[name]}, {name: w * one[name] + v * other[name]}) < 1e-5


def _folders(workspace: Workspace) -> list[Path]:
    return [workspace.get(n).origin.folder for n in "ab"]


def test_what_a_weight_on_the_command_line_is_for() -> None:
    sources = [parse_source(s) for s in ("law", "owner/law@main:0.5")]
    common, own = parse_weights(["(?:q|k)=1", "law:v=2", "owner/law@main:a=b=3e-1"], sources)
    assert common == {"(?:q|k)": 1.0}
    assert [s["weights"] for s in own] == [{"v": 2.0}, {"a=b": 0.3}]
    assert [s.get("weight") for s in own] == [None, 0.5]


@pytest.mark.parametrize("text", ["q", "=1", "q=", "q=much", ""])
def test_weights_on_the_command_line_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRecipeError, match="is not PATTERN=WEIGHT") as caught:
        parse_weights([text], [])
    assert caught.value.hint


def test_they_cannot_be_given_beside_a_recipe(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: svd\nsources: [{adapter: a}]\noutput: {name: m}\n")
    done = CliRunner().invoke(app, ["merge", str(path), "--weights-for", "q=1"])
    assert done.exit_code == 2
    assert "--weights-for cannot be given beside a recipe" in done.stderr


def refused(workspace: Workspace, words: str, **recipe: Any) -> None:
    """The recipe is refused, with ``words`` and a remedy, and nothing is made."""
    body = {"method": "svd", "sources": [{"adapter": "a"}, {"adapter": "b"}]}
    with pytest.raises(InvalidRecipeError, match=words) as caught:
        workspace.merge(lorahub.make_recipe(body | {"output": {"name": "m"}} | recipe))
    assert caught.value.hint
    assert not workspace.config.adapters.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, "much", None])
def test_weights_that_are_no_numbers(workspace: Workspace, value: object) -> None:
    refused(workspace, r"key 'weights\.q'", weights={"q": value})
    refused(
        workspace,
        r"key 'sources\.0\.weights\.q'",
        sources=[{"adapter": "a", "weights": {"q": value}}],
    )


def test_patterns_that_match_nothing(workspace: Workspace) -> None:
    refused(workspace, r"'layers\.7' matches no module of any source", weights={"layers.7": 1})
    own = [{"adapter": "a"}, {"adapter": "b", "weights": {"q$": 1, "k$": 1}}]
    refused(workspace, r"'k\$' matches no module of 'b'", sources=own)


def test_a_common_pattern_needs_a_module_in_one_source_only(
    workspace: Workspace, tmp_path: Path
) -> None:
    some = {n: MODULES[n] for n in ("model.layers.0.q", "model.layers.1.q")}
    workspace.pull([str(write_adapter(tmp_path / "c", some, seed=5))])
    sources = [{"adapter": "a"}, {"adapter": "c"}]
    body = {"method": "svd", "sources": sources, "weights": {"up": 0.5}}
    plan = workspace.plan(lorahub.make_recipe(body))
    assert plan.patterns == ({"up": 0.5}, {})


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*", "x" * 5000])
def test_patterns_that_are_none(workspace: Workspace, pattern: str) -> None:
    refused(workspace, "is not a regular expression", weights={pattern: 1})


def test_patterns_that_never_end(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorahub.formats.expressions.SECONDS", 0.05)
    long = write_adapter(tmp_path / "c", {"a" * 60: (4, 4, 1)})
    workspace.pull([str(long)])
    sources = [{"adapter": "c"}]
    refused(workspace, "s to match", sources=sources, weights={"(a|aa)+$b": 1})


def test_methods_that_weigh_all_alike_refuse_them(workspace: Workspace) -> None:
    refused(
        workspace,
        r"'average' weighs all adapters alike.*'a'.*'q'",
        method="average",
        weights={"q": 0.5},
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: make_plan(a, [1.0], get("svd"), {}), "2 adapters but 1 weights"),
        (lambda a: make_plan(a, [1, 1], get("svd"), {}, patterns=[{}]), "2 adapters but 1 sets"),
        (
            lambda a: make_plan(a, [1, 1], get("svd"), {}, patterns=[{}, {"q": math.nan}]),
            "weight of 'b' for 'q' is nan",
        ),
        (lambda a: make_plan(a, [1, 1], get("ties"), {"density": 0}), "'density'.*greater than 0"),
        (lambda a: make_plan(a, [1, 1], get("ties"), {"density": 1.5}), "'density'.*equal to 1"),
        (lambda a: make_plan(a, [1, 1], get("della"), {"density": -1}), "'density'.*greater"),
    ],
)
def test_plans_of_numbers_that_do_not_fit(
    adapters: list[Adapter], call: Callable[[list[Adapter]], object], words: str
) -> None:
    with pytest.raises(InvalidRecipeError, match=words) as caught:
        call(adapters)
    assert caught.value.hint
