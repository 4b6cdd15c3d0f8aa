"""The second pass of a compression: every tensor of a model written whole or as two factors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorahub.adapter import DTYPE_BYTES, Adapter, canonical_base, common_dtype
from lorahub.engine.base_weights import BaseWeights
from lorahub.errors import InvalidRecipeError
from lorahub.events import Advanced, Listener
from lorahub.formats import peft
from lorahub.formats.safetensors import (
    TensorEntry,
    TensorFile,
    Writer,
    encode,
    encode_header,
    header_entry,
    torch_dtype,
)
from lorahub.kernels.allocation import ModuleRank
from lorahub.kernels.dense import balanced_factors, squared_distance

LEFT, RIGHT = "_left", "_right"
"""What is appended to a weight's name for its two factors."""

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, slots=True)
class CompressedWeight:
    """What became of one matrix.

    Attributes:
        name: Tensor name in the model's files.
        shape: (rows, columns) as stored.
        rank: Rank it was given.
        full_rank: min(rows, columns).
        error: Frobenius distance of what was written from the matrix, relative to it.
        lrc: Whether it was written as two factors (low-rank component) or dense.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    error: float
    lrc: bool

    @property
    def parameters(self) -> int:
        """Number of values it is stored in."""
        return self.rank * sum(self.shape) if self.lrc else math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the first pass found for a matrix: its rank and kind, its squared norm."""

    row: ModuleRank
    energy: float


