"""SIGKILL at seeded points of pull, merge and push, and Ctrl-C in every phase of every verb.

After each: the catalog is sound, no output is there that is not whole, and the same command,
in another process (this one), then succeeds. Points are reached by counting events or requests,
never by waiting.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorahub import formats
from lorahub.record import Record
from tests.commands import LORAHUB, call, call_here, entries, ok_here, process
from tests.conftest import EXAMPLES, ROOT, write_adapter
from tests.interrupting import problems
from tests.test_cli import filled
from tests.waiting import PATIENCE

__all__ = ["filled"]

MERGE = ("merge", "languages", "packages", "manuals", "--method", "svd", "--rank", "8",
         "--name", "m", "--events", "jsonl")  # fmt: skip
CARD = "---\ntags: [lora]\n---\n"
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


STOPPING = """\
import os, sys
from lorahub.__main__ import run
from lorahub.cli import sink

count, number = map(int, sys.argv[1:3])
del sys.argv[1:3]
whole = sink.print_event


def print_event(event):
    global count
    whole(event)
    count -= 1
    if count == 0:
        os.kill(os.getpid(), number)


sink.print_event = print_event
run()
"""


def stopped_at_event(count: int, how: signal.Signals, *words: object) -> Any:
    """A command that gets a signal when it has printed so many events: of itself, so just then."""
    return process(sys.executable, "-c", STOPPING, count, int(how), *words)


def assert_sound(home: Path) -> None:
    assert problems() == []
    for row in json.loads(ok_here("ls", "--json")):
        shown = json.loads(ok_here("show", row["name"], "--json"))
        assert len(shown["info"]["modules"]) == row["modules"]
    if (home / "adapters").is_dir():
        for folder in (home / "adapters").iterdir():
            if not folder.name.startswith("."):
                record = Record.read(folder)
                assert record is not None
                assert formats.inspect(folder).weights_sha256 == record.weights_sha256


@pytest.mark.parametrize("seed", range(20))
def test_merge_killed(filled: Path, seed: int) -> None:
    count = random.Random(seed).randint(1, EVENTS)
    done = stopped_at_event(count, signal.SIGKILL, *MERGE)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.splitlines()) == count
    assert_sound(filled)
    assert json.loads(ok_here(*MERGE).splitlines()[-1])["event"] == "finished"
    assert entries(filled / "adapters") == {"m"}
    ok_here("verify", "m")


@pytest.mark.parametrize("count", [1, 20, 38, 60])
def test_merge_interrupted(filled: Path, count: int) -> None:
    done = stopped_at_event(count, signal.SIGINT, *MERGE)
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["code"] == "interrupted"
    assert entries(filled / "adapters") == set()
    assert_sound(filled)
    ok_here(*MERGE)
    assert entries(filled / "adapters") == {"m"}


def test_pack_killed(filled: Path, tmp_path: Path) -> None:
    """At its first fsync, when all bytes are written and nothing has its name yet."""
    words = ("pack", "packages", "-o", tmp_path / "a.mos", "--ratio", 16)
    dying = f"import os; os.fsync = lambda _: os.kill(os.getpid(), 9); {LORAHUB[2]}"
    killed = subprocess.run([*LORAHUB[:2], dying, *map(str, words)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.mos").exists()
    assert any(".partial-" in name for name in entries(tmp_path))
    assert_sound(filled)
    ok_here(*words)
    assert entries(tmp_path) == {"home", "a.mos"}


HUB_ENV = {"MY_TOKEN": "hf_ann"}


def stop_at_request(
    hub: Any,
    words: tuple[object, ...],
    env: dict[str, str],
    seed: int,
    how: signal.Signals = signal.SIGKILL,
) -> tuple[int, str]:
    """Hold the n-th request of the command, stop its process there; its exit code and stderr."""
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
        gate.wait_arrived()
        process.send_signal(how)
        # The request is still held: the process ends all the same.
        _, err = process.communicate(timeout=PATIENCE)
        return process.returncode, err
    finally:
        process.kill()
        gate.release()


@pytest.mark.parametrize("seed", range(15))
def test_pull_killed(hub: Any, home: Path, tmp_path: Path, seed: int) -> None:
    hub.add_repo("ann/languages", folder=EXAMPLES / "languages")
    env = HUB_ENV
    words = ("pull", "ann/languages", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    stop_at_request(hub, words, env, seed)
    assert_sound(home)
    assert json.loads(ok_here("ls", "--json")) == []
    done = call_here(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(ok_here("ls", "--json"))) == 1


@pytest.mark.parametrize("seed", range(15))
def test_push_killed(hub: Any, home: Path, tmp_path: Path, seed: int) -> None:
    ok_here("pull", EXAMPLES / "languages")
    env = HUB_ENV
    words = ("push", "languages", "ann/mine", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    stop_at_request(hub, words, env, seed)
    assert_sound(home)
    done = call_here(*words, env=env)
    assert done.returncode == 0, done.stderr
    files = hub.files("ann/mine")
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert files[name] == (EXAMPLES / "languages" / name).read_bytes()
    repo = hub.repo("ann/mine")
    uploads = list(repo.history(repo.at("main")))
    assert len(uploads) == 2  # the first one that the Hub makes, and ours


@pytest.mark.parametrize("seed", [*range(6), 8, 11])
def test_pull_interrupted_at_a_request(hub: Any, home: Path, tmp_path: Path, seed: int) -> None:
    hub.add_repo("ann/languages", folder=EXAMPLES / "languages")
    env = HUB_ENV
    words = ("pull", "ann/languages", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    code, err = stop_at_request(hub, words, env, seed, signal.SIGINT)
    assert code == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert_sound(home)
    assert json.loads(ok_here("ls", "--json")) == []
    done = call_here(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(ok_here("ls", "--json"))) == 1


@pytest.mark.parametrize("seed", [*range(6), 8, 11])
def test_push_interrupted_at_a_request(hub: Any, home: Path, tmp_path: Path, seed: int) -> None:
    ok_here("pull", EXAMPLES / "languages")
    env = HUB_ENV
    words = ("push", "languages", "ann/mine", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    code, err = stop_at_request(hub, words, env, seed, signal.SIGINT)
    assert code == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert_sound(home)
    done = call_here(*words, env=env)
    assert done.returncode == 0, done.stderr
    repo = hub.repo("ann/mine")
    assert len(list(repo.history(repo.at("main")))) == 2
    weights = (EXAMPLES / "languages" / "adapter_model.safetensors").read_bytes()
    assert hub.files("ann/mine")["adapter_model.safetensors"] == weights


def interrupt(
    functions: tuple[str, ...], *words: object, env: dict[str, str] | None = None
) -> None:
    """Rounds of `tests.interrupting`, all of which must go well."""
    child = (sys.executable, "-m", "tests.interrupting", ",".join(functions))
    done = process(*child, *words, env=env)
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["at"] for one in rounds] == list(functions)
    for one in rounds:
        assert one["sent"], one
        assert one["code"] == 130, one
        assert one["out"] == "", one
        assert one["err"].startswith("interrupted"), one
        assert one["problems"] == [], one
        assert one["again"]["code"] == 0, one


AT_AN_IMPORT = """\
import os
import signal
import sys


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            sys.meta_path.remove(Finder)
            os.kill(os.getpid(), signal.SIGINT)


sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--help", "typer"),
        ("version", "lorahub.cli.upkeep"),
        ("ls", "lorahub.workspace"),
        ("base ls", "sqlalchemy"),
        ("merge languages --method svd", "pydantic"),
    ],
)
def test_interrupted_while_it_imports(home: Path, tmp_path: Path, words: str, name: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AT_AN_IMPORT)
    env = {"PYTHONPATH": str(tmp_path / "site"), "INTERRUPTED_IMPORT": name}
    done = call(*words.split(), env=env)
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["interrupted"]


PULL = ("database:Database.open", "pulling:Pulling.pull", "__init__:inspect",
        "safetensors:read_header", "peft:_pairs", "__init__:_chunks",
        "pulling:Puller._same_place", "adapters:Adapters.add", "database:Database._write",
        "sink:print_text")  # fmt: skip


def names() -> list[str]:
    return [row["name"] for row in json.loads(ok_here("ls", "--json", "--limit", "200"))]


def test_pull_of_a_folder_interrupted(home: Path, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "a0", {"q": (5, 6, 3)})
    for n in range(1, len(PULL)):
        shutil.copytree(first, tmp_path / f"a{n}")
    interrupt(PULL, "pull", tmp_path / "a{n}")
    assert sorted(names()) == sorted(f"a{n}" for n in range(len(PULL)))


