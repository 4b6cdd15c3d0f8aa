"""Every method takes a scale and normalised adapters, and says what they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.engine.plan import Plan, make_plan
from lorahub.engine.run import run
from lorahub.methods.registry import Method, methods
from tests.conftest import write_adapter
from tests.test_engine import deltas, distance, load, merge

METHODS = list(methods().values())
MODULES = {"model.layers.0.q": (24, 16, 3), "model.layers.1.q": (24, 16, 3)}
ALPHAS = (16.0, 200.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [
        write_adapter(folder / n, MODULES, seed=i, alpha=a)
        for i, (n, a) in enumerate(zip("ab", ALPHAS))
    ]


def planned(method: Method, folders: list[Path], **options: Any) -> Plan:
    needed = {"budget": "rank 3"} if method.name == "welore" else {}
    weights = [1.0] * len(folders)
    return make_plan([load(f) for f in folders], weights, method, {}, **{**needed, **options})


@pytest.mark.parametrize("method", METHODS, ids=[m.name for m in METHODS])
def test_scale_and_norms(method: Method, folders: list[Path], tmp_path: Path) -> None:
    plain = planned(method, folders, normalize=False)
    assert plain.scale == method.default_scale(2)
    assert all(0 < method.default_scale(n) < math.inf for n in range(1, 100))
    one = deltas(merge(plain, tmp_path / "plain"))
    doubled = planned(method, folders, normalize=False, scale=-2 * plain.scale)
    twice = deltas(merge(doubled, tmp_path / "doubled"))
    assert distance(twice, {name: -2 * delta for name, delta in one.items()}) <= 1e-6

    # Normalising is what alphas that give equal norms would do.
    asked = planned(method, folders, normalize=True)
    factors = run(asked, tmp_path / "normal.safetensors").plan.factors
    norms = [math.sqrt(sum(float(d.square().sum()) for d in deltas(f).values())) for f in folders]
    assert factors[0] * norms[0] == pytest.approx(factors[1] * norms[1], rel=1e-6)
    evened = [
        write_adapter(tmp_path / f.name, MODULES, seed=i, alpha=a * factor)
        for i, (f, a, factor) in enumerate(zip(folders, ALPHAS, factors))
    ]
    wanted = deltas(merge(planned(method, evened, normalize=False), tmp_path / "evened"))
    assert distance(deltas(merge(asked, tmp_path / "normal")), wanted) <= 1e-5


def test_they_are_printed_and_kept(home: Path, folders: list[Path]) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["pull", *map(str, folders)]).exit_code == 0
    words = ["merge", "a", "b", "--method", "task_arithmetic", "--normalize", "--name", "m"]
    scale = 1.25 * 2**-0.7
    shown = runner.invoke(app, [*words, "--dry-run"]).stdout
    assert f"scale\t{scale}" in shown
    assert "normalize\tTrue" in shown
    shown = runner.invoke(app, words).stdout
    assert f"scale\t{scale:g}\nnormalized by\t1, 0.0" in shown
    shown = runner.invoke(app, [*words, "--scale", "0.5", "--force", "--json"]).stdout
    record = json.loads(shown)["result"]["record"]
    assert record["scale"] == 0.5
    assert record["parents"][0]["factor"] == 1.0
    assert record["parents"][1]["factor"] < 0.1
    assert "Scale where none is given: 0.77 for 2" in (
        runner.invoke(app, ["methods", "show", "task_arithmetic"]).stdout
    )
    body = json.loads(runner.invoke(app, ["methods", "show", "flat", "--json"]).stdout)
    assert body["normalize"] is True
    assert body["default_scale"]["4"] == pytest.approx(math.cbrt(1.1))
