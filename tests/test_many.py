"""A pull of 500 adapters from a Hub that does one thing in twenty wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.numpy import load, save
from typer.testing import CliRunner

from lorahub import formats
from lorahub.cli.main import app
from lorahub.errors import ExitCode, IntegrityError, NetworkError
from lorahub.hub import client
from lorahub.workspace import Workspace

from .conftest import write_adapter
from .loopback_hub import Fault, LoopbackHub, Stall, Status, always, chance
from .loopback_hub.faults import Gate
from .loopback_hub.wire import Reply

COUNT = 500
WEIGHTS = "adapter_model.safetensors"
BODIES = r"/resolve/|/repos/"


@dataclass(frozen=True)
class Somewhere:
    """A body cut, or with one bit flipped, or announced with another length, at random places."""

    what: str
    lands: bool = True

    def spoil(self, reply: Reply) -> Reply:
        draw = random.Random(reply.body)
        if not reply.body:
            return reply
        at = draw.randrange(len(reply.body))
        if self.what == "cut":
            return replace(reply, sent=at)
        if self.what == "length":
            return replace(reply, declared=len(reply.body) + draw.choice([-at, 1, 1000]))
        flipped = bytearray(reply.body)
        flipped[at] ^= 1 << draw.randrange(8)
        return replace(reply, body=bytes(flipped))


@pytest.fixture
def impatient(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The hub, to a client that takes two seconds of silence for a stall."""
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    yield hub


def fill(hub: LoopbackHub, folder: Path) -> dict[str, dict[str, bytes]]:
    """COUNT repositories whose weights all differ; what they hold."""
    weights = load((folder / WEIGHTS).read_bytes())
    config = (folder / "adapter_config.json").read_bytes()
    held = {}
    for n in range(COUNT):
        body = save({k: v * (n + 1) for k, v in weights.items()}, metadata={"format": "pt"})
        held[f"ann/x{n}"] = {
            WEIGHTS: body,
            "adapter_config.json": config,
            "README.md": b"---\nlicense: mit\n---\n# Number %d\n" % n,
        }
        hub.add_repo(f"ann/x{n}", held[f"ann/x{n}"])
    return held


def assert_right(workspace: Workspace, held: dict[str, dict[str, bytes]]) -> None:
    """Every catalogued adapter is byte by byte what was published."""
    for row in workspace.catalog.hub_adapters():
        for name, content in held[row.repo_id].items():
            assert (Path(row.folder) / name).read_bytes() == content, (row.repo_id, name)
        adapter = workspace.get(row.name)
        assert formats.inspect(adapter.origin.folder).content_hash == adapter.info.content_hash
    assert workspace.catalog.check() == ()


def test_500_adapters_through_faults(impatient: LoopbackHub, home: Path, tmp_path: Path) -> None:
    hub = impatient
    held = fill(hub, write_adapter(tmp_path / "a", {"q": (3, 4, 2)}))
    share = 0.05 / 6
    faults: list[tuple[str, str, Fault]] = [
        ("*", "", Status(429, {"Retry-After": "0"})),
        ("*", "", Status(500)),
        ("GET", BODIES, Somewhere("cut")),
        ("GET", BODIES, Somewhere("flip")),
        ("GET", BODIES, Somewhere("length")),
        ("*", "", Stall(Gate())),
    ]
    rules = [
        hub.faults.add(method, path, fault, chance(share, seed))
        for seed, (method, path, fault) in enumerate(faults)
    ]
    with Workspace.open() as workspace:
        pulled = workspace.pull(list(held))
        assert [p.reference for p in pulled] == list(held)
        failed = {p.reference: p.error for p in pulled if p.error is not None}
        assert_right(workspace, held)
        assert len(workspace.catalog.hub_adapters()) == COUNT - len(failed)
        assert all(rule.fired for rule in rules)
        assert sum(rule.fired for rule in rules) >= 0.02 * len(hub.log)
        odd = {
            k: repr(e)
            for k, e in failed.items()
            if not isinstance(e, NetworkError | IntegrityError)
        }
        assert odd == {}
        assert len(failed) <= 0.02 * COUNT
        for reference, error in failed.items():
            assert reference in error.message
        hub.faults.clear()
        again = workspace.pull(list(held))
        wanted = ["added" if p.reference in failed else "up to date" for p in again]
        assert [p.state for p in again] == wanted
        assert_right(workspace, held)
        assert len(workspace.catalog.hub_adapters()) == COUNT


def test_what_failed_of_several_is_reported(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"q": (3, 4, 2)})
    hub.add_repo("ann/good", folder=folder)
    hub.add_repo("ann/gated", folder=folder, gated="manual")
    hub.add_repo("ann/flipped", folder=folder)
    hub.faults.add("GET", "ann/flipped.*" + WEIGHTS, Somewhere("flip"), always)
    words = ["pull", "ann/good", "ann/gated", "ann/flipped", "ann/missing"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == ExitCode.PARTIAL
    body = json.loads(done.stdout)
    assert body["status"] == "partial"
    codes = [row["error"] and row["error"]["code"] for row in body["result"]]
    assert codes == [None, "auth", "integrity", "not_found"]
    assert "1 added, 3 failed" in done.stderr
    rows = json.loads(CliRunner().invoke(app, ["ls", "--json"]).stdout)
    assert [row["name"] for row in rows] == ["ann/good"]
