"""Headers of safetensors files: what is accepted is what the reference accepts, or less."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import MAX_HEADER_BYTES, TensorFile, Writer, encode, read_header

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OTHERS = (torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn)
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with any header at all: an object to dump, or bytes as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


def refused(path: Path) -> str:
    with pytest.raises(InvalidAdapterError) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value.message


# --- good files ---


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_good_files_read_as_the_reference_reads_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = st.text("ab.é_", min_size=1, max_size=8)
    names = data.draw(st.lists(name, unique=True, min_size=1, max_size=5))
    shapes = st.lists(st.integers(0, 4), max_size=4)
    tensors = {
        name: torch.zeros(data.draw(shapes), dtype=data.draw(st.sampled_from(FLOATS + OTHERS)))
        for name in names
    }
    metadata = data.draw(st.none() | st.dictionaries(st.text("kv", min_size=1), st.text("kv")))
    path = tmp_path_factory.mktemp("good") / "x.safetensors"
    save_file(tensors, path, metadata=metadata)
    header = read_header(path)
    raw = path.read_bytes()
    with safe_open(path, "pt") as reference:
        assert set(header.tensors) == set(reference.keys())
        assert dict(header.metadata) == (reference.metadata() or {})
        for name, entry in header.tensors.items():
            part = reference.get_slice(name)
            assert entry.dtype == part.get_dtype()
            assert list(entry.shape) == part.get_shape()
            expected = reference.get_tensor(name).reshape(-1).view(torch.uint8)
            assert raw[entry.start : entry.stop] == bytes(expected.tolist())


def test_tensors_come_in_file_order(file: Path) -> None:
    header = {
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
    }
    write_raw(file, dict(reversed(header.items())), b"xyz")
    assert list(read_header(file).tensors) == ["b", "a"]


def test_a_header_of_odd_length_reads_unaligned(file: Path) -> None:
    values = [1.5, -2.0, 3.25, 0.0, 5.0, -6.5]
    raw = json.dumps({"x": ENTRY}).encode()
    raw += b" " * (1 - len(raw) % 2)
    assert len(raw) % 2 == 1
    write_raw(file, raw, struct.pack("<6f", *values))
    out = torch.empty(2, 3)
    reader = TensorFile(file)
    reader.read_into("x", out)
    reader.close()
    assert out.flatten().tolist() == values


def test_written_files_read_the_same_by_the_reference(file: Path) -> None:
    tensors = {
        "w.lora_A.weight": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
        "w.lora_B.weight": torch.randn(5, 4, generator=torch.Generator().manual_seed(1)),
    }
    with Writer(file, header_room=1000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, encode(tensor, "F32"))
    with safe_open(file, "pt") as reference:
        for name, tensor in tensors.items():
            assert torch.equal(reference.get_tensor(name), tensor)


def test_a_writer_left_by_an_exception_leaves_no_valid_file(file: Path) -> None:
    with pytest.raises(KeyError), Writer(file, header_room=1000) as writer:
        writer.write("x", encode(torch.zeros(2, 3), "F32"))
        raise KeyError
    refused(file)


def test_files_of_strangers_read_as_the_reference_reads_them(shared_adapters: Path) -> None:
    files = sorted(shared_adapters.glob("*/*.safetensors"))
    assert files
    for path in files:
        header = read_header(path)
        with safe_open(path, "pt") as reference:
            assert set(header.tensors) == set(reference.keys())
            assert dict(header.metadata) == (reference.metadata() or {})


# --- bad files ---


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_too_short(file: Path, size: int) -> None:
    file.write_bytes(b"\0" * size)
    assert "header" in refused(file)


@pytest.mark.parametrize(
    ("length", "word"),
    [
        (10_000, "truncated"),
        (MAX_HEADER_BYTES + 1, str(MAX_HEADER_BYTES + 1)),
        (2**63, str(2**63)),
        (2**64 - 1, str(2**64 - 1)),  # -1 as a signed number
        (3, "not JSON"),
    ],
)
def test_header_length_that_lies(file: Path, length: int, word: str) -> None:
    write_raw(file, {"x": ENTRY}, b"\0" * 24, length=length)
    assert word in refused(file)


@pytest.mark.parametrize("missing", [1, 8, 24, 40])
def test_truncated_at_any_place(file: Path, missing: int) -> None:
    write_raw(file, {"x": ENTRY}, b"\0" * 24)
    file.write_bytes(file.read_bytes()[:-missing])
    assert "truncated" in refused(file)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"{} trailing",
        b'{"x": }',
        b"\xff\xfe{\x00}\x00",
        '{"x": 1}'.encode("utf-16-le"),
        b'{"\xff": 1}',
        b'{"a":' * 100_000,
        b'{"x": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 1]}}',
    ],
)
def test_not_a_json_object(file: Path, header: bytes) -> None:
    refused(write_raw(file, header))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"dtype": "F32", "shape": [2, 3]},
        ENTRY | {"dtype": "F31"},
        ENTRY | {"dtype": "f32"},
        ENTRY | {"dtype": None},
        ENTRY | {"dtype": ["F32"]},
        ENTRY | {"shape": None},
        ENTRY | {"shape": 6},
        ENTRY | {"shape": [2, 3.0]},
        ENTRY | {"shape": [2, True]},
        ENTRY | {"shape": [-2, -3]},
        ENTRY | {"shape": ["2", "3"]},
        ENTRY | {"shape": [2, 4]},
        ENTRY | {"shape": [2, 2]},
        ENTRY | {"shape": []},
        ENTRY | {"shape": [2**70, 0]},
        ENTRY | {"shape": [1] * 100_000},
        ENTRY | {"dtype": "F16"},
        ENTRY | {"dtype": "F64"},
        ENTRY | {"data_offsets": None},
        ENTRY | {"data_offsets": [0]},
        ENTRY | {"data_offsets": [0, 24, 48]},
        ENTRY | {"data_offsets": [24, 0]},
        ENTRY | {"data_offsets": [-24, 0]},
        ENTRY | {"data_offsets": [0, 2**64]},
        ENTRY | {"data_offsets": [0.0, 24.0]},
        ENTRY | {"extra": 1},
    ],
)
def test_entries_that_lie_name_the_tensor(file: Path, entry: Any) -> None:
    write_raw(file, {"layer.lora_A.weight": entry}, b"\0" * 24)
    assert "layer.lora_A.weight" in refused(file)


@pytest.mark.parametrize(
    ("first", "second", "data", "word"),
    [
        ([0, 24], [24, 48], 24, "truncated"),
        ([0, 24], [0, 24], 24, "overlaps"),
        ([0, 24], [12, 36], 36, "overlaps"),
        ([0, 24], [28, 52], 52, "gap"),
        ([4, 28], [28, 52], 52, "gap"),
        ([0, 24], [24, 48], 49, "after its last tensor"),
        ([0, 24], [2**40, 2**40 + 24], 48, "gap"),
    ],
)
def test_offsets_out_of_range(
    file: Path, first: list[int], second: list[int], data: int, word: str
) -> None:
    header = {"a": ENTRY | {"data_offsets": first}, "b": ENTRY | {"data_offsets": second}}
    write_raw(file, header, b"\0" * data)
    assert word in refused(file)


def test_the_same_tensor_twice(file: Path) -> None:
    entry = json.dumps(ENTRY)
    write_raw(file, f'{{"a": {entry}, "a": {entry}}}'.encode(), b"\0" * 24)
    assert "'a' twice" in refused(file)


def test_the_same_field_twice(file: Path) -> None:
    entry = json.dumps(ENTRY)[:-1] + ', "dtype": "I32"}'
    write_raw(file, f'{{"a": {entry}}}'.encode(), b"\0" * 24)
    assert "'dtype' twice" in refused(file)


@pytest.mark.parametrize("metadata", [[], "", 0, False, {"n": 1}, {"n": None}, [["a", "b"]]])
def test_metadata_of_a_wrong_type(file: Path, metadata: Any) -> None:
    write_raw(file, {"__metadata__": metadata, "x": ENTRY}, b"\0" * 24)
    assert "__metadata__" in refused(file)


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "a\nb", "\ud800", "\u202egnp"])
def test_names_that_could_steer_a_terminal(file: Path, name: str) -> None:
    write_raw(file, {name: ENTRY}, b"\0" * 24)
    message = refused(file)
    assert name not in message
    assert message.isprintable()


def test_a_pointer_instead_of_the_file(file: Path) -> None:
    oid = "93808b" + "0" * 58
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 123\n")
    with pytest.raises(InvalidAdapterError, match="git LFS pointer") as caught:
        read_header(file)
    assert caught.value.hint == "run `git lfs pull` there"


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 5000)):
        with pytest.raises(InvalidAdapterError, match="cannot be read"):
            read_header(path)


# --- fuzz: nothing but InvalidAdapterError, and nothing the reference refuses ---

FUZZ = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def agrees_with_reference(path: Path) -> None:
    try:
        header = read_header(path)
    except InvalidAdapterError as error:
        assert error.message.isprintable()
        return
    with safe_open(path, "pt") as reference:
        assert set(header.tensors) == set(reference.keys())


@FUZZ
@given(raw=st.binary(max_size=200), data=st.binary(max_size=40), honest=st.booleans())
def test_any_bytes(file: Path, raw: bytes, data: bytes, honest: bool) -> None:
    if honest:
        write_raw(file, raw, data)
    else:
        file.write_bytes(raw + data)
    agrees_with_reference(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NEAR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "BOOL", "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 32), min_size=2, max_size=2) | JSON,
    }
)


@FUZZ
@given(
    header=st.dictionaries(st.text(max_size=6), NEAR | JSON, max_size=3), size=st.integers(0, 64)
)
@example(header={"__metadata__": None}, size=0)
@example(header={}, size=0)
def test_any_json(file: Path, header: Any, size: int) -> None:
    raw = json.dumps(header, ensure_ascii=True).encode()
    agrees_with_reference(write_raw(file, raw, b"\1" * size))


@FUZZ
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 6))
def test_any_damage_to_a_good_file(file: Path, seed: int, changes: int) -> None:
    save_file({"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}, file)
    raw = bytearray(file.read_bytes())
    rng = random.Random(seed)
    for _ in range(changes):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    if rng.random() < 0.3:
        del raw[rng.randrange(len(raw)) :]
    file.write_bytes(raw)
    agrees_with_reference(file)
