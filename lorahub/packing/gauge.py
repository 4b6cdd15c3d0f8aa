"""Deltas in their SVD gauge, from factors, without ever forming a dense delta.

The singular value decomposition of ``s * B @ A`` comes from thin QR of both factors and the
decomposition of the small core between them, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorahub.adapter import Module, ModuleKind
from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import read_header

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, slots=True)
class Delta:
    """One module's delta, ``sum_i outer(columns[i], rows[i]) / sigma[i]``.

    Attributes:
        name: Module path inside the base model.
        kind: How the delta meets the base weight.
        sigma: float64 (r,), singular values, descending.
        rows: float32 (r, d_in), right singular vectors times sigma.
        columns: float32 (r, d_out), left singular vectors times sigma.
        energy: Squared Frobenius norm, of the delta as its rounded rows and columns give it.
    """

    name: str
    kind: ModuleKind
    sigma: NDArray[np.float64]
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    energy: float


def delta_of(name: str, kind: ModuleKind, A: NDArray[np.float64], B: NDArray[np.float64]) -> Delta:
    """The delta ``B @ A`` of factors A (r, d_in) and B (d_out, r)."""
    left, core_b = np.linalg.qr(B)
    right, core_a = np.linalg.qr(A.T)
    u, sigma, v = np.linalg.svd(core_b @ core_a.T, full_matrices=False)
    rows = ((v @ right.T) * sigma[:, None]).astype(np.float32)
    columns = ((left @ u).T * sigma[:, None]).astype(np.float32)
    v, u = rows.astype(np.float64), columns.astype(np.float64)
    inverse = 1 / np.where(sigma > 0, sigma, np.inf)
    energy = float(inverse @ ((v @ v.T) * (u @ u.T)) @ inverse)
    return Delta(name, kind, sigma, rows, columns, energy)


def read_deltas(weights: Path, modules: Sequence[Module]) -> list[Delta]:
    """The deltas of ``modules``, read from their weights file.

    Raises:
        InvalidAdapterError: The file cannot be read, or a factor has a value that is not finite.
    """
    header = read_header(weights)
    found = []
    with weights.open("rb") as file:

        def factor(key: str) -> NDArray[np.float64]:
            entry = header.tensors[key]
            file.seek(entry.start)
            raw = file.read(entry.stop - entry.start)
            values = as_float64(entry.dtype, entry.shape, raw)
            if not np.isfinite(values).all():
                raise InvalidAdapterError(
                    f"{weights}: tensor '{key}' holds NaN or infinite values",
                    hint="the training diverged; take an earlier checkpoint",
                )
            return values

        for module in modules:
            A, B = factor(module.key_a), factor(module.key_b) * module.scaling
            found.append(delta_of(module.name, module.kind, A, B))
    return found


def as_float64(dtype: str, shape: tuple[int, ...], raw: bytes) -> NDArray[np.float64]:
    """A tensor's bytes as float64; dtypes F64, F32, F16 and BF16."""
    if dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, _NUMPY[dtype])
    return values.reshape(shape).astype(np.float64)
