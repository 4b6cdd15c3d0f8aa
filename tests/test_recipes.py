"""Recipe files: their lines in errors, locks, sweeps, templates, and what is imported."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidRecipeError,
    UsageError,
    VerificationError,
)
from lorahub.importing import import_recipe
from lorahub.recipe import make_recipe
from lorahub.recipe_file import load_recipe, lock_path
from lorahub.recipe_template import json_schema, write_new
from lorahub.sweep import load_sweep
from lorahub.workspace import Workspace
from tests.conftest import write_adapter

SHAPES = {"layers.0.q_proj": (24, 32, 3), "layers.1.q_proj": (24, 32, 3)}
RECIPE = """\
# a comment
method: svd
parameters: {rank: 2}
sources:
  - adapter: ./one
    weight: 0.5
  - adapter: ./two
output: {name: both}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        write_adapter(tmp_path / name, SHAPES, seed=seed)
    (tmp_path / "both.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        yield opened


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("weight: 0.5", "weight: much"), 6, "'sources.0.weight'.*number"),
        (("weight: 0.5", "wieght: 0.5"), 6, "'sources.0.wieght'"),
        (("method: svd", ""), None, "'method'.*required"),
        (("method: svd", "methd: svd"), 2, "'methd': there is no such key"),
        (("- adapter", "- adaptor"), 5, r"'sources\.0\.adaptor': there is no such key"),
        (("{rank: 2}", "[rank]"), 3, "'parameters': has to be a map"),
        (("output: {name: both}", "output: both"), 8, "'output': has to be a map"),
        (("output: {name: both}", "output: {export: x}"), 8, r"'output\.export': .* a list"),
        (("output: {name: both}", "output: {name: yes}"), 8, "not true: write it in quotes"),
        (("output: {name: both}", "output: {name: 12}"), 8, "not 12: write it in quotes"),
        (("output: {name: both}", "output: {name: a/b}"), 8, "'a/b' cannot be a name"),
        (("output: {name: both}", "dtype: F8"), 8, "'F32', 'F16' or 'BF16'"),
        (("output: {name: both}", "outptu: {name: both}"), 8, "'outptu'"),
        (("output: {name: both}", "output: {nam: both}"), 8, "'output.nam'"),
        (("output: {name: both}", "method: cat"), 8, "'method': is there twice"),
        (("output: {name: both}", "seed: -1"), 8, "'seed'"),
        (("method: svd", "method: svdd"), 2, "'method': there is no merge method 'svdd'"),
        (("{rank: 2}", "{rnk: 2}"), 3, "'parameters.rnk': .* has no parameter 'rnk'"),
        (("{rank: 2}", "{rank: some}"), 3, "'parameters.rank': .*integer"),
        (("svd\nparameters: {rank: 2}", "auto\nparameters: {k: 2}"), 3, "'parameters.k'"),
        (("output: {name: both}", "verify: {retained: 2}"), 8, "'verify.retained'"),
    ],
)
def test_an_error_names_file_line_and_key(
    folder: Path, change: tuple[str, str], line: int | None, says: str
) -> None:
    path = folder / "both.yaml"
    path.write_text(RECIPE.replace(*change))
    place = f"{path}, line {line}, key " if line else f"{path}, key "
    with pytest.raises(InvalidRecipeError, match=says) as caught:
        load_recipe(path)
    assert caught.value.message.startswith(place)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        ("budget: a lot", 9, "key 'budget': budget 'a lot' cannot be read"),
        ("budget: 1", 9, "key 'budget': .*too small"),
        (
            "weights:\n  no-such-module: 0.5",
            10,
            "key 'weights.no-such-module': .*matches no module",
        ),
        ("weights: {'(': 0.5}", 9, r"key 'weights.\(': .*not a regular expression"),
        ("allocate: energy", 9, "key 'allocate': .*needs a budget"),
    ],
)
def test_an_error_that_takes_the_sources_names_the_line_too(
    home: Path, folder: Path, change: str, line: int, says: str
) -> None:
    path = folder / "both.yaml"
    path.write_text(f"{RECIPE}{change}\n")
    done = CliRunner().invoke(app, ["merge", str(path)])
    assert done.exit_code == 5, done.output
    assert re.search(f"error: {path}, line {line}, {says}", done.stderr), done.stderr


