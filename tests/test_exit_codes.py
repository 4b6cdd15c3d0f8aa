"""One rule for exit codes and hints over every verb: the same mistake is answered alike."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner, Result

from lorahub import output
from lorahub.cli import sink
from lorahub.cli.main import app
from lorahub.errors import ConflictError, ExitCode
from lorahub.parallel import usable_cpus
from lorahub.workspace import Workspace
from store import AdapterFilter
from tests.conftest import EXAMPLES, write_adapter

MODULES = {"model.layers.0.q": (12, 8, 3)}


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with the adapters ``a`` and ``b``, and a folder to work in."""
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / name, MODULES, seed=seed)
    assert run("pull", tmp_path / "a", tmp_path / "b").exit_code == 0
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield home


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("target", "says"), [("/dev/full", "cannot be written to stdout (No space left"), (None, "")]
)
def test_a_stdout_that_takes_nothing(
    home: Path, target: str | None, says: str, buffered: bool
) -> None:
    """None is a pipe whose reader is gone."""
    if target is None:
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    words = [sys.executable, "-c", "from lorahub.__main__ import run; run()", "version"]
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    with os.fdopen(writer, "w") as stdout:
        done = subprocess.run(
            words, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr.startswith(f"error: the results {says}" if says else "")
    assert len(done.stderr.splitlines()) == bool(says)


def test_a_picture_on_a_narrow_terminal_keeps_its_legend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    sink.print_picture("one\n" + "legend " * 10 + "end")
    assert "end" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["s3:/bucket/a", "https://host/owner/a", "gs:/x"])
def test_a_misspelt_url_is_no_folder(there: Path, place: str) -> None:
    for words in (["export", "a", place], ["merge", "a", "--method", "cat", "-o", place]):
        done = run(*words)
        assert done.exit_code == ExitCode.USAGE, done.stderr
        assert "hint: " in done.stderr
    assert list(Path().iterdir()) == []


def test_a_file_where_the_name_of_a_repository_could_stand(there: Path) -> None:
    Path("sub").mkdir()
    Path("sub/notes.txt").write_text("")
    done = run("pull", "sub/notes.txt")
    assert done.exit_code == ExitCode.NOT_FOUND
    assert "is a file, but an adapter is a folder" in done.stderr


@pytest.mark.parametrize(
    "option", ["--scale 0", "--no-normalize", "--seed 1", "--rank 2", "-p k=0", "--weights-for q=0"]
)
def test_no_option_beside_a_recipe_is_passed_over(there: Path, option: str) -> None:
    Path("r.yaml").write_text("method: svd\nsources: [{adapter: a}]\noutput: {name: x}\n")
    done = run("merge", "r.yaml", *option.split())
    assert done.exit_code == ExitCode.USAGE, done.stdout
    assert "cannot be given beside a recipe" in done.stderr


def test_a_file_in_place_of_its_folder_is_answered_by_the_folder(there: Path) -> None:
    done = run("merge", "../a/adapter_model.safetensors", "b", "--method", "cat", "--name", "x")
    assert done.exit_code == ExitCode.NOT_FOUND
    assert "is a file, but an adapter is a folder" in done.stderr
    assert "hint: name /" in done.stderr
    done = run("extract", "../a/adapter_model.safetensors", "../b", "--rank", 2, "--name", "x")
    assert done.exit_code == ExitCode.NOT_FOUND
    assert "is a file" in done.stderr


