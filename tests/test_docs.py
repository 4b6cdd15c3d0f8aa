"""The documents say what the code does, and the package holds what it should."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs import make_methods
from docs.make_cli import commands, render
from lorahub.cli.main import app
from lorahub.methods.describe import example
from lorahub.methods.registry import methods
from tests.commands import call_here
from tests.conftest import ROOT, write_adapter

NAMES = ("law", "medicine")
README = (ROOT / "README.md").read_text()


def test_cli_document_is_current() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert text == render(), "run `python -m docs.make_cli`"
    for verb in ("pull", "ls", "search", "show", "rm", "compare", "suggest", "merge", "verify",
                 "export", "compress", "push", "methods", "config path", "db check",
                 "version"):  # fmt: skip
        assert f"lorahub {verb}" in {name for name, _ in commands(app)}


def test_methods_document_is_current() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    assert text == make_methods.render(), "run `python -m docs.make_methods`"


def test_the_examples_of_methods_are_commands(home: Path, tmp_path: Path) -> None:
    modules = {f"layers.{i}.q": (48, 40, 16) for i in range(2)}
    folders = [write_adapter(tmp_path / n, modules, seed=i) for i, n in enumerate(NAMES)]
    runner = CliRunner()
    assert runner.invoke(app, ["pull", *map(str, folders)]).exit_code == 0
    for method in methods().values():
        words = shlex.split(example(method))
        done = runner.invoke(app, [*words[1:], "--dry-run"])
        assert done.exit_code == 0, (words, done.output)


def test_every_method_says_when_to_use_it() -> None:
    for method in methods().values():
        doc = " ".join(method.doc.split())
        assert re.search(r"[Uu]se it |It is here for parity only; ", doc), method.name


def test_readme_names_every_method() -> None:
    merging = README[README.index("## What it merges") : README.index("## Where things are")]
    named = set(re.findall(r"`(\w+)`", merging))
    assert set(methods()) <= named
    assert set(re.findall(r"^\| `(\w+)` \|", merging, re.MULTILINE)) <= set(methods())


def test_readme_python_runs(home: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def test_recipe_of_the_document_is_one(tmp_path: Path) -> None:
    from lorahub.recipe_file import load_recipe

    document = (ROOT / "docs" / "recipes.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    assert recipe.sources[1].adapter == str(tmp_path / "my-adapter")


def test_readme_commands_parse(home: Path) -> None:
    blocks = "".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    verbs = set(re.findall(r"^lorahub (\w+)", blocks, re.MULTILINE))
    assert {"pull", "merge", "push"} <= verbs
    for verb in verbs:
        assert call_here(verb, "--help").returncode == 0


def test_wheel_holds_the_three_packages_and_the_migrations(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    builder = hatchling.WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(path).namelist())
    tops = {n.split("/")[0] for n in names}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tops == {"lorahub", "store", "tui", f"lorahub_kit-{version}.dist-info"}
    assert {"lorahub/migrations/versions/0001_first_schema.py", "lorahub/licenses.toml"} <= names


def test_a_shadowing_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import lorahub"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "store.py' hides it" in done.stderr


def test_one_import_reaches_what_the_documents_name() -> None:
    names = {
        name
        for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for name in re.findall(r"\blorahub\.([A-Za-z]\w*(?:\.[A-Z]\w*)?)\(", path.read_text())
    }
    assert "executors.Ray" in names
    code = "import lorahub; " + "; ".join(f"lorahub.{name}" for name in sorted(names))
    subprocess.run([sys.executable, "-c", code], check=True)


def test_methods_show_says_what_the_document_says() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    for method in methods().values():
        shown = CliRunner().invoke(app, ["methods", "show", method.name]).stdout
        section = text[text.index(f"\n## {method.name}\n") :].split("\n## ")[1]
        for line in section.splitlines()[1:]:
            if line.startswith("| `"):
                name, values, _, meaning = (cell.strip() for cell in line.strip("|").split("|"))
                assert f"{name.strip('`')}\t{values}\t" in shown
                assert f"\t{meaning}\n" in shown
            elif line and not line.startswith(("|", "```", f"{method.title}. ")):
                assert line in shown.replace("``", "`"), line