class SecondPass:
    """Writes the shards and, where one is kept, the adapter beside them."""

    def __init__(
        self, source: BaseWeights, choices: Mapping[str, Choice], listener: Listener
    ) -> None:
        self.source = source
        self.weights: list[CompressedWeight] = []
        self.error = _Error()
        self.adapter_error = _Error()
        self._choices = choices
        self._listener = listener
        self._kept: _KeptAdapter | None = None

    def run(self, output: Path, kept: Adapter | None) -> tuple[str, ...]:
        """Write everything; returns the names of the shards."""
        count = len(self.source.files)
        names = ["compressed.safetensors"]
        if count > 1:
            names = [f"compressed-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        with ExitStack() as stack:
            if kept is not None:
                self._kept = stack.enter_context(_KeptAdapter.create(output, self.source, kept))
            for file, name in zip(self.source.files, names, strict=True):
                self._shard(file, output / name)
        return tuple(names)

    def _shard(self, file: TensorFile, path: Path) -> None:
        with Writer(path, len(encode_header(self._entries(file)))) as writer:
            for name, entry in file.header.tensors.items():
                choice = self._choices.get(name)
                if choice is None:
                    self._dense(writer, file, name)
                    continue
                row = choice.row
                if row.lrc:
                    distance = self._factored(writer, name, entry.dtype, row.rank)
                else:
                    distance = self._dense(writer, file, name)
                error = self.error.add(distance, choice.energy)
                weight = CompressedWeight(
                    name, matrix_shape(entry), row.rank, row.full_rank, error, row.lrc
                )
                self.weights.append(weight)
                self._listener(Advanced("compress", len(self.weights), name))

    def _entries(self, file: TensorFile) -> dict[str, dict[str, Any]]:
        """The header the shard will have."""
        entries: dict[str, dict[str, Any]] = {}
        end = 0
        for name, entry in file.header.tensors.items():
            choice = self._choices.get(name)
            parts = {name: (entry.shape, entry.stop - entry.start)}
            if choice is not None and choice.row.lrc:
                size = DTYPE_BYTES[entry.dtype] * choice.row.rank
                rows, columns = entry.shape
                parts = {
                    name + LEFT: ((rows, choice.row.rank), rows * size),
                    name + RIGHT: ((choice.row.rank, columns), columns * size),
                }
            for key, (shape, size) in parts.items():
                entries[key] = header_entry(entry.dtype, shape, end, size)
                end += size
        return entries

    def _dense(self, writer: Writer, file: TensorFile, name: str) -> float:
        """Write a tensor whole; returns the squared distance that its dtype costs."""
        if name not in self.source.deltas:
            writer.copy(name, file)
            return 0.0
        if self._kept is not None:
            writer.copy(name, file)
            self._kept.write(name, *self.source.delta(name, torch.float64))
            return 0.0
        dtype = self.source.entries[name].dtype
        W = self.source.read(name, folded=True)
        rounded = _cast(name, W, dtype)
        writer.write(name, encode(rounded, dtype))
        return float(torch.linalg.vector_norm(W - rounded, dtype=torch.float64)) ** 2

    def _factored(self, writer: Writer, name: str, dtype: str, rank: int) -> float:
        """Write the two factors of a matrix; returns their squared distance from it."""
        W = self.source.read(name, folded=self._kept is None)
        left, right = (_cast(name, factor, dtype) for factor in balanced_factors(W, rank))
        writer.write(name + LEFT, encode(left, dtype))
        writer.write(name + RIGHT, encode(right, dtype))
        distance = squared_distance(W, left, right)
        if self._kept is not None and name in self.source.deltas:
            W.addmm_(*self.source.delta(name, W.dtype))
            energy = float(torch.linalg.vector_norm(W, dtype=torch.float64)) ** 2
            W.addmm_(left.to(W.dtype), right.to(W.dtype), alpha=-1)
            residual = balanced_factors(W, min(self.source.deltas[name].rank, *W.shape))
            written = self._kept.write(name, *residual)
            self.adapter_error.add(squared_distance(W, *written), energy)
        return distance


class _KeptAdapter:
    """The adapter written beside the compressed weights, at scaling 1."""

    def __init__(self, writer: Writer, source: BaseWeights, dtype: str) -> None:
        self._writer = writer
        self._source = source
        self._dtype = dtype

    @classmethod
    @contextmanager
    def create(cls, output: Path, source: BaseWeights, adapter: Adapter) -> Iterator[_KeptAdapter]:
        """Write the config of ``adapter`` and open its weights, in a folder of its own."""
        folder = output / ADAPTER_FOLDER
        folder.mkdir()
        info, dtype = adapter.info, common_dtype(adapter.info.modules)
        ranks = {m.name: min(m.rank, m.d_in, m.d_out) for m in info.modules}
        config = peft.config_for(
            ranks,
            base_model=canonical_base(info.base_model),
            task_type=info.config.get("task_type"),
            fan_in_fan_out=bool(info.config.get("fan_in_fan_out")),
        )
        (folder / peft.CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        entries: dict[str, dict[str, Any]] = {}
        end = 0
        for module in source.deltas.values():
            rank, keys = ranks[module.name], peft.tensor_keys(module.name, module.kind)
            for key, shape in zip(keys, ((rank, module.d_in), (module.d_out, rank)), strict=True):
                size = math.prod(shape) * DTYPE_BYTES[dtype]
                entries[key] = header_entry(dtype, shape, end, size)
                end += size
        path = folder / "adapter_model.safetensors"
        with Writer(path, len(encode_header(entries))) as writer:
            yield cls(writer, source, dtype)

    def write(self, name: str, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Write the delta ``left @ right`` of tensor ``name``; returns it as rounded."""
        module = self._source.deltas[name]
        left, right = _cast(name, left, self._dtype), _cast(name, right, self._dtype)
        B, A = self._source.oriented(module, left, right)
        key_a, key_b = peft.tensor_keys(module.name, module.kind)
        self._writer.write(key_a, encode(A, self._dtype))
        self._writer.write(key_b, encode(B, self._dtype))
        return left, right


def _cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    rounded = tensor.to(torch_dtype(dtype))
    if not bool(torch.isfinite(rounded).all()):
        raise InvalidRecipeError(
            f"tensor '{name}': a value of the result overflows {dtype}",
            hint="save the model in another dtype first",
        )
    return rounded


class _Error:
    """Relative Frobenius error over matrices."""

    def __init__(self) -> None:
        self._distance = self._norm = 0.0

    def add(self, distance: float, norm: float) -> float:
        """Take in one matrix by squared distance and norm; returns its relative error."""
        self._distance += distance
        self._norm += norm
        return _relative(distance, norm)

    @property
    def relative(self) -> float:
        """The error over all of them."""
        return _relative(self._distance, self._norm)


def _relative(distance: float, norm: float) -> float:
    return math.sqrt(distance / norm) if norm else 0.0


def matrix_shape(entry: TensorEntry) -> tuple[int, int]:
    """(rows, columns) of a 2-D tensor."""
    rows, columns = entry.shape
    return rows, columns