MISSING = [
    "show ./no", "show no", "show no.mos#x", "pull ./no", "pull no.mos#x", "inspect ./no",
    "compare ./no a", "suggest ./no a", "similar ./no", "lineage ./no", "impact ./no",
    "merge ./no --method cat --name x", "merge no.mos#x --method cat --name x", "merge no.yaml",
    "merge no.yaml --dry-run", "verify ./no", "export ./no out", "push ./no a/b", "repro ./no",
    "rm ./no", "update no", "resize ./no --rank 2 --name x", "prune ./no --budget 50% --name x",
    "compress ./no --reduction 0.2 -o c", "extract ./no ./no --rank 2 --name x",
    "pack ./no -o p.mos", "pack --info no.mos", "unpack no.mos", "unpack no.mos x",
    "batch no.yaml", "eval a --with no.yaml", "eval ./no --with factors",
    "search-weights no.yaml --with factors", "recipes lock no.yaml", "recipes check no.yaml",
    "recipes import no.yaml", "import-catalog no.jsonl", "base unalias no",
]  # fmt: skip


@pytest.mark.parametrize("words", MISSING)
def test_what_is_not_there_is_not_found(there: Path, words: str) -> None:
    done = run(*words.split())
    assert done.exit_code == ExitCode.NOT_FOUND, done.stderr
    assert "no" in done.stderr
    assert "hint: " in done.stderr
    assert not any(Path().iterdir())