def test_weights_of_a_source_are_located_in_it(home: Path, folder: Path) -> None:
    path = folder / "both.yaml"
    text = RECIPE.replace("weight: 0.5", "weights: {q: 0.5,\n      no-such-module: 2}")
    path.write_text(text)
    done = CliRunner().invoke(app, ["merge", str(path)])
    assert f"{path}, line 7, key 'sources.0.weights.no-such-module'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        (("weight:", "wieght:"), "'weight'"),
        (("output:", "ouput:"), "'output'"),
        (("{name: both}", "{name: both, exprt: []}"), "'export'"),
        (("svd", "svdd"), "'svd'"),
        (("svd", "sdv"), "'svd'"),
        (("svd", "SVD"), "'svd'"),
        (("method:", "metod:"), "'method'"),
        (("{rank", "{rnk"), "'rank'"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(
    folder: Path, change: tuple[str, str], meant: str
) -> None:
    path = folder / "both.yaml"
    path.write_text(RECIPE.replace(*change))
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(path)
    assert f"did you mean {meant}?" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words",
        "- a\n- list",
        "method: [",
        "method: svd\n? {a: b}\n: c",
        "a: &x [*x]",
        "when: 2020-99-99",
        "\x00",
        "a: !!python/object/apply:os.getcwd []",
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRecipeError, match=str(path)):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", ": is empty, but a recipe is a map"),
        (b"- a\n", ": is a list, but a recipe is a map"),
        (b"sources:\n\t- adapter: a\n", r", line 2, column 1: is not YAML .*'\\t'"),
        (b"method: [svd\n", r", line 2, column 1: is not YAML .*expected ',' or '\]'"),
        (b"# caf\xe9 au lait\n", r": is not YAML in UTF-8 .*byte 5"),
        ("method: svd\n".encode("utf-16-le"), ": is not YAML in UTF-8 or, with its mark, UTF-16"),
    ],
)
def test_what_is_no_yaml_is_told_by_its_place(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text)
    with pytest.raises(InvalidRecipeError, match=re.escape(str(path)) + says):
        load_recipe(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_of_another_editor(folder: Path, encoding: str) -> None:
    path = folder / "both.yaml"
    path.write_bytes(RECIPE.replace("\n", "\r\n").encode(encoding))
    assert load_recipe(path).output.name == "both"


def test_a_broken_lock_is_called_one(folder: Path) -> None:
    (folder / "both.lock.yaml").write_text("- a\n")
    with pytest.raises(InvalidRecipeError, match="but a lock is a map") as caught:
        load_recipe(folder / "both.yaml")
    assert "recipes lock" in (caught.value.hint or "")


def test_aliases_that_multiply_cost_nothing(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)
    ]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(rows))
    with pytest.raises(InvalidRecipeError, match="'a0': there is no such key"):
        load_recipe(path)


def test_a_lock_pins_content_and_refuses_what_moved(workspace: Workspace, folder: Path) -> None:
    path = folder / "both.yaml"
    first = workspace.merge(load_recipe(path)).adapter
    lock = workspace.lock(path)
    assert lock.sources["./one"].sha256 == workspace.get(str(folder / "one")).info.content_hash
    pinned = load_recipe(path)
    assert [s.sha256 for s in pinned.sources] == [p.sha256 for p in lock.sources.values()]
    assert workspace.merge(pinned).state == "unchanged"
    # In another place the lock goes on to mean the folders beside it.
    other = shutil.copytree(folder, folder.parent / f"{folder.name}-moved")
    with Workspace.open(other / "another-home") as elsewhere:
        again = elsewhere.merge(load_recipe(other / "both.yaml")).adapter
    assert again.info.weights_sha256 == first.info.weights_sha256
    write_adapter(folder / "two", SHAPES, seed=9)
    with pytest.raises(IntegrityError, match="the recipe pins"):
        workspace.merge(load_recipe(path))


