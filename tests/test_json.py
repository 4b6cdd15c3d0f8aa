"""``--json`` of every command: a bare array or object for reads, one envelope for acts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs.make_cli import commands
from lorahub.cli.main import app
from tests.conftest import write_adapter
from tests.loopback_hub import LoopbackHub

MODULES = {"model.layers.0.q": (12, 8, 3), "model.layers.1.q": (12, 8, 3)}
HUB = "--endpoint {hub} --token-env TOKEN"

READS = [
    "config path", "config show", "version", "methods", "methods show svd", "recipes check r.yaml",
    "recipes import peft.yaml", "base ls", "base show tests/base", "db path", "db stats", "ls",
    "search a", "show a", "lineage m", "impact a", "similar a", "duplicates", "cluster", "map",
    "compare a b", "inspect a", "suggest a b", "update", f"discover {HUB}",
]  # fmt: skip
ACTS = [
    f"pull a b ann/c {HUB}", "merge a b --method svd --rank 2 --name m", "recipes new r.yaml a b",
    "verify m", "scan", "recipes lock r.yaml", "batch r.yaml", "eval m",
    "resize a --rank 1 --name small",
    "search-weights r.yaml --with factors --objective interference --budget 1",
    "prune a --budget 50% --name less", "pack a -o p.mos", "unpack p.mos -o out", "export a copy",
    f"push m ann/m {HUB}", f"repro ann/m {HUB}", "base alias odd tests/base",
    "base unalias odd", "export-catalog all.jsonl", "import-catalog all.jsonl", "db check",
    "db upgrade", "gc", "rm b",
]  # fmt: skip
FAILURES = ["compress nowhere --reduction 0.1 -o new", "extract nowhere nowhere --rank 1 --name x"]
OTHERS = {"lorahub tui", "lorahub recipes schema"}
"""One opens a screen, the other prints JSON and nothing else."""


def run(words: str, hub: LoopbackHub) -> tuple[int, object]:
    done = CliRunner().invoke(app, [*words.format(hub=hub.endpoint).split(), "--json"])
    assert done.stdout, (words, done.stderr)
    return done.exit_code, json.loads(done.stdout)


def command_of(words: str) -> str:
    names = {name for name, _ in commands(app)}
    found = [" ".join(["lorahub", *words.split()[:count]]) for count in (2, 1)]
    return next(name for name in found if name in names)


def test_every_command_is_tried() -> None:
    tried = {command_of(words) for words in (*READS, *ACTS, *FAILURES)}
    assert tried | OTHERS == {name for name, _ in commands(app)}


def test_reads_are_bare_and_acts_in_an_envelope(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "hf_ann")
    for seed, name in enumerate("abc"):
        write_adapter(tmp_path / name, MODULES, seed=seed)
    card = b"---\ntags: [lora]\nbase_model: tests/base\n---\n"
    hub.add_repo("ann/c", {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
                 | {"README.md": card})  # fmt: skip
    (tmp_path / "peft.yaml").write_text("adapters: [a, b]\nweights: [1, 1]\nsvd_rank: 2\n")
    reads = iter(READS)
    for words in [*ACTS[:3], *reads, *ACTS[3:], *FAILURES]:
        code, body = run(words, hub)
        name = command_of(words).removeprefix("lorahub ")
        if words in READS:
            assert code == 0, (words, body)
            assert isinstance(body, list) or "version" not in body or name == "version", words
            continue
        assert isinstance(body, dict)
        assert (body["version"], body["command"]) == (1, name), words
        if words in FAILURES:
            assert (code, body["status"], body["error"]["code"]) == (3, "error", "not_found")
        else:
            assert (code, body["status"]) == (0, "ok"), (words, body)
            assert "result" in body
