"""The verbs `pack` and `unpack`."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from lorahub import formats
from lorahub.errors import ExitCode
from lorahub.output import folder_name
from tests.commands import call, call_here, entries, ok_here
from tests.conftest import EXAMPLES


@pytest.fixture
def filled(home: Path) -> Path:
    ok_here("pull", EXAMPLES / "packages", EXAMPLES / "manuals")
    return home


def test_pack_show_unpack_pull(filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.mos"
    packed = json.loads(ok_here("pack", "packages", "manuals", "-o", out, "--ratio", 8, "--json"))
    assert (packed["version"], packed["command"], packed["status"]) == (1, "pack", "ok")
    result = packed["result"]
    assert result["bytes"] == out.stat().st_size
    assert 8 <= result["ratio"] < 8.3
    assert [m["name"] for m in result["members"]] == ["packages", "manuals"]
    assert json.loads(ok_here("pack", "--info", out, "--json")) == result
    table = ok_here("pack", "--info", out).splitlines()
    assert table[0].split("\t")[:2] == ["MEMBER", "CODEC"]
    assert table[1].split("\t")[:2] == ["packages", "waterfill"]

    one = json.loads(ok_here("unpack", out, "manuals", "-o", tmp_path / "m", "--json"))["result"]
    assert one == [{"name": "manuals", "folder": str(tmp_path / "m")}]
    assert ok_here("unpack", out, "-o", tmp_path / "all") == "".join(
        f"{n}\t{tmp_path / 'all' / n}\n" for n in ("packages", "manuals")
    )
    for name in ("packages", "manuals"):
        info = formats.inspect(tmp_path / "all" / name)
        assert not info.refusals
        assert info.targets == formats.inspect(EXAMPLES / name).targets
    assert entries(tmp_path / "m") == {"adapter_model.safetensors", "adapter_config.json"}
    ok_here("pull", tmp_path / "m")
    ok_here("merge", "m", "packages", "--method", "svd", "--rank", 4, "--name", "again")


def test_a_folder_can_be_packed_without_loss(filled: Path, tmp_path: Path) -> None:
    ok_here("pack", EXAMPLES / "packages", "-o", tmp_path / "a.mos")
    ok_here("unpack", tmp_path / "a.mos", "packages", "-o", tmp_path / "back")
    one, other = (formats.inspect(f) for f in (EXAMPLES / "packages", tmp_path / "back"))
    assert [(m.hash_a, m.hash_b, m.scaling) for m in one.modules] == [
        (m.hash_a, m.hash_b, m.scaling) for m in other.modules
    ]


def test_errors_have_their_codes(filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mos"
    assert call_here("pack", "packages").returncode == ExitCode.USAGE
    assert call_here("pack", "packages", "-o", out, "--ratio", 0).returncode == ExitCode.USAGE
    assert call_here("pack", "--info", out, out).returncode == ExitCode.USAGE
    small = call_here("pack", "packages", "-o", out, "--bytes", 100, "--json")
    assert small.returncode == ExitCode.USAGE
    assert "do not fit into 100 bytes" in json.loads(small.stdout)["error"]["message"]
    assert call_here("pack", "nobody", "-o", out).returncode == ExitCode.NOT_FOUND
    assert entries(tmp_path) == {"home"}

    ok_here("pack", "packages", "-o", out, "--ratio", 16)
    assert call_here("pack", "packages", "-o", out, "--ratio", 16).returncode == ExitCode.CONFLICT
    ok_here("pack", "packages", "-o", out, "--ratio", 12, "--force")
    assert call_here("unpack", out, "nobody").returncode == ExitCode.NOT_FOUND
    (tmp_path / "taken").mkdir()
    assert (
        call_here("unpack", out, "packages", "-o", tmp_path / "taken").returncode
        == ExitCode.CONFLICT
    )
    raw = bytearray(out.read_bytes())
    raw[-1] ^= 1
    out.write_bytes(raw)
    damaged = call_here("unpack", out, "packages", "-o", tmp_path / "b")
    assert damaged.returncode == ExitCode.FAILURE
    assert "does not match its checksum" in damaged.stderr
    out.write_bytes(raw[:-1])
    assert call_here("pack", "--info", out).returncode == ExitCode.INVALID
    assert entries(tmp_path) == {"home", "a.mos", "taken"}


def test_a_full_disk_leaves_nothing(filled: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = call("pack", "packages", "-o", tmp_path / "a.mos", preexec_fn=small_files)
    assert done.returncode == ExitCode.FAILURE
    assert "cannot be written" in done.stderr
    assert entries(tmp_path) == {"home"}


def test_names_from_strangers_stay_in_the_folder() -> None:
    assert folder_name("owner/law@0a1b") == "owner-law@0a1b"
    assert folder_name("../../etc") == "-..-etc"
    assert folder_name("..") == "member"
