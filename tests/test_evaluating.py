"""Suites: figures from factors against dense ones, and the user's commands with their faults."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.errors import EvaluationError, InvalidRecipeError, LorahubError, UsageError
from lorahub.recipe import make_recipe
from lorahub.suite_process import Process
from lorahub.suites import load_suite
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.waiting import until

SHAPES = {"layers.0.q_proj": (24, 32, 3), "layers.1.v_proj": (16, 32, 3)}
WEIGHTS = {"one": 0.7, "two": -0.4}


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        for seed, name in enumerate(WEIGHTS):
            write_adapter(tmp_path / name, SHAPES, seed=seed, alpha=6)
            opened.pull([str(tmp_path / name)])
        sources = [{"adapter": name, "weight": weight} for name, weight in WEIGHTS.items()]
        body = {"method": "svd", "parameters": {"rank": 2}, "sources": sources}
        opened.merge(make_recipe(body | {"output": {"name": "m"}}))
        yield opened


def suite(tmp_path: Path, program: str, **body: Any) -> str:
    script = tmp_path / "score.py"
    script.write_text(program)
    path = tmp_path / "suite.yaml"
    command = {} if "function" in body else {"command": [sys.executable, "score.py"]}
    path.write_text(json.dumps(command | body))
    return str(path)


def score(workspace: Workspace, chosen: str, name: str = "m") -> dict[str, float]:
    ((_, figures),) = workspace.evaluate([name], chosen)
    if isinstance(figures, LorahubError):
        raise figures
    return figures


def delta(folder: Path, scaling: float) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    parts = []
    for name in SHAPES:
        A, B = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
        parts.append((scaling * B @ A).flatten())
    return torch.cat(parts)


def test_figures_from_factors_are_those_of_the_deltas(workspace: Workspace, tmp_path: Path) -> None:
    figures = score(workspace, "factors")
    one, two = (delta(tmp_path / name, 2.0) for name in WEIGHTS)
    merged = delta(workspace.get("m").origin.folder, 1.0)
    together = (0.7 * one - 0.4 * two).square().sum()
    apart = 0.49 * one.square().sum() + 0.16 * two.square().sum()
    mean = ((one.square().sum() + two.square().sum()) / 2).sqrt()
    assert figures["interference"] == pytest.approx(float(1 - together / apart), abs=1e-6)
    assert figures["drift"] == pytest.approx(float(merged.norm() / mean), rel=1e-5)
    cosine = torch.cosine_similarity(merged, one, dim=0)
    assert figures["alignment.one"] == pytest.approx(float(cosine), abs=1e-5)
    assert figures["retained"] == min(figures["retained.one"], figures["retained.two"])
    # A copy under another name changes no name of a figure.
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    workspace.pull([str(tmp_path / "copy")])
    assert score(workspace, "factors") == figures
    with pytest.raises(UsageError, match="'one' is not the result of a merge"):
        score(workspace, "factors", "one")


def test_a_command_gets_the_folder_and_its_figures_are_kept(
    workspace: Workspace, tmp_path: Path
) -> None:
    chosen = suite(
        tmp_path,
        "import json, os, sys\n"
        "print('noise'); print('more', file=sys.stderr)\n"
        "size = os.path.getsize(sys.argv[1] + '/adapter_model.safetensors')\n"
        "print(json.dumps({'size': size, 'here': float(os.path.exists('suite.yaml'))}))\n",
    )
    figures = score(workspace, chosen)
    assert figures == {"size": workspace.get("m").info.weights_bytes, "here": 1.0}
    (found,) = workspace.evaluations(workspace.get("m"))
    assert (found.suite, found.figures) == ("suite", figures)
    # Again replaces, another suite stands beside it.
    suite(tmp_path, "print('{\"size\": 1}')")
    score(workspace, chosen)
    score(workspace, "factors")
    assert [e.suite for e in workspace.evaluations(workspace.get("m"))] == ["factors", "suite"]
    header, *listed = CliRunner().invoke(app, ["ls"]).stdout.splitlines()
    assert header.endswith("\tFIGURES")
    truncation = workspace.evaluations(workspace.get("m"))[0].figures["truncation"]
    assert listed[0].endswith(f"\tfactors truncation {truncation:.4g}, suite size 1")
    assert listed[1].endswith("\tyes\t-")
    shown = CliRunner().invoke(app, ["show", "m"]).stdout
    assert "suite\tsize 1" in shown
    rows = json.loads(CliRunner().invoke(app, ["ls", "--json"]).stdout)
    assert {r["name"]: r["evaluations"].get("suite") for r in rows} == {
        "m": {"size": 1},
        "one": None,
        "two": None,
    }
    workspace.remove(["m"])
    assert not workspace.catalog.check()


def test_a_function_runs_in_a_process_of_its_own(workspace: Workspace, tmp_path: Path) -> None:
    program = (
        "import os\n"
        "def score(folder):\n    return {'files': len(os.listdir(folder)), 'pid': os.getpid()}\n"
    )
    figures = score(workspace, suite(tmp_path, program, function="score:score", name="mine"))
    assert figures["files"] == 5
    assert figures["pid"] != os.getpid()
    assert [e.suite for e in workspace.evaluations(workspace.get("m"))] == ["mine"]


def test_a_function_may_give_numbers_of_numpy_and_torch(
    workspace: Workspace, tmp_path: Path
) -> None:
    program = (
        "import numpy as np, torch\n"
        "def score(f): return {'a': np.float32(1.5), 'b': np.int64(2), 'c': torch.tensor(0.25)}\n"
    )
    figures = score(workspace, suite(tmp_path, program, function="score:score"))
    assert figures == {"a": 1.5, "b": 2.0, "c": 0.25}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("absent", None, "there is no such file"),
        ("list", "- a\n", "but a suite is a map"),
        ("unknown", "comand: [sh]\n", "'comand': there is no such key"),
        ("words", "command: sh\n", "'command': has to be a list"),
        ("none", "timeout: 3\n", ": needs one of command, function, harness and perplexity"),
        ("taken", "name: factors\ncommand: [sh]\n", "line 1, key 'name': 'factors' is the suite"),
        ("factors", "command: [sh]\n", "key 'name': 'factors' is the suite"),
    ],
)
def test_files_that_are_no_suites(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    path = tmp_path / f"{name}.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LorahubError, match=says) as caught:
        load_suite(path)
    assert "suite" in (caught.value.hint or "")


def test_nothing_is_added_to_the_environment(workspace: Workspace, tmp_path: Path) -> None:
    program = "import json, os\nprint(json.dumps(dict.fromkeys(os.environ, 1)))"
    found = score(workspace, suite(tmp_path, program)).keys()
    assert set(found) - set(os.environ) <= {
        "LC_CTYPE",
        "_",
        "PWD",
        "SHLVL",
        "__CF_USER_TEXT_ENCODING",
    }


@pytest.mark.parametrize(
    ("program", "body", "says"),
    [
        ("raise SystemExit('no data')", {}, "failed with exit code 1"),
        ("import os\nos.abort()", {}, "was ended by signal 6"),
        ("print('rubbish')", {}, "printed no JSON: 'rubbish'"),
        ("", {}, "printed no JSON"),
        ("print('[1]')", {}, "no object of numbers"),
        ("print('{}')", {}, "no object of numbers"),
        ("print('{\"a\": NaN}')", {}, "'a' is no finite number"),
        ('print(\'{"a": "b"}\')', {}, "'a' is no finite number"),
        ("print('{\"a\": true}')", {}, "'a' is no finite number"),
        ("print('[' * 100000)", {}, "printed no JSON"),
        ("def score(folder): return 3", {"function": "score:score"}, "no object of numbers"),
        ("def score(f): return 'rubbish'", {"function": "score:score"}, "no object of numbers"),
        ("def score(f): return {'a': f.encode()}", {"function": "score:score"}, "no finite number"),
        ("", {"function": "score:absent"}, "failed with exit code 1"),
        ("import os\ndef score(f): os.abort()", {"function": "score:score"}, "by signal 6"),
        ("import os\ndef score(f): os._exit(0)", {"function": "score:score"}, "without figures"),
        ("def score(f): return {'a': 1e999}", {"function": "score:score"}, "no finite number"),
        (
            "import time\ndef score(f): time.sleep(1000)",
            {"function": "score:score", "timeout": 1},
            "took longer than 1 s",
        ),
        ("", {"command": ["./no-such-program"]}, "cannot be started"),
    ],
)
def test_faults_of_a_suite(
    workspace: Workspace, tmp_path: Path, program: str, body: dict[str, Any], says: str
) -> None:
    with pytest.raises(EvaluationError, match=says):
        score(workspace, suite(tmp_path, program, **body))
    assert workspace.evaluations(workspace.get("m")) == ()


def test_what_hangs_is_ended_with_its_children(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "open('partial', 'w').write(str(child.pid))\n"
        "os.rename('partial', 'pid')\n"
        "time.sleep(1000)\n"
    )
    finish = Process.finish

    def finish_once_it_hangs(process: Process, timeout: float) -> str:
        until((tmp_path / "pid").exists)
        return finish(process, timeout)

    monkeypatch.setattr(Process, "finish", finish_once_it_hangs)
    with pytest.raises(EvaluationError, match=r"took longer than 0\.1 s"):
        score(workspace, suite(tmp_path, program, timeout=0.1))
    # A killed process is gone when the system comes to it.
    status = Path("/proc") / (tmp_path / "pid").read_text() / "status"
    until(lambda: not running(status))


def running(status: Path) -> bool:
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "needs one of command, function, harness and perplexity"),
        ("command: [a]\nfunction: b:c", "needs one of"),
        ("command: [a]\ntimeout: -1", "line 2, key 'timeout'"),
        ("comand: [a]", "line 1, key 'comand'"),
        ("function: os.system", "line 1, key 'function'"),
        ("harness: {tasks: []}", "line 1, key 'harness.tasks'"),
        ("harness:\n  tasks: [a]\n  task: b", "line 3, key 'harness.task'"),
        ("harness: {tasks: [a], dtype: F8}", "key 'harness.dtype'"),
        ("perplexity: {window: 4}", "line 1, key 'perplexity.text'"),
        ("perplexity: {text: a, window: 4, stride: 4}", "stride has to be smaller"),
    ],
)
def test_what_is_no_suite(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRecipeError, match=says):
        load_suite(path)


def test_the_command_is_partial_when_one_fails(workspace: Workspace, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["eval", "m", "one", "--json"])
    body = json.loads(done.stdout)
    assert (done.exit_code, body["status"]) == (8, "partial")
    assert body["result"][1]["error"]["code"] == "usage"
    assert CliRunner().invoke(app, ["eval", "m", "--with", "nothing.yaml"]).exit_code == 3


def test_a_merge_made_again_has_no_figures_of_the_former_one(workspace: Workspace) -> None:
    score(workspace, "factors")
    body = {"method": "svd", "parameters": {"rank": 1}, "output": {"name": "m"}}
    recipe = make_recipe(body | {"sources": [{"adapter": name} for name in WEIGHTS]})
    workspace.merge(recipe, force=True)
    assert workspace.evaluations(workspace.get("m")) == ()


def test_a_failure_is_told_once(workspace: Workspace) -> None:
    what = "'one' is not the result of a merge"
    for references, code in ((["one"], 2), (["m", "one"], 8), (["m", "one", "--json"], 8)):
        done = CliRunner().invoke(app, ["eval", *references])
        assert (done.exit_code, done.stderr.count(what)) == (code, 1), done.stderr
        assert "hint: give a suite of your own with --with" in done.stderr


def test_bars_compare_adapters(workspace: Workspace, tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "loud = 1 + ('two' in sys.argv[1])\n"
        "print(json.dumps({'gain': -loud, 'gain_stderr': 0.25, 'size_stderr': 4 * loud}))\n"
    )
    chosen, plot = suite(tmp_path, program), tmp_path / "bars.svg"
    done = CliRunner().invoke(app, ["eval", "one", "two", "--with", chosen, "--plot", str(plot)])
    assert done.exit_code == 0, done.stderr
    drawn = ET.fromstring(plot.read_text())
    texts = [t.text for t in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["gain", "one", "-1 ± 0.25", "two", "-2 ± 0.25",
                     "size_stderr", "one", "4", "two", "8"]  # fmt: skip
    widths = [float(r.attrib["width"]) for r in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.1)
    assert widths[3] == pytest.approx(2 * widths[2], abs=0.1)
    with pytest.raises(UsageError, match="a plot is an SVG file"):
        workspace.evaluate(["one"], chosen, plot=tmp_path / "bars.png")


def test_a_function_keeps_what_it_loaded_until_it_fails(
    workspace: Workspace, tmp_path: Path
) -> None:
    program = (
        "import os\n"
        "calls = 0\n"
        "def score(folder):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    print('noise')\n"
        "    if folder.endswith('two'): os._exit(3)\n"
        "    return {'calls': calls, 'pid': os.getpid()}\n"
    )
    chosen = suite(tmp_path, program, function="score:score")
    found = [f for _, f in workspace.evaluate(["one", "m", "two", "one", "m"], chosen)]
    assert [f if isinstance(f, LorahubError) else f["calls"] for f in found] == [
        1,
        2,
        found[2],
        1,
        2,
    ]
    assert "failed with exit code 3" in str(found[2])
    assert (found[0]["pid"], found[3]["pid"]) == (found[1]["pid"], found[4]["pid"])
    assert found[0]["pid"] != found[3]["pid"]
    for pid in (found[0]["pid"], found[3]["pid"]):
        assert not running(Path("/proc") / f"{pid:.0f}" / "status")


def test_an_unchanged_copy_of_a_source_is_read(workspace: Workspace, tmp_path: Path) -> None:
    before = score(workspace, "factors")
    copy = shutil.copytree(tmp_path / "one", tmp_path / "copy")
    workspace.pull([str(copy)])
    with (copy / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    assert score(workspace, "factors") == before