def test_a_lock_of_another_recipe(workspace: Workspace, folder: Path) -> None:
    path = folder / "both.yaml"
    workspace.lock(path)
    path.write_text(RECIPE.replace("./two", "./one/../two"))
    with pytest.raises(InvalidRecipeError, match=r"is not in both\.lock\.yaml"):
        load_recipe(path)
    lock_path(path).write_text("version: 1\nsources: {x: {reference: x, sha256: 12}}\n")
    with pytest.raises(
        InvalidRecipeError, match=r"both\.lock\.yaml, line 2, key 'sources\.x\.sha256'"
    ):
        load_recipe(path)


def test_bounds_refuse_before_anything_is_written(workspace: Workspace, folder: Path) -> None:
    path = folder / "both.yaml"
    for key, bound in (("truncation", 0.001), ("retained", 0.999), ("error", 0.0)):
        path.write_text(RECIPE + f"verify: {{{key}: {bound}}}\n")
        with pytest.raises(VerificationError, match=f"has {key} .* the recipe allows {bound:g}"):
            workspace.merge(load_recipe(path))
        assert [row.name for row in workspace.adapters()] == ["one", "two"]
        assert not list(workspace.config.adapters.glob("*"))
    path.write_text(RECIPE + "verify: {truncation: 1, retained: 0}\n")
    assert workspace.merge(load_recipe(path)).state == "merged"


def test_exports_of_a_recipe(workspace: Workspace, folder: Path) -> None:
    path = folder / "both.yaml"
    path.write_text(RECIPE.replace("{name: both}", "{name: both, export: [{folder: out/both}]}"))
    for state in ("merged", "unchanged"):
        merged = workspace.merge(load_recipe(path))
        assert merged.state == state
        copied = folder / "out" / "both" / "adapter_model.safetensors"
        assert copied.read_bytes() == merged.adapter.weights_path.read_bytes()


def sweep(folder: Path, text: str) -> list[Any]:
    path = folder / "sweep.yaml"
    path.write_text(RECIPE.replace("{name: both}", "{name: 'm-{n}'}") + text)
    return list(load_sweep(path).recipes())


def test_a_sweep_is_the_product_less_what_is_excluded(folder: Path) -> None:
    found = sweep(
        folder,
        "matrix:\n"
        "  method: [svd, task_arithmetic]\n"
        "  parameters.rank: [1, 2]\n"
        "  sources.weight: [[1, 0], [0.3, 0.7]]\n"
        "exclude: [{method: svd, parameters.rank: 2}]\n",
    )
    assert [
        (r.method, r.parameters["rank"], [s.weight for s in r.sources], r.output.name)
        for r in found
    ] == [
        ("svd", 1, [1, 0], "m-1"),
        ("svd", 1, [0.3, 0.7], "m-2"),
        ("task_arithmetic", 1, [1, 0], "m-5"),
        ("task_arithmetic", 1, [0.3, 0.7], "m-6"),
        ("task_arithmetic", 2, [1, 0], "m-7"),
        ("task_arithmetic", 2, [0.3, 0.7], "m-8"),
    ]
    assert found[0].sources[0].adapter == str(folder / "one")


def test_a_sweep_over_sets_and_single_weights(folder: Path) -> None:
    found = sweep(
        folder, "matrix: {sources: [[{adapter: ./one}], [{adapter: ./two}]], seed: [3]}\n"
    )
    assert [[s.adapter for s in r.sources] for r in found] == [
        [str(folder / "one")],
        [str(folder / "two")],
    ]
    found = sweep(folder, "matrix: {sources.1.weight: [2, -1], scale: [0.5]}\n")
    assert [(r.sources[0].weight, r.sources[1].weight, r.scale) for r in found] == [
        (0.5, 2, 0.5),
        (0.5, -1, 0.5),
    ]


