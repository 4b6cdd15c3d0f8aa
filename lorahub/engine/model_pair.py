"""A base model and a fine-tuned one, open side by side: which weights differ, and by what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lorahub.adapter import DTYPE_BYTES
from lorahub.engine.base_weights import BaseWeights
from lorahub.errors import IncompatibleError
from lorahub.extraction import LeftOut
from lorahub.formats import checkpoint
from lorahub.formats.safetensors import TensorEntry, torch_dtype


class ModelPair:
    """Two open models of one architecture.

    Attributes:
        base: The base model.
        finetuned: The fine-tuned model.
        modules: Sorted paths of the modules with a linear weight in a transformer block.
        transposed: Whether these weights are stored as (d_in, d_out).
    """

    def __init__(self, base: BaseWeights, finetuned: BaseWeights) -> None:
        self.base, self.finetuned = base, finetuned
        self._prefixes = _prefixes(base.matrices, finetuned.matrices)
        config = checkpoint.read_config(finetuned.folder)
        self.transposed = checkpoint.stores_transposed(config)
        self._check_architecture()
        matrices = {self._module(name): name for name in finetuned.matrices}
        self._matrices = dict(sorted(matrices.items()))
        self.modules = tuple(self._matrices)

    @classmethod
    @contextmanager
    def open(cls, base: Path, finetuned: Path) -> Iterator[ModelPair]:
        """Open the models in two folders.

        Raises:
            InvalidAdapterError: One of them is no model, damaged, or has no weight to compare.
            IncompatibleError: They are not of one architecture and size.
        """
        with BaseWeights.open(base, None) as one, BaseWeights.open(finetuned, None) as other:
            yield cls(one, other)

    def shape(self, module: str) -> tuple[int, int]:
        """(d_out, d_in) of a module."""
        rows, columns = self.finetuned.entries[self._matrices[module]].shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> str:
        """The dtype that the fine-tuned model's linear weights share, F32 where they do not."""
        dtypes = {self.finetuned.entries[name].dtype for name in self._matrices.values()}
        return dtypes.pop() if len(dtypes) == 1 and dtypes != {"F64"} else "F32"

    @property
    def dtypes_differ(self) -> bool:
        """Whether a linear weight is stored in another dtype than its base."""
        pairs = ((n, self._base_name(n)) for n in self._matrices.values())
        return any(self.finetuned.entries[n].dtype != self.base.entries[b].dtype for n, b in pairs)

    def difference(self, module: str) -> tuple[Tensor, float]:
        """(d_out, d_in) of what fine-tuning added to a weight, and the norm of the base weight.

        float32, or float64 where one of the two is stored so.

        Raises:
            InvalidAdapterError: A weight holds NaN or Inf.
        """
        name = self._matrices[module]
        D, W = self.finetuned.read(name), self.base.read(self._base_name(name))
        norm = float(torch.linalg.vector_norm(W, dim=1).norm(dtype=torch.float64))
        D = D.sub_(W) if D.dtype == torch.promote_types(D.dtype, W.dtype) else D - W
        return (D.mT if self.transposed else D), norm

    def left_out(self) -> Iterator[LeftOut]:
        """The tensors that differ and are no linear weight of a block, in file order."""
        linear = set(self._matrices.values())
        here, there = self.finetuned.entries, self.base.entries
        for name in here:
            other = self._base_name(name)
            if name not in linear and other not in there:
                yield LeftOut(name, "is only in the fine-tuned model", None)
            elif name not in linear:
                yield from self._compare(name, other)
        both = {self._base_name(name) for name in here}
        for name in there:
            if name not in both:
                yield LeftOut(name, "is only in the base model", None)

    def _compare(self, name: str, other: str) -> Iterator[LeftOut]:
        new, old = self.finetuned.entries[name], self.base.entries[other]
        change = self._change(name, other)
        if new.shape != old.shape:
            reason = f"has the shape {list(new.shape)}, {list(old.shape)} in the base model"
            if len(new.shape) == len(old.shape) == 2 and new.shape[1] == old.shape[1]:
                rows = new.shape[0] - old.shape[0]
                reason += f" ({abs(rows)} rows {'added' if rows > 0 else 'removed'})"
            yield LeftOut(name, reason, change)
        elif change is None or change > 0:
            yield LeftOut(name, "changed", change)

    def _change(self, name: str, other: str) -> float | None:
        """Relative change of the values that both tensors have, a piece at a time; 0 is equal.

        None where the two are no floating tensors of one dtype and width, unless they are equal.
        """
        new, old = self.finetuned.entries[name], self.base.entries[other]
        pieces = zip(self.finetuned.chunks(name), self.base.chunks(other), strict=False)
        if new.dtype != old.dtype or new.dtype not in DTYPE_BYTES or _width(new) != _width(old):
            same = (new.dtype, new.shape) == (old.dtype, old.shape)
            return 0.0 if same and all(a == b for a, b in pieces) else None
        dtype, distance, norm = torch_dtype(new.dtype), 0.0, 0.0
        for a, b in pieces:
            size = min(len(a), len(b))
            x, y = (torch.frombuffer(bytearray(c[:size]), dtype=dtype).double() for c in (a, b))
            norm += float(y.square().sum())
            distance += 0.0 if a == b else float((x - y).square().sum())
        return math.sqrt(distance / norm) if norm else float(distance > 0)

    def _check_architecture(self) -> None:
        kinds = [checkpoint.read_config(m.folder).get("model_type") for m in self._both]
        if kinds[0] != kinds[1]:
            raise IncompatibleError(
                f"{self.finetuned.folder}: is of model type '{kinds[1]}', the base model of "
                f"'{kinds[0]}' (model_type in {checkpoint.CONFIG_NAME})",
                hint="give the model that was fine-tuned as the base",
            )
        new = {self._base_name(name): name for name in self.finetuned.matrices}
        odd = new.keys() ^ set(self.base.matrices)
        if odd:
            name = min(odd)
            where, lacks = self._both if name in self.base.entries else self._both[::-1]
            raise IncompatibleError(
                f"linear weight '{name}' of {where.folder} is not in {lacks.folder} "
                f"({len(odd)} such in all)",
                hint="give the model that was fine-tuned as the base",
            )
        for other, name in new.items():
            shapes = self.finetuned.entries[name].shape, self.base.entries[other].shape
            if shapes[0] != shapes[1]:
                raise IncompatibleError(
                    f"linear weight '{name}' has the shape {list(shapes[0])}, in the base model "
                    f"{list(shapes[1])}",
                    hint="give the model that was fine-tuned as the base",
                )

    @property
    def _both(self) -> tuple[BaseWeights, BaseWeights]:
        return self.base, self.finetuned

    def _base_name(self, name: str) -> str:
        """A tensor of the fine-tuned model as the base model calls it."""
        longer, prefix = self._prefixes
        stripped = name.removeprefix(prefix) if prefix and not longer else name
        return f"{prefix}{name}" if longer and f"{prefix}{name}" in self.base.entries else stripped

    def _module(self, name: str) -> str:
        """Path of a module: the longer of both models' names, which a model with a head has."""
        return max(name, self._base_name(name), key=len).removesuffix(".weight")


def _width(entry: TensorEntry) -> tuple[int, ...]:
    return entry.shape[1:]


def _prefixes(base: list[str], finetuned: list[str]) -> tuple[bool, str]:
    """What one model's names have before the other's, and whether it is the base's that do.

    transformers saves a bare model without the prefix that its class with a head gives it.
    """
    for longer, names, others in ((False, finetuned, base), (True, base, finetuned)):
        ends = sorted((o for o in others if names[0].endswith(f".{o}")), key=len)
        if names[0] not in others and ends:
            return longer, names[0].removesuffix(ends[-1])
    return False, ""