def test_pull_from_a_hub_interrupted(hub: Any, home: Path, tmp_path: Path) -> None:
    functions = (
        "snapshots:Resolving.resolve",
        "fetching:Fetching.fetch",
        "fetching:Fetching._fetch_one",
        "snapshots:RemoteFile.is_at",
        *PULL,
    )
    folder = write_adapter(tmp_path / "a", {"q": (5, 6, 3)})
    for n in range(len(functions)):
        hub.add_repo(f"ann/m{n}", folder=folder)
    words = ("pull", "ann/m{n}", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    interrupt(functions, *words, env=HUB_ENV)
    assert sorted(names()) == sorted(f"ann/m{n}" for n in range(len(functions)))


def test_pull_of_a_pickle_interrupted(home: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    functions = ("pickled:find_pickle", "pickled:convert_pickle", "pickled:_load",
                 "safetensors:Writer.write", "output:_move", "adapters:Adapters.add")  # fmt: skip
    for n in range(len(functions)):
        folder = write_adapter(tmp_path / f"a{n}", {"q": (5, 6, 3)}, seed=n)
        weights = folder / "adapter_model.safetensors"
        torch.save(load_file(weights), folder / "adapter_model.bin")
        weights.unlink()
    interrupt(functions, "pull", tmp_path / "a{n}", "--allow-pickle")
    assert len(names()) == len(functions)
    for key in (home / "converted").iterdir():
        assert not [name for name in entries(key) if name.startswith(".")]


def test_compare_interrupted(filled: Path) -> None:
    before = entries(filled)
    functions = ("comparing:Comparing.compare", "compare:compare",
                 "safetensors:TensorFile.__init__", "relations:Relations.__init__",
                 "relations:sign_conflict", "compare:_together", "pictures:chart",
                 "output:write_text", "output:_sync")  # fmt: skip
    out = filled.parent / "out"
    out.mkdir()
    interrupt(functions, "compare", "languages", "packages", "--plot", out / "{n}.svg")
    assert entries(filled) == before
    assert entries(out) == {f"{n}.svg" for n in range(len(functions))}


def test_verify_interrupted(filled: Path) -> None:
    ok_here("merge", "languages", "packages", "--method", "svd", "--rank", "4", "--name", "m")
    before = entries(filled), entries(filled / "adapters")
    functions = ("merging:Merging.verify", "plan:make_plan", "verify:verify",
                 "verify:_deviation", "batches:read_stack", "verify:_summary")  # fmt: skip
    interrupt(functions, "verify", "m")
    assert (entries(filled), entries(filled / "adapters")) == before


def test_export_interrupted(filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    functions = ("publishing:Publishing.export", "integrity:check_unchanged",
                 "output:new_folder", "output:_umask", "output:_sync", "output:_move",
                 "publications:Publications.record_export", "database:Database._write",
                 "sink:print_text")  # fmt: skip
    interrupt(functions, "export", "languages", out / "{n}")
    assert entries(out) == {str(n) for n in range(len(functions))}
    for folder in out.iterdir():
        assert entries(folder) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
        for file in folder.iterdir():
            assert file.read_bytes() == (EXAMPLES / "languages" / file.name).read_bytes()


def test_push_interrupted(hub: Any, filled: Path, tmp_path: Path) -> None:
    functions = ("publishing:Publishing.push", "pushing:Pushing.push", "pushing:Pushing._head",
                 "pushing:Pushing._commit",
                 "publications:Publications.record_push", "database:Database._write")  # fmt: skip
    words = ("push", "languages", "ann/m{n}", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    interrupt(functions, *words, env=HUB_ENV)
    for n in range(len(functions)):
        repo = hub.repo(f"ann/m{n}")
        assert len(list(repo.history(repo.at("main")))) == 2


def test_discover_interrupted(hub: Any, home: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"q": (5, 6, 3)})
    for n in range(3):
        hub.add_repo(f"ann/m{n}", {p.name: p for p in folder.iterdir()} | {"README.md": CARD})
    functions = ("discovering:Discovering.discover", "listing:Listing.find", "listing:_listed",
                 "remote:Remote.outlines", "remote:Remote.remember_outlines",
                 "remote:Remote.hub_adapters", "sink:print_text")  # fmt: skip
    words = ("discover", "--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    interrupt(functions, *words, env=HUB_ENV)
    # The first undisturbed command read every header; nobody had to again.
    assert len(hub.log.find("GET", "/resolve/")) == 3


def test_repro_interrupted(hub: Any, filled: Path, tmp_path: Path) -> None:
    ok_here("merge", "languages", "packages", "--method", "cat", "--name", "m")
    env = HUB_ENV | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    words = ("--endpoint", hub.endpoint, "--token-env", "MY_TOKEN")
    done = call_here("push", "m", "ann/m", *words, env=env)
    assert done.returncode == 0, done.stderr
    before = entries(filled), entries(filled / "adapters")
    functions = ("reproducing:from_hub", "merging:Merger.write", "verify:verify_all",
                 "reproducing:compare")  # fmt: skip
    interrupt(functions, "repro", "ann/m", *words, env=env)
    assert (entries(filled), entries(filled / "adapters")) == before
    assert entries(tmp_path / "temporary") == set()
