"""Adapters that are there more than once: the same factors under other names, or cast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorahub.adapter import Adapter, Module
from lorahub.formats.safetensors import TensorFile, torch_dtype
from lorahub.integrity import check_unchanged
from lorahub.similarity import vectors
from store.sketches import SketchKeys

if TYPE_CHECKING:
    from torch import Tensor

PRECISION = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
"""Bits of the significand: a cast goes from more to fewer."""

NEAR = 0.99
"""Least estimated cosine of deltas from which on two adapters are worth reading."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An adapter whose factors another one in the catalog has too.

    Attributes:
        name: The younger of the two, or the one of lower precision.
        of: The other.
        how: ``same`` where all factors are equal bit by bit, ``cast`` where rounding those of
            ``of`` to the dtype of ``name`` gives its very bits.
        dtype: dtype of ``name``.
        of_dtype: dtype of ``of``.
        weights_bytes: Size of the weights file of ``name`` in bytes.
    """

    name: str
    of: str
    how: Literal["same", "cast"]
    dtype: str
    of_dtype: str
    weights_bytes: int


def find_duplicates(
    keys: Sequence[SketchKeys], is_cast: Callable[[str, str], bool]
) -> tuple[Duplicate, ...]:
    """Duplicates among adapters given oldest first.

    Args:
        keys: What tells possible duplicates.
        is_cast: Whether the second adapter of two names is the first one, cast; it is asked only
            about adapters of equal structure with nearly equal sketches.
    """
    found: list[Duplicate] = []
    first: dict[bytes, SketchKeys] = {}
    for key in keys:
        original = first.setdefault(key.factors, key)
        if original is not key:
            found.append(_duplicate(key, original, "same"))
    alike: dict[bytes, list[SketchKeys]] = defaultdict(list)
    for key in first.values():
        alike[key.structure].append(key)
    for group in alike.values():
        # One original for a cast is enough; two adapters with one cast need not be equal.
        cast: set[str] = set()
        for wide, narrow in _candidates(group):
            if narrow.name not in cast and is_cast(wide.name, narrow.name):
                cast.add(narrow.name)
                found.append(_duplicate(narrow, wide, "cast"))
    return tuple(sorted(found, key=lambda d: (d.of, d.name)))


def _duplicate(key: SketchKeys, of: SketchKeys, how: Literal["same", "cast"]) -> Duplicate:
    return Duplicate(key.name, of.name, how, key.dtype, of.dtype, key.weights_bytes)


def _candidates(group: Sequence[SketchKeys]) -> Iterator[tuple[SketchKeys, SketchKeys]]:
    """Pairs (wide, narrow) with near sketches whose dtypes differ, widest and oldest first."""
    dtypes = {key.dtype for key in group}
    if len(group) < 2 or (len(dtypes) == 1 and dtypes != {"mixed"}):
        return
    from sklearn.neighbors import NearestNeighbors

    found = vectors(group)
    index = NearestNeighbors(radius=1 - NEAR, metric="cosine", algorithm="brute").fit(found)
    near = index.radius_neighbors(found, return_distance=False)
    order = sorted(range(len(group)), key=lambda i: (-PRECISION.get(group[i].dtype, 24), i))
    for i in order:
        for j in sorted(map(int, near[i])):
            one, other = group[i], group[j]
            if i != j and (one.dtype != other.dtype or one.dtype == "mixed"):
                yield one, other


def is_cast(wide: Adapter, narrow: Adapter) -> bool:
    """Whether rounding every factor of ``wide`` to the dtype of ``narrow`` gives its bits.

    Raises:
        IntegrityError: The files of one are gone or changed.
    """
    parts = {m.name: m for m in narrow.info.modules}
    pairs = [(m, parts[m.name]) for m in wide.info.modules]
    for one, other in pairs:
        for a, b in ((one.dtype_a, other.dtype_a), (one.dtype_b, other.dtype_b)):
            if PRECISION[a] < PRECISION[b]:
                return False
    check_unchanged(wide)
    check_unchanged(narrow)
    with (
        closing(TensorFile(wide.weights_path)) as wide_file,
        closing(TensorFile(narrow.weights_path)) as narrow_file,
    ):
        return all(
            _same_bits(cast, factor)
            for one, other in pairs
            for cast, factor in zip(
                _factors(wide_file, one), _factors(narrow_file, other), strict=True
            )
        )


def _factors(file: TensorFile, module: Module) -> Iterator[Tensor]:
    import torch

    for key, shape, dtype in (
        (module.key_a, (module.rank, module.d_in), module.dtype_a),
        (module.key_b, (module.d_out, module.rank), module.dtype_b),
    ):
        out = torch.empty(shape, dtype=torch_dtype(dtype))
        file.read_into(key, out)
        yield out


def _same_bits(wide: Tensor, narrow: Tensor) -> bool:
    import torch

    cast = wide.to(narrow.dtype)
    return torch.equal(cast.view(torch.uint8), narrow.view(torch.uint8))