# What describes the result is a recipe, wherever it is said; all else is the command line's.
VALUES = {
    ExitCode.USAGE: [
        "merge a --method svd --rank x --name m", "merge a --method svd --energy x --name m",
        "merge a --method cat --device nowhere --name m", "merge a --method cat --name ../m",
        "merge a --method cat --workers 0 --name m", "merge a --method svd -p rank --name m",
        "resize a --rank x --name m", "suggest a b --rank x", "pack a -o p.mos --bytes some",
        "pack a -o p.mos --ratio 0", "pack a -o p.mos --error 2", "cluster --cosine 2",
        "similar a --by taste", "ls --rank x", "ls --size 3XB", "ls --source x", "ls --limit 0",
        "discover --sort taste", "batch r.yaml --jobs 0", "export a out --format odd",
        "compress a --reduction 2 -o c", "push a no-owner", "merge a --method auto --name m",
        "compare a", "suggest a",
    ],
    ExitCode.INVALID: [
        "merge a:much --method cat --name m", "merge a:nan --method cat --name m",
        "merge a --method catt --name m", "merge a --method svd --rank 0 --name m",
        "merge a --method svd --rank 99 --name m", "merge a --method svd --energy 2 --name m",
        "merge a --method svd -p rnak=1 --name m", "merge a --method cat --seed -1 --name m",
        "merge a --method cat --dtype F8 --name m", "merge a --method cat --scale nan --name m",
        "merge a --method svd --budget x --name m", "merge a --method cat --pack x --name m",
        "merge a --method svd --budget 1GB --allocate x --name m",
        "merge a --method cat --weights-for x --name m",
        "resize a --rank 0 --name m", "prune a --budget x --name m", "suggest a b --rank 0",
        "suggest a b --budget x", "extract a b --rank 0 --name m",
        "extract a b --energy 2 --name m",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"), [(words, code) for code, some in VALUES.items() for words in some]
)
def test_values_that_cannot_be(there: Path, words: str, code: ExitCode) -> None:
    done = run(*words.split())
    assert done.exit_code == code, done.stderr
    assert "hint: " in done.stderr or "Invalid value" in done.stderr
    assert not any(Path().iterdir())
    assert json.loads(run("ls", "--json").stdout)[0]["name"] == "a"


@pytest.mark.parametrize(
    "words", ["export a FOLDER", "merge a --method cat -o FOLDER", "pack a -o FOLDER",
              "resize a --rank 1 -o FOLDER"],
)  # fmt: skip
def test_an_empty_place_is_none(there: Path, words: str) -> None:
    done = run(*("" if word == "FOLDER" else word for word in words.split()))
    assert done.exit_code == ExitCode.USAGE
    assert "it is empty" in done.stderr
    assert not any(Path().iterdir())


def test_an_empty_reference_is_not_the_current_folder(there: Path) -> None:
    write_adapter(Path("here"), MODULES, seed=5)
    os.chdir("here")
    for verb in ("pull", "show", "inspect"):
        assert run(verb, "").exit_code == ExitCode.NOT_FOUND


def test_the_hint_is_about_what_went_wrong(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, full in ((errno.ENOSPC, True), (errno.EACCES, False), (errno.ENOENT, False)):
        hint = output.unwritable(Path("x"), OSError(code, os.strerror(code))).hint
        assert hint is not None
        assert ("free some space" in hint) == full
        assert "write to another folder" in hint
    monkeypatch.setenv("LORAHUB_HOME", __file__)
    done = run("ls")
    assert done.exit_code == ExitCode.USAGE
    assert f"{__file__}: is not a folder" in done.stderr
    assert "LORAHUB_HOME" in done.stderr.split("hint: ")[1]


def test_a_plot_makes_its_folder(there: Path) -> None:
    assert run("compare", "a", "b", "--plot", "new/deep/how.svg").exit_code == 0
    assert Path("new/deep/how.svg").read_text().startswith("<svg")


def test_force_replaces_results_only(there: Path) -> None:
    mine = Path("mine")
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    words = ("merge", "a", "--method", "cat", "--force", "-o")
    done = run(*words, mine)
    assert done.exit_code == ExitCode.CONFLICT
    assert "not what a merge made" in done.stderr
    assert (mine / "thesis.txt").read_text() == "mine"
    (mine / "thesis.txt").unlink()
    assert run(*words, mine).exit_code == 0
    assert run(*words, mine).exit_code == 0


def test_a_merge_to_nothing_says_so(there: Path) -> None:
    zero = "warning: all weights, or the scale, are zero"
    for words in (("a:0", "b:0"), ("a", "b", "--scale", 0), ("a", "--weights-for", "q=0")):
        done = run("merge", *words, "--method", "cat", "--name", "m", "--dry-run")
        assert zero in done.stderr, words
    for words in (("a:0", "b"), ("a:0", "b:0", "--weights-for", "q=1")):
        done = run("merge", *words, "--method", "cat", "--name", "m", "--dry-run")
        assert done.exit_code == 0
        assert zero not in done.stderr


def test_auto_needs_something_to_choose_about(there: Path) -> None:
    done = run("merge", "a", "--method", "auto", "--name", "m")
    assert "'auto' chooses how to merge at least two adapters" in done.stderr
    assert "'cat'" in done.stderr.split("hint: ")[1]


def test_sizes_have_units(there: Path) -> None:
    limits = {}
    for text in ("1800", "1800 bytes", "1.8kB"):
        run("pack", "a", "-o", "p.mos", "--bytes", text, "--force")
        limits[text] = Path("p.mos").read_bytes()
    assert len(set(limits.values())) == 1
    assert len(limits["1800"]) <= 1800
    done = run("pack", "a", "-o", "p.mos", "--bytes", "1MiB", "--force")
    assert done.exit_code == 0
    assert "exact" in done.stdout


def test_a_packs_member_is_a_reference_everywhere(there: Path) -> None:
    assert run("pack", "a", "-o", "p.mos").exit_code == 0
    assert run("rm", "a").exit_code == 0
    done = run("show", "p.mos#a")
    assert done.exit_code == ExitCode.NOT_FOUND
    assert "lorahub pull p.mos#a" in done.stderr
    assert run("pull", "p.mos#a").exit_code == 0
    for verb in ("show", "inspect", "lineage", "impact", "similar"):
        assert run(verb, "p.mos#a").exit_code == 0
    assert run("export", "p.mos#a", "out").exit_code == 0
    assert "NAME" in run("show", "p.mos").stderr
    assert run("rm", "p.mos#a").exit_code == 0


def test_a_source_whose_name_is_taken_has_a_way_out(home: Path, tmp_path: Path) -> None:
    for i, seed in enumerate((1, 2, 2)):
        write_adapter(tmp_path / str(i) / "same", MODULES, seed=seed)
    for i in (0, 1):
        assert run("pull", tmp_path / str(i) / "same").exit_code == 0
    done = run("merge", tmp_path / "2" / "same", "--method", "cat", "--name", "m")
    assert done.exit_code == ExitCode.CONFLICT
    assert "lorahub pull REF --name NAME" in done.stderr
    assert run("pull", tmp_path / "2" / "same", "--name", "third").exit_code == 0
    assert run("merge", tmp_path / "2" / "same", "--method", "cat", "--name", "m").exit_code == 0


def test_bases_are_filtered_alike(home: Path, tmp_path: Path) -> None:
    bases = {"x": "meta-llama/Llama-2-7b-hf", "y": "unsloth/llama-2-7b", "z": "org/other"}
    for seed, (name, base) in enumerate(bases.items()):
        write_adapter(tmp_path / name, MODULES, seed=seed, base=base)
    assert run("pull", *(tmp_path / name for name in bases)).exit_code == 0
    for base in (*bases.values(), "llama", "OTHER", "none"):
        listed = json.loads(run("ls", "--base", base, "--json").stdout)
        mapped = json.loads(run("map", "--base", base, "--json").stdout)
        assert {r["name"] for r in mapped} == {r["name"] for r in listed}, base


def test_no_lock_stays(there: Path) -> None:
    run("merge", "a", "b", "--method", "cat", "--name", "m")
    run("export", "m", "out")
    assert [p.name for p in (there / "locks").iterdir()] == [".guard.lock"]


def test_a_lock_that_goes_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside, most, entered = [], [], []

    def work(number: int) -> None:
        while entered.count(number) < 20:
            try:
                with output.held(tmp_path / "one.lock", "busy"):
                    inside.append(number)
                    most.append(len(inside))
                    entered.append(number)
                    inside.remove(number)
            except ConflictError:
                continue

    threads = [Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(entered) == 6 * 20
    assert not (tmp_path / "one.lock").exists()


def test_cpus_are_counted_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cpus() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


def test_search_filters_before_it_limits(home: Path, tmp_path: Path) -> None:
    with Workspace.open() as workspace:
        for n in range(6):
            rank = 2 if n < 5 else 4
            write_adapter(tmp_path / f"word{n}", {"q": (12, 8, rank)}, seed=n)
        workspace.pull([str(tmp_path / f"word{n}") for n in range(6)])
        where = AdapterFilter(rank=(4, 4))
        found = workspace.catalog.search("word", limit=2, where=where)
        assert [row.name for row in found] == ["word5"]
        small = AdapterFilter(rank=(2, 2))
        pages = [
            row.name
            for offset in (0, 2, 4)
            for row in workspace.catalog.search("word", limit=2, offset=offset, where=small)
        ]
        assert sorted(pages) == [f"word{n}" for n in range(5)]
        assert workspace.catalog.search("wrod5", limit=2, where=where) == found


def test_a_dry_scan_counts_parents_as_the_scan_does(home: Path) -> None:
    with Workspace.open() as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "packages")])
    assert run("merge", "languages", "packages", "--method", "cat", "--name", "m").exit_code == 0
    assert run("merge", "m", "packages", "--method", "cat", "--name", "n").exit_code == 0
    with Workspace.open() as workspace:
        workspace.catalog.remove_all([workspace.get(name).id for name in ("m", "n", "packages")])
        dry, wet = workspace.scan(dry_run=True), workspace.scan()
        assert (dry.linked, len(dry.added)) == (wet.linked, len(wet.added)) == (2, 2)
        with workspace.catalog._write() as connection:
            connection.exec_driver_sql("DELETE FROM lineage WHERE reference = 'languages'")
            connection.exec_driver_sql("UPDATE lineage SET parent_id = NULL")
        dry, wet = workspace.scan(dry_run=True), workspace.scan()
        assert dry.linked == wet.linked > 0