def test_names_tell_the_axes(folder: Path) -> None:
    path = folder / "s.yaml"
    name = "'{method}-{parameters.rank}-{weight}-{budget}'"
    path.write_text(
        RECIPE.replace("both}", f"{name}}}")
        + "matrix: {method: [svd], parameters.rank: [2], sources.weight: [[1, 0.5]], "
        "budget: [null, rank 1]}\n"
    )
    assert [r.output.name for r in load_sweep(path).recipes()] == [
        "svd-2-1_0.5-null",
        "svd-2-1_0.5-rank1",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("matrix: {}", "line 9, key 'matrix'"),
        ("matrix: {seed: 3}", "key 'matrix.seed': needs a list"),
        ("matrix: {seed: []}", "key 'matrix.seed': needs a list"),
        ("matrix: {output.name: [a]}", "cannot be an axis"),
        ("matrix: {sed: [1]}", "key 'sed'"),
        ("matrix: {sources.9.weight: [1]}", "names no key"),
        ("matrix: {parameters.rnk: [1]}", r"key 'parameters\.rnk': .* no parameter 'rnk'"),
        ("matrix: {parameters.rank: [1, x]}", r"key 'parameters\.rank': .*integer"),
        ("matrix: {seed.deep: [1]}\nseed: 0", "names no key"),
        ("matrix: {sources.weight: [[1]]}", "one weight for each source"),
        ("matrix: {seed: [1]}\nexclude: [{sed: 1}]", r"line 10, key 'exclude\.0\.sed'"),
        ("matrix: {seed: [1]}\nexclude: 3", "key 'exclude'"),
        ("exclude: [{seed: 1}]", "needs a matrix"),
    ],
)
def test_a_matrix_that_is_none(folder: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidRecipeError, match=says):
        sweep(folder, text + "\n")


def test_a_sweep_is_not_one_merge(folder: Path) -> None:
    (folder / "s.yaml").write_text(RECIPE + "matrix: {seed: [1, 2]}\n")
    with pytest.raises(InvalidRecipeError, match="line 9, key 'matrix'"):
        load_recipe(folder / "s.yaml")
    (folder / "s.yaml").write_text(RECIPE.replace("both", "'{x}'") + "matrix: {seed: [1, 2]}\n")
    with pytest.raises(InvalidRecipeError, match=r"'\{x\}' is no axis; there are seed, n"):
        list(load_sweep(folder / "s.yaml").recipes())


@pytest.mark.parametrize("method", ["svd", "ties", "lego", "linear_factors", "auto"])
def test_a_new_recipe_is_one(tmp_path: Path, method: str) -> None:
    path = tmp_path / "fresh.yaml"
    if method == "auto":
        with pytest.raises(InvalidRecipeError, match="no merge method 'auto'"):
            write_new(path, method, [])
        return
    write_new(path, method, [{"adapter": "a", "weight": 0.25}])
    recipe = load_recipe(path)
    assert (recipe.method, recipe.sources[0].weight, recipe.output.name) == (method, 0.25, "fresh")
    # What is commented out is a recipe too.
    rest = path.read_text().split("# The rest")[1].splitlines()[1:]
    make_recipe(yaml.safe_load(path.read_text()) | yaml.safe_load("\n".join(r[2:] for r in rest)))
    with pytest.raises(ConflictError):
        write_new(path, method, [])


@pytest.mark.parametrize("name", ["languages", "r.txt", "owner/one"])
def test_a_new_recipe_without_its_ending_is_a_forgotten_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a recipe file"):
        write_new(tmp_path / name, "svd", [])
    assert list(tmp_path.iterdir()) == []


