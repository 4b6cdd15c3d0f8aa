"""SIGKILL and Ctrl-C at seeded points of pull, merge and push: 54 times in all.

After each: the catalog is sound, no output is there that is not whole, and the same command
then succeeds. Points are reached by counting events or requests, never by waiting.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lorahub import formats
from lorahub.record import Record
from tests.conftest import EXAMPLES, ROOT
from tests.test_cli import LORAHUB, call, entries, filled, ok

__all__ = ["filled"]

MERGE = ("merge", "languages", "packages", "manuals", "--method", "svd", "--rank", "8",
         "--name", "m", "--events", "jsonl")  # fmt: skip
EVENTS = 2 * 37 + 1  # two phases over 36 modules, each announced, and the end


def start(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LORAHUB, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )


def stop_at_event(process: subprocess.Popen[str], count: int, how: signal.Signals) -> None:
    assert process.stdout is not None
    for _ in range(count):
        process.stdout.readline()
    process.send_signal(how)
    process.communicate(timeout=60)


def assert_sound(home: Path) -> None:
    done = call("db", "check")
    assert done.returncode == 0, done.stderr
    for row in json.loads(ok("ls", "--json")):
        shown = json.loads(ok("show", row["name"], "--json"))
        assert len(shown["info"]["modules"]) == row["modules"]
    if (home / "adapters").is_dir():
        for folder in (home / "adapters").iterdir():
            if not folder.name.startswith("."):
                record = Record.read(folder)
                assert record is not None
                assert formats.inspect(folder).weights_sha256 == record.weights_sha256


@pytest.mark.parametrize("seed", range(20))
def test_merge_killed(filled: Path, seed: int) -> None:
    count = random.Random(seed).randint(0, EVENTS)
    stop_at_event(start(*MERGE), count, signal.SIGKILL)
    assert_sound(filled)
    assert json.loads(ok(*MERGE).splitlines()[-1])["event"] == "finished"
    assert entries(filled / "adapters") == {"m"}
    ok("verify", "m")


@pytest.mark.parametrize("count", [1, 20, 38, 60])
def test_merge_interrupted(filled: Path, count: int) -> None:
    process = start(*MERGE)
    stop_at_event(process, count, signal.SIGINT)
    # A merge this small may be past its last event before the signal is delivered.
    assert process.returncode in {130, 0}
    if process.returncode == 130:
        assert entries(filled / "adapters") == set()
    assert_sound(filled)
    ok(*MERGE)
    assert entries(filled / "adapters") == {"m"}


def hub_env(tmp_path: Path) -> dict[str, str]:
    return {"MY_TOKEN": "hf_ann", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}


def kill_at_request(hub: Any, words: tuple[object, ...], env: dict[str, str], seed: int) -> None:
    """Hold the n-th request of the command and kill its process there."""
    kinds = [
        ("GET", r"/api/models/"), ("HEAD", r"resolve/.*/adapter_config"),
        ("GET", r"resolve/.*/adapter_config"), ("HEAD", r"adapter_model"),
        ("GET", r"adapter_model"), ("HEAD", r"README"),
    ]  # fmt: skip
    if words[0] == "push":
        kinds = [
            ("GET", r"/api/whoami"), ("POST", r"/api/repos/create"), ("POST", r"/preupload/"),
            ("POST", r"/objects/batch"), ("PUT", r"."), ("POST", r"/commit/"),
        ]  # fmt: skip
    method, pattern = kinds[seed % len(kinds)]
    landed = seed >= len(kinds)
    gate = hub.gates.hold(method, pattern, landed=landed)
    process = start(*words, env=env)
    try:
        gate.wait_arrived(60)
        process.kill()
        process.communicate(timeout=60)
    finally:
        process.kill()
        gate.release()


@pytest.mark.parametrize("seed", range(15))
def test_pull_killed(hub: Any, home: Path, tmp_path: Path, seed: int) -> None:
    hub.add_repo("ann/languages", folder=EXAMPLES / "languages")
    env = hub_env(tmp_path)
    words = ("pull", "ann/languages", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    kill_at_request(hub, words, env, seed)
    assert_sound(home)
    assert json.loads(ok("ls", "--json")) == []
    done = call(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(ok("ls", "--json"))) == 1


@pytest.mark.parametrize("seed", range(15))
def test_push_killed(hub: Any, home: Path, tmp_path: Path, seed: int) -> None:
    ok("pull", EXAMPLES / "languages")
    env = hub_env(tmp_path)
    words = ("push", "languages", "ann/mine", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    kill_at_request(hub, words, env, seed)
    assert_sound(home)
    done = call(*words, env=env)
    assert done.returncode == 0, done.stderr
    files = hub.files("ann/mine")
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert files[name] == (EXAMPLES / "languages" / name).read_bytes()
    repo = hub.repo("ann/mine")
    uploads = list(repo.history(repo.at("main")))
    assert len(uploads) == 2  # the first one that the Hub makes, and ours
