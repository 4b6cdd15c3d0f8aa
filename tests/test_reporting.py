"""Reports on batches: tables, charts and JSON that say what the outcomes say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from lorahub.batch import Outcome
from lorahub.cli.main import app
from lorahub.errors import NotFoundError, UsageError
from lorahub.reporting import MOST_NAMES, MOST_SERIES, chart, write_report
from tests.conftest import write_adapter

SWEEP = """\
method: svd
sources: [{adapter: one}, {adapter: two}]
matrix:
  parameters.rank: [1, 2, 4]
  sources.weight: [[1, 0.5], [0.5, 1]]
output: {name: 'm-{rank}-{weight}'}
"""


def outcome(name: str, truncation: float | None = None, retained: float | None = None) -> Outcome:
    return Outcome(name, "merged", Path("/x") / name, 0.5, 4, truncation, retained)


def panels(text: str) -> dict[str, list[list[tuple[float, float]]]]:
    """The lines of every panel of a chart, by its title."""
    svg = "{http://www.w3.org/2000/svg}"
    found = {}
    for group in ET.fromstring(text).iter(f"{svg}g"):
        title = str(next(group.iter(f"{svg}text")).text)
        found[title] = [
            [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
            for line in group.iter(f"{svg}polyline")
        ]
    return found


def heights(line: list[tuple[float, float]]) -> list[float]:
    """Where the points of a line stand between the lowest, 0, and the highest, 1."""
    ys = [y for _, y in line]
    return [(max(ys) - y) / (max(ys) - min(ys)) for y in ys]


def test_a_line_per_combination_of_the_other_axes() -> None:
    outcomes, labels = [], {}
    for i, rank in enumerate(("1", "2", "8")):
        for j, dtype in enumerate(("F32", "BF16")):
            name = f"m{rank}{dtype}"
            outcomes.append(outcome(name, 0.1 * i**2 + 0.01 * j, 1 - 0.2 * i))
            labels[name] = {"parameters.rank": rank, "dtype": dtype, "method": "svd"}
    text = chart(outcomes, labels)
    assert text is not None
    found = panels(text)
    assert list(found) == [
        "truncation over parameters.rank", "least kept over parameters.rank",
        "truncation over dtype", "least kept over dtype",
    ]  # fmt: skip
    first = found["truncation over parameters.rank"]
    assert len(first) == 2
    assert heights(first[0]) == pytest.approx([0, 0.25, 1], abs=0.01)
    xs = [x for x, _ in first[0]]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert heights(found["least kept over parameters.rank"][0]) == pytest.approx([1, 0.5, 0])
    assert len(found["truncation over dtype"]) == 3
    assert ">rank 8<" in text


def test_many_combinations_become_their_mean() -> None:
    outcomes, labels = [], {}
    for seed in range(MOST_SERIES + 1):
        for x in range(3):
            name = f"m{seed}-{x}"
            outcomes.append(outcome(name, float(seed % 2 + x), 0.5))
            labels[name] = {"x": str(x), "seed": str(seed)}
    text = chart(outcomes, labels)
    assert text is not None
    (line,) = panels(text)["truncation over x"]
    assert heights(line) == pytest.approx([0, 0.5, 1], abs=0.01)
    assert f"mean of {MOST_SERIES + 1}" in text


def test_without_axes_the_results_are_named_while_they_can_be_read() -> None:
    text = chart([outcome(f"r<{i}>", i / 10, 0.5) for i in range(4)], {})
    assert text is not None
    (line,) = panels(text)["truncation over result"]
    assert heights(line) == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.001)
    assert "r&lt;3&gt;" in text
    assert chart([outcome("one", 0.1, 0.5), outcome("failed")], {}) is None
    assert chart([outcome(f"r{i}", 0.1, 0.5) for i in range(MOST_NAMES + 1)], {}) is None


def test_reports_as_files(tmp_path: Path) -> None:
    failed = Outcome("no", "failed", Path("/x/no"), error=NotFoundError("there is no x", hint="y"))
    outcomes = [outcome("a", 0.5, 0.25), failed, outcome("b", 0.25, 0.5)]
    write_report(tmp_path / "my report.md", outcomes, {})
    text = (tmp_path / "my report.md").read_text()
    assert "| a | merged | 4 | 50.00% | 25.0% | 0.50 |" in text
    assert "- no: there is no x" in text
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert picture == "my%20report.svg"
    assert ET.parse(tmp_path / "my report.svg").getroot().tag.endswith("svg")
    write_report(tmp_path / "r.json", outcomes, {"a": {"x": "1"}})
    body = json.loads((tmp_path / "r.json").read_text())
    assert (body["version"], body["counts"]) == (1, {"failed": 1, "merged": 2})
    assert body["merges"][0] == {
        "name": "a", "state": "merged", "folder": "/x/a", "seconds": 0.5, "rank": 4,
        "truncation": 0.5, "retained": 0.25, "error": None, "axes": {"x": "1"},
    }  # fmt: skip
    assert body["merges"][1]["error"] == {
        "code": "not_found", "message": "there is no x", "hint": "y",
    }  # fmt: skip
    write_report(tmp_path / "one.md", outcomes[:2], {})
    assert not (tmp_path / "one.svg").exists()
    assert "![" not in (tmp_path / "one.md").read_text()
    with pytest.raises(UsageError, match=r"r\.txt: its name does not say"):
        write_report(tmp_path / "r.txt", outcomes, {})


def test_the_command_charts_a_sweep(home: Path, tmp_path: Path) -> None:
    def command(*words: str) -> Any:
        return CliRunner().invoke(app, list(words))

    for seed, name in enumerate(("one", "two")):
        write_adapter(tmp_path / name, {"layers.0.q_proj": (24, 32, 3)}, seed=seed)
        assert command("pull", str(tmp_path / name)).exit_code == 0
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP)
    refused = command("batch", str(sweep), "--report", str(tmp_path / "r.html"))
    assert refused.exit_code == 2
    assert "m-1" not in command("ls").stdout
    assert command("batch", str(sweep), "--report", str(tmp_path / "r.md")).exit_code == 0
    found = panels((tmp_path / "r.svg").read_text())
    assert len(found) == 4
    for line in found["truncation over parameters.rank"]:
        assert heights(line) == sorted(heights(line), reverse=True)  # a higher rank cuts less
    for line in found["least kept over parameters.rank"]:
        assert heights(line) == sorted(heights(line))
    assert command("batch", str(sweep), "--report", str(tmp_path / "r.json")).exit_code == 0
    merges = json.loads((tmp_path / "r.json").read_text())["merges"]
    assert [m["axes"]["parameters.rank"] for m in merges] == ["1", "1", "2", "2", "4", "4"]
    assert [m["state"] for m in merges] == ["unchanged"] * 6