def test_the_schema_knows_every_key_and_sweeps() -> None:
    schema = json_schema()
    assert {"method", "sources", "output", "verify", "matrix", "exclude"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False
    assert schema["anyOf"] == [{"required": ["method", "sources"]}, {"required": ["matrix"]}]


MERGEKIT = """\
merge_method: {method}
base_model: owner/base
models:
  - model: owner/base+owner/one
    parameters: {{weight: 2}}
  - model: owner/base+owner/two
    parameters: {{weight: 6}}
parameters: {parameters}
dtype: bfloat16
"""


@pytest.mark.parametrize(
    ("method", "parameters", "weights", "scale"),
    [
        ("linear", "{}", [0.25, 0.75], 1.0),
        ("task_arithmetic", "{lambda: 0.5}", [2, 6], 0.5),
        ("task_arithmetic", "{normalize: true}", [0.25, 0.75], 1.0),
    ],
)
def test_mergekit_files(
    tmp_path: Path, method: str, parameters: str, weights: Sequence[float], scale: float
) -> None:
    path = tmp_path / "kit.yaml"
    path.write_text(MERGEKIT.format(method=method, parameters=parameters))
    recipe = import_recipe(path)
    assert (recipe.method, recipe.scale, recipe.base) == ("cat", scale, "owner/base")
    assert [(s.adapter, s.weight) for s in recipe.sources] == [
        ("owner/one", weights[0]),
        ("owner/two", weights[1]),
    ]
    assert recipe.dtype == "BF16"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("linear", "ties"), "line 1.*'ties' acts on the elements of whole weights"),
        (("+owner/one", ""), r"line 4.*'owner/base' is a whole model"),
        (("owner/base+owner/two", "other+owner/two"), "not all of one base"),
        (("weight: 2", "weight: [1, 2]"), "varies over layers"),
        (("weight: 2", "density: 2"), "line 5.*'models.0.parameters.density'"),
        (("{}\n", "{normalize: false}\n"), "the base itself would be scaled by 8"),
        (("weight: 6", "weight: -2"), "add up to zero"),
        (("dtype:", "slices:"), "line 9.*whole models"),
    ],
)
def test_mergekit_files_that_mean_something_else(
    tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    path = tmp_path / "kit.yaml"
    path.write_text(MERGEKIT.format(method="linear", parameters="{}").replace(*change))
    with pytest.raises(InvalidRecipeError, match=says):
        import_recipe(path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("svd", {"svd_rank": 2}),
        ("cat", {}),
        ("linear", {}),
        ("ties", {"density": 0.5}),
        ("ties_svd", {"density": 0.5, "svd_rank": 2, "majority_sign_method": "frequency"}),
        ("magnitude_prune", {"density": 0.5}),
        ("magnitude_prune_svd", {"density": 0.5, "svd_rank": 2}),
    ],
)
def test_a_call_of_peft_gives_what_peft_gives(
    workspace: Workspace, folder: Path, kind: str, options: dict[str, Any]
) -> None:
    call = {"adapters": ["one", "two"], "weights": [0.7, 0.4], "adapter_name": "m"}
    call |= {"combination_type": kind} | options
    path = folder / "call.json"
    path.write_text(json.dumps(call | {"paths": {n: str(folder / n) for n in ("one", "two")}}))
    folder_of = workspace.merge(import_recipe(path)).adapter.origin.folder
    ours, theirs = _deltas(folder_of), _peft(folder, call)
    for name, delta in theirs.items():
        assert torch.allclose(ours[name], delta, atol=2e-5 * float(delta.norm())), name


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"adapters": ["a"], "weights": [1, 2]}, "needs a list"),
        ({"adapters": ["a"], "weights": [1]}, "without svd_rank"),
        ({"adapters": ["a"], "weights": [1], "combination_type": "x"}, "no kind that PEFT"),
        ({"adapters": ["a"], "weights": [1], "svd_rank": 2, "svd_clamp": 0.9}, "'svd_clamp'"),
        ({"adapters": ["a"], "weights": [1], "combination_type": "ties"}, "needs a density"),
        ({"adapters": ["a"], "weights": [1], "rank": 2}, "'rank': is no argument"),
        ({"models": []}, "neither a mergekit file"),
    ],
)
def test_calls_of_peft_that_mean_nothing(tmp_path: Path, call: dict[str, Any], says: str) -> None:
    path = tmp_path / "call.json"
    path.write_text(json.dumps(call))
    with pytest.raises(InvalidRecipeError, match=says):
        import_recipe(path)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"q_proj": torch.nn.Linear(32, 24, bias=False)}) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _peft(folder: Path, call: dict[str, Any]) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(_Model(), str(folder / "one"), adapter_name="one")
    model.load_adapter(str(folder / "two"), adapter_name="two")
    model.base_model.add_weighted_adapter(**call)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("m").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def _deltas(folder: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(_Model(), str(folder), adapter_name="m")
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("m").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
