"""Bad input of every kind: the message names the file or object and the field, the hint says
what to do, and neither the catalog nor a folder holds anything that was not there before."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub.cli.composing import parse_source
from lorahub.errors import (
    AuthError,
    ConflictError,
    IncompatibleError,
    InvalidAdapterError,
    InvalidRecipeError,
    LorahubError,
    NetworkError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lorahub.recipe import make_recipe
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.loopback_hub import Drop, LoopbackHub, NotJson, Status

WEIGHTS = "adapter_model.safetensors"
MODULES = {"model.layers.0.q": (12, 8, 3), "model.layers.1.q": (12, 8, 3)}
KEY_A = "base_model.model.model.layers.0.q.lora_A.weight"
KEY_B = "base_model.model.model.layers.0.q.lora_B.weight"


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with the adapters ``one`` and ``two``."""
    with Workspace.open() as workspace:
        for seed, name in enumerate(("one", "two")):
            write_adapter(tmp_path / name, MODULES, seed=seed)
        done = workspace.pull([str(tmp_path / name) for name in ("one", "two")])
        assert [p.state for p in done] == ["added", "added"]
        yield workspace


def held(folder: Path) -> set[str]:
    """Every file below and every partial folder, but locks and the database's own files."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (path.is_file() or ".partial-" in path.name)
        and "locks" not in path.parts
        and not path.name.startswith("catalog.db")
    }


def refused(
    workspace: Workspace,
    tmp_path: Path,
    act: Callable[[], object],
    kind: type[LorahubError],
    names: list[str],
    remedy: str,
) -> None:
    before = held(tmp_path), [row.name for row in workspace.adapters()]
    with pytest.raises(LorahubError) as caught:
        act()
    error = caught.value
    assert type(error) is kind, repr(error)
    for name in names:
        assert name in error.message, error.message
    assert remedy in (error.hint or ""), error.hint
    assert (held(tmp_path), [row.name for row in workspace.adapters()]) == before
    assert not workspace.catalog.check()


def pull(workspace: Workspace, reference: object, **options: Any) -> None:
    (done,) = workspace.pull([str(reference)], **options)
    if done.error is not None:
        raise done.error


def merge(workspace: Workspace, *sources: str, **recipe: Any) -> None:
    body = {"method": "svd", "sources": [{"adapter": s} for s in sources], "output": {"name": "m"}}
    workspace.merge(make_recipe(body | recipe, "command line"), workers=1)


# --- files ---


def raw(folder: Path, edit: Callable[[bytes], bytes]) -> None:
    path = folder / WEIGHTS
    path.write_bytes(edit(path.read_bytes()))


def header(folder: Path, edit: Callable[[str], str]) -> None:
    def change(body: bytes) -> bytes:
        (length,) = struct.unpack("<Q", body[:8])
        text = edit(body[8 : 8 + length].decode()).encode()
        return struct.pack("<Q", len(text)) + text + body[8 + length :]

    raw(folder, change)


def tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    found = load_file(folder / WEIGHTS)
    edit(found)
    save_file({k: t.contiguous() for k, t in found.items()}, folder / WEIGHTS)


def first_offset(text: str) -> str:
    return re.sub(r'"data_offsets":\[0,(\d+)\]', r'"data_offsets":[0,9\1]', text, count=1)


def twice(text: str) -> str:
    body = json.loads(text)
    return text[:-1].rstrip("} ") + "}," + json.dumps({KEY_A: body[KEY_A]})[1:]


FILES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "not an adapter": (
        lambda f: (f / WEIGHTS).unlink(), ["is not an adapter", WEIGHTS], "name the folder",
    ),
    "truncated": (lambda f: raw(f, lambda b: b[:-5]), [WEIGHTS, "truncated"], "fresh copy"),
    "length lies": (
        lambda f: raw(f, lambda b: struct.pack("<Q", 1 << 40) + b[8:]),
        [WEIGHTS, "header of 1099511627776 bytes"], "fresh copy",
    ),
    "offsets lie": (lambda f: header(f, first_offset), [WEIGHTS, "data_offsets"], "fresh copy"),
    "duplicated key": (lambda f: header(f, twice), [WEIGHTS, KEY_A, "twice"], "fresh copy"),
    "A without B": (
        lambda f: tensors(f, lambda t: t.pop(KEY_B)), [WEIGHTS, KEY_A, "no lora_B"], "save",
    ),
    "ranks disagree": (
        lambda f: tensors(f, lambda t: t.update({KEY_B: torch.ones(12, 2)})),
        [WEIGHTS, "model.layers.0.q", "3 rows", "2 columns"], "save the adapter again",
    ),
    "alpha is text": (
        lambda f: (f / "adapter_config.json").write_text('{"r": 3, "lora_alpha": "16"}'),
        ["adapter_config.json", "'lora_alpha'"], "correct the config",
    ),
    "config is no JSON": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        ["adapter_config.json", "not JSON"], "fresh copy",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files(workspace: Workspace, tmp_path: Path, case: str) -> None:
    damage, names, remedy = FILES[case]
    folder = write_adapter(tmp_path / "bad", MODULES, seed=7)
    damage(folder)
    refused(
        workspace,
        tmp_path,
        lambda: pull(workspace, folder),
        InvalidAdapterError,
        [str(folder), *names],
        remedy,
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(workspace: Workspace, tmp_path: Path, value: float) -> None:
    folder = write_adapter(tmp_path / "bad", MODULES, seed=7)
    tensors(folder, lambda t: t[KEY_B].fill_(value))
    pull(workspace, folder)
    refused(
        workspace,
        tmp_path,
        lambda: merge(workspace, "one", "bad"),
        InvalidAdapterError,
        [str(folder / WEIGHTS), KEY_B, "NaN or Inf"],
        "leave it out",
    )


# --- adapters that do not fit, and recipes ---


ADAPTERS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "mixed bases": ({"base": "other/base"}, ["'bad' is for other/base"], "--base"),
    "base unknown": ({"base": None}, ["'bad'", "base_model_name_or_path"], "--base"),
    "other shape": (
        {"modules": {"model.layers.0.q": (12, 9, 3)}},
        ["model.layers.0.q", "12x8", "12x9", "'one'", "'bad'"], "leave one out",
    ),
    "nothing shared": ({"modules": {"head": (12, 8, 3)}}, ["'one'", "shares no"], "leave it out"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_that_do_not_fit(workspace: Workspace, tmp_path: Path, case: str) -> None:
    changes, names, remedy = ADAPTERS[case]
    options = {"modules": MODULES, "seed": 7} | changes
    pull(workspace, write_adapter(tmp_path / "bad", **options))
    refused(
        workspace,
        tmp_path,
        lambda: merge(workspace, "one", "bad"),
        IncompatibleError,
        names,
        remedy,
    )


RECIPES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "unknown method": ({"method": "svdd"}, ["'svdd'"], "did you mean 'svd'"),
    "unknown parameter": (
        {"parameters": {"rnak": 3}}, ["method 'svd'", "'rnak'"], "did you mean 'rank'",
    ),
    "density 0": (
        {"method": "ties", "parameters": {"density": 0}},
        ["'ties'", "'density'", "got 0"], "methods show ties",
    ),
    "density over 1": (
        {"method": "dare", "parameters": {"density": 1.5}},
        ["'dare'", "'density'", "got 1.5"], "methods show dare",
    ),
    "rank 0": ({"parameters": {"rank": 0}}, ["'svd'", "'rank'", "got 0"], "methods show svd"),
    "rank too high": ({"parameters": {"rank": 99}}, ["rank 99", "6"], "from 1 to 6"),
    "weight is text": (
        {"sources": [{"adapter": "one", "weight": "much"}]},
        ["command line", "'sources.0.weight'", "number"], "correct the key",
    ),
    "weight is NaN": (
        {"sources": [{"adapter": "one", "weight": math.nan}]},
        ["command line", "'sources.0.weight'", "finite"], "correct the key",
    ),
    "unknown key": ({"sorces": []}, ["command line", "'sorces'"], "correct the key"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(workspace: Workspace, tmp_path: Path, case: str) -> None:
    changes, names, remedy = RECIPES[case]
    refused(
        workspace,
        tmp_path,
        lambda: merge(workspace, "one", "two", **changes),
        InvalidRecipeError,
        names,
        remedy,
    )


def test_a_weight_on_the_command_line() -> None:
    with pytest.raises(InvalidRecipeError, match=r"'one:much'.*'much' is not a number") as caught:
        parse_source("one:much")
    assert "REF:WEIGHT" in (caught.value.hint or "")


# --- where results go ---


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "a\nb", "/abs"])
def test_a_name_that_would_leave_its_folder(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    refused(
        workspace,
        tmp_path,
        lambda: merge(workspace, "one", output={"name": name}),
        UsageError,
        ["cannot be a name"],
        "letters, digits",
    )


def test_output_exists(workspace: Workspace, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    acts: list[tuple[Callable[[], object], list[str], str]] = [
        (lambda: merge(workspace, "one", output={"folder": taken}), [str(taken)], "--force"),
        (lambda: merge(workspace, "one", output={"name": "two"}), ["'two'"], "--force"),
        (lambda: workspace.export("one", taken), [str(taken), "exists"], "another folder"),
    ]
    for act, names, remedy in acts:
        refused(workspace, tmp_path, act, ConflictError, names, remedy)
    assert (taken / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("verb", ["merge", "export"])
def test_a_disk_that_cannot_be_written(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, verb: str
) -> None:
    out = tmp_path / "out"

    def fail(**_: object) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    refused(
        workspace,
        tmp_path,
        lambda: (
            workspace.export("one", out)
            if verb == "export"
            else merge(workspace, "one", output={"folder": out})
        ),
        StorageError,
        [str(out), os.strerror(code)],
        "write to another folder",
    )


def test_a_file_in_the_way(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    refused(
        workspace,
        tmp_path,
        lambda: workspace.export("one", out),
        StorageError,
        [str(out)],
        "another folder",
    )


# --- the Hub ---


HUB: dict[str, tuple[Callable[[LoopbackHub], object], str, type[LorahubError], list[str], str]] = {
    "no such repository": (
        lambda h: None, "ann/none", NotFoundError, ["ann/none", "does not exist"], "spelling",
    ),
    "private": (
        lambda h: h.add_repo("ann/x", {}, private=True), "ann/x", NotFoundError,
        ["ann/x", "private"], "--token-env",
    ),
    "gated": (
        lambda h: h.add_repo("ann/x", {WEIGHTS: b""}, gated="manual"), "ann/x", AuthError,
        ["ann/x", "gated"], "ask for access",
    ),
    "revision gone": (
        lambda h: h.add_repo("ann/x", {}), "ann/x@gone", NotFoundError,
        ["ann/x@gone", "no such revision"], "see its page",
    ),
    "hostile file name": (
        lambda h: h.add_repo("ann/x", {"../evil": b""}), "ann/x", InvalidAdapterError,
        ["ann/x", "'../evil'", "leave its folder"], "do not use",
    ),
    "429 for ever": (
        lambda h: h.faults.add("GET", "/api/models", Status(429, {"Retry-After": "0"})), "ann/x",
        NetworkError, ["ann/x", "429"], "try again later",
    ),
    "500 for ever": (
        lambda h: h.faults.add("GET", "/api/models", Status(500)), "ann/x",
        NetworkError, ["ann/x", "500"], "try again later",
    ),
    "no answer": (
        lambda h: h.faults.add("GET", "/api/models", Drop()), "ann/x",
        NetworkError, ["ann/x", "does not answer"], "try again",
    ),
    "a login page": (
        lambda h: h.faults.add("GET", "/api/models", NotJson()), "ann/x",
        NetworkError, ["ann/x", "not one of a Hub"], "login page",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HUB)
def test_the_hub(
    hub: LoopbackHub,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    prepare, reference, kind, names, remedy = HUB[case]
    prepare(hub)
    hub.add_user("bob", "hf_bob")
    monkeypatch.setenv("BOB", "hf_bob")
    refused(
        workspace,
        tmp_path,
        lambda: pull(workspace, reference, endpoint=hub.endpoint, token_env="BOB"),
        kind,
        names,
        remedy,
    )


def test_no_token(hub: LoopbackHub, workspace: Workspace, tmp_path: Path) -> None:
    refused(
        workspace,
        tmp_path,
        lambda: workspace.push("one", "ann/x", endpoint=hub.endpoint),
        AuthError,
        ["no Hub token"],
        "--token-env",
    )


# --- what comes in goes out as it was ---


def test_an_export_keeps_every_field_of_the_config(workspace: Workspace, tmp_path: Path) -> None:
    config = {
        "lora_alpha": 2.75,
        "use_rslora": True,
        "alpha_pattern": {r"layers\.1\..*": 0.5},
        "target_modules": r".*\.q",
        "from_the_future": {"deep": [1, None, "é"]},
    }
    folder = write_adapter(tmp_path / "odd", MODULES, config=config)
    pull(workspace, folder)
    assert workspace.get("odd").info.config["from_the_future"] == {"deep": [1, None, "é"]}
    out = workspace.export("odd", tmp_path / "out")
    for name in ("adapter_config.json", WEIGHTS):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    pull(workspace, out)
    again = workspace.get(str(out))
    assert again.info.content_hash == workspace.get("odd").info.content_hash
    assert [m.scaling for m in again.info.modules] == [2.75 / 3**0.5, 0.5 / 3**0.5]
