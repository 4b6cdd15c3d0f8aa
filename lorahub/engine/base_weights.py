"""The weights of a whole model, read one at a time, with an adapter's delta where it has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lorahub.adapter import DTYPE_BYTES, Adapter, Module, ModuleKind
from lorahub.errors import IncompatibleError, InvalidAdapterError, UnsupportedAdapterError
from lorahub.formats import checkpoint
from lorahub.formats.safetensors import TensorEntry, TensorFile


class BaseWeights:
    """The open shards of a model and, optionally, an adapter that fits it.

    Attributes:
        folder: The model's folder.
        files: The shards, in the order of their names.
        entries: Every tensor's entry by name, in file order.
        matrices: Names of the linear weights in transformer blocks.
        deltas: The adapter's modules by the name of the tensor they change.
    """

    def __init__(self, files: tuple[TensorFile, ...], adapter: Adapter | None) -> None:
        self.folder = files[0].path.parent
        self.files = files
        self.entries: dict[str, TensorEntry] = {}
        self._home: dict[str, TensorFile] = {}
        for file in files:
            for name, entry in file.header.tensors.items():
                if name in self.entries:
                    raise InvalidAdapterError(
                        f"{file.path}: tensor '{name}' is in {self._home[name].path.name} too"
                    )
                self.entries[name], self._home[name] = entry, file
        self.matrices = [n for n, e in self.entries.items() if checkpoint.is_block_linear(n, e)]
        if not self.matrices:
            raise InvalidAdapterError(
                f"{self.folder}: has no floating linear weight in a transformer block",
                hint="quantised weights and the experts of mixtures are not among them",
            )
        self._adapter = adapter
        self.deltas = {} if adapter is None else _place(adapter, self.entries)
        self._factors = None if adapter is None else TensorFile(adapter.weights_path)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, adapter: Adapter | None) -> Iterator[BaseWeights]:
        """Open the model in ``folder``.

        Raises:
            InvalidAdapterError: It is no model, damaged, or has no linear weight in a block.
            IncompatibleError: A module of the adapter fits none of its tensors.
            UnsupportedAdapterError: The adapter is no plain low-rank delta.
        """
        with ExitStack() as stack:
            files = []
            shards = checkpoint.find_shards(folder)
            checkpoint.read_config(folder)  # which loading the result will need
            for path in shards:
                files.append(TensorFile(path))
                stack.callback(files[-1].close)
            weights = cls(tuple(files), adapter)
            if weights._factors is not None:
                stack.callback(weights._factors.close)
            yield weights

    def read(self, name: str, *, folded: bool = False) -> Tensor:
        """A tensor in float32 (float64 where stored so), plus the delta where ``folded``.

        Raises:
            InvalidAdapterError: It holds NaN or Inf.
        """
        W = _read(self._home[name], name)
        if folded and name in self.deltas:
            W.addmm_(*self.delta(name, W.dtype))
        return W

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor as they stand in its file, a piece at a time."""
        return self._home[name].chunks(name)

    def delta(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(left, right) whose product is the adapter's delta of a tensor as that is stored."""
        module = self.deltas[name]
        assert self._factors is not None
        B = _read(self._factors, module.key_b).to(dtype)
        A = _read(self._factors, module.key_a).to(dtype)
        B *= module.scaling
        return self.oriented(module, B, A)

    def oriented(self, module: Module, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of a delta as those of the stored tensor, and the other way round."""
        assert self._adapter is not None
        return (other.mT, one.mT) if _transposed(self._adapter, module) else (one, other)


def _read(file: TensorFile, name: str) -> Tensor:
    entry = file.header.tensors[name]
    dtype = torch.float64 if entry.dtype == "F64" else torch.float32
    out = torch.empty(entry.shape, dtype=dtype)
    file.read_into(name, out)
    if not bool(torch.isfinite(out).all()):
        raise InvalidAdapterError(
            f"{file.path}: tensor '{name}' holds NaN or Inf",
            hint="the training run diverged or the file is damaged; get a good copy",
        )
    return out


def _transposed(adapter: Adapter, module: Module) -> bool:
    """Whether the base weight is stored as (d_in, d_out)."""
    return module.kind is ModuleKind.EMBEDDING or bool(adapter.info.config.get("fan_in_fan_out"))


def _place(adapter: Adapter, entries: Mapping[str, TensorEntry]) -> dict[str, Module]:
    """The adapter's modules by the name of the tensor they change.

    Names match whole, or one is the end of the other: a head adds a prefix to the model's names.
    """
    if adapter.info.refusals:
        reasons = "; ".join(r.message for r in adapter.info.refusals)
        raise UnsupportedAdapterError(f"'{adapter.name}' cannot be added to weights: {reasons}")
    stems = [n.removesuffix(".weight") for n in entries if n.endswith(".weight")]
    placed: dict[str, Module] = {}
    for module in adapter.info.modules:
        ends = [s for s in stems if s.endswith(f".{module.name}") or module.name.endswith(f".{s}")]
        found = [module.name] if f"{module.name}.weight" in entries else ends
        if len(found) != 1:
            count = "no tensor" if not found else f"{len(found)} tensors"
            raise IncompatibleError(
                f"'{adapter.name}': module '{module.name}' matches {count} of the model",
                hint="give the model that the adapter was trained on",
            )
        name = f"{found[0]}.weight"
        shape = (module.d_out, module.d_in)
        expected = shape[::-1] if _transposed(adapter, module) else shape
        if entries[name].shape != expected or entries[name].dtype not in DTYPE_BYTES:
            raise IncompatibleError(
                f"'{adapter.name}': module '{module.name}' changes a weight of shape "
                f"{list(expected)}, tensor '{name}' is {entries[name].dtype} "
                f"{list(entries[name].shape)}",
                hint="give the model that the adapter was trained on",
            )
        placed[name] = module
    return placed
