"""Sketches of adapters: short vectors whose inner products estimate those of whole adapters.

A delta ``s * B @ A`` is a sum of outer products, and TensorSketch (Pham & Pagh, KDD 2013) finds
the CountSketch of an outer product from those of its two vectors, by FFT: reading the factors is
nearly all the work, and no delta is ever formed. Sketches of all modules add up to one vector per
adapter, since every module hashes by a function of its own. Three are made: of the deltas, of the
projectors on their row and column spaces, and of their singular values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import torch
from numpy.random import PCG64
from torch import Tensor

from lorahub.adapter import Adapter, AdapterInfo, Module
from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import TensorFile
from lorahub.kernels.batched import gram
from lorahub.kernels.lowrank import whitened

DELTA, SUBSPACE, SPECTRUM = 1024, 512, 128
"""Lengths, powers of two. The standard error of a cosine of deltas is about 1/sqrt(1024)."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """An adapter in a few kilobytes.

    Attributes:
        norm: Frobenius norm of all deltas together, exact.
        structure: sha256 over names, shapes, ranks and scalings of the modules.
        factors: sha256 over these, the dtypes and the hashes of all factors.
        delta: int8 values, the largest at 127: the direction of the sketch of the deltas, whose
            length is `norm` (all 0 where the deltas are).
        subspace: The same of the projectors on the spaces of A's rows and B's columns.
        spectrum: The same of the singular values of the deltas, in descending order.
    """

    norm: float
    structure: bytes
    factors: bytes
    delta: bytes
    subspace: bytes
    spectrum: bytes


@dataclass(frozen=True, slots=True)
class Projection:
    """The vectors themselves, float64: linear in the deltas, the projectors and the spectra."""

    delta: Tensor
    subspace: Tensor
    spectrum: Tensor
    norm: float


def sketch(adapter: Adapter) -> Sketch:
    """Sketch an adapter from its factors; leaves torch at one thread here.

    Raises:
        InvalidAdapterError: The weights file is damaged, or holds NaN or Inf.
    """
    # Small kernels spin at barriers when BLAS splits them: one thread each, many adapters.
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    with closing(TensorFile(adapter.weights_path)) as file:
        found = project(_read(file, module) for module in adapter.info.modules)
    return Sketch(
        found.norm,
        structure_hash(adapter.info.modules),
        factors_hash(adapter.info),
        _packed(found.delta),
        _packed(found.subspace),
        _packed(found.spectrum),
    )


def project(modules: Iterable[tuple[Module, Tensor, Tensor]]) -> Projection:
    """Sketch modules given as (module, B, A), with float64 factors."""
    delta = torch.zeros(DELTA // 2 + 1, dtype=torch.complex128)
    subspace = torch.zeros(SUBSPACE // 2 + 1, dtype=torch.complex128)
    spectrum = torch.zeros(SPECTRUM, dtype=torch.float64)
    energy = 0.0
    for module, B, A in modules:
        columns, rows = B * module.scaling, A.mT
        hash_b, hash_a = _Hash(module.name, "B", len(columns)), _Hash(module.name, "A", len(rows))
        delta += _outer(hash_b.delta(columns), hash_a.delta(rows))
        W_b, K_b = (x[0] for x in whitened(gram(columns.mT[None])))
        W_a, K_a = (x[0] for x in whitened(gram(A[None])))
        for hashed, basis in ((hash_b, columns @ W_b), (hash_a, rows @ W_a)):
            subspace += _outer(hashed.one(basis), hashed.other(basis))
        sigma = torch.linalg.svdvals(K_b @ K_a.mT)
        _Hash(module.name, "sigma", len(sigma)).add_to(spectrum, sigma)
        energy += float(sigma.square().sum())
    return Projection(
        torch.fft.irfft(delta, DELTA), torch.fft.irfft(subspace, SUBSPACE), spectrum, energy**0.5
    )


def structure_hash(modules: Iterable[Module]) -> bytes:
    """What two adapters share that differ in their factors' values or dtypes only."""
    rows = [f"{m.name}\n{m.kind} {m.d_out} {m.d_in} {m.rank} {m.scaling!r}\n" for m in modules]
    return hashlib.sha256("".join(sorted(rows)).encode()).digest()


def factors_hash(info: AdapterInfo) -> bytes:
    """What two adapters share that are the same but for file names, keys, config and card."""
    rows = [
        f"{m.name}\n{m.kind} {m.d_out} {m.d_in} {m.rank} {m.scaling!r} "
        f"{m.dtype_a} {m.hash_a} {m.dtype_b} {m.hash_b}\n"
        for m in info.modules
    ]
    if not all(m.hash_a and m.hash_b for m in info.modules):
        rows.append(info.weights_sha256)  # factors nobody hashed are like no others
    return hashlib.sha256("".join(sorted(rows)).encode()).digest()


def _read(file: TensorFile, module: Module) -> tuple[Module, Tensor, Tensor]:
    B = torch.empty(module.d_out, module.rank, dtype=torch.float64)
    A = torch.empty(module.rank, module.d_in, dtype=torch.float64)
    for key, factor in ((module.key_b, B), (module.key_a, A)):
        file.read_into(key, factor)
        if not bool(torch.isfinite(factor).all()):
            raise InvalidAdapterError(
                f"{file.path}: tensor '{key}' holds NaN or Inf",
                hint="the training run diverged or the file is damaged",
            )
    return module, B, A


class _Hash:
    """The hash functions of one side of a module: every index gets buckets and signs.

    They come from raw words of a generator whose stream numpy keeps the same for all time.
    """

    def __init__(self, module: str, side: str, size: int) -> None:
        # The size takes part where it is a dimension: other shapes have nothing in common.
        # Singular values are counted from the largest, whatever the rank.
        what = f"{module}:{side}" if side == "sigma" else f"{module}:{side}:{size}"
        seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:16], "little")
        self._words = torch.from_numpy(PCG64(seed).random_raw(size).view("int64"))

    def delta(self, columns: Tensor) -> Tensor:
        """CountSketch of every column, (DELTA, r)."""
        return self._counted(columns, DELTA, 0)

    def one(self, columns: Tensor) -> Tensor:
        """CountSketch of every column, (SUBSPACE, r)."""
        return self._counted(columns, SUBSPACE, 16)

    def other(self, columns: Tensor) -> Tensor:
        """As `one`, by a second function that knows nothing of the first."""
        return self._counted(columns, SUBSPACE, 32)

    def add_to(self, out: Tensor, values: Tensor) -> None:
        """Add the CountSketch of a vector to ``out``, whose length is a power of two."""
        bucket, sign = self._picked(len(out), 0)
        out.index_add_(0, bucket, values * sign)

    def _counted(self, columns: Tensor, size: int, bits: int) -> Tensor:
        bucket, sign = self._picked(size, bits)
        out = torch.zeros(size, columns.shape[1], dtype=columns.dtype)
        return out.index_add_(0, bucket, columns * sign[:, None])

    def _picked(self, size: int, bits: int) -> tuple[Tensor, Tensor]:
        """Bucket below ``size`` and sign of every index, from the 16 bits at ``bits``."""
        word = self._words >> bits
        return word & (size - 1), (1 - 2 * (word >> 15 & 1)).double()


def _outer(one: Tensor, other: Tensor) -> Tensor:
    """Spectrum of the summed sketches of the outer products of paired columns."""
    product: Tensor = torch.fft.rfft(one, dim=0) * torch.fft.rfft(other, dim=0)
    return product.sum(1)


def _packed(vector: Tensor) -> bytes:
    # Rounding to 127 levels moves a cosine by about a thousandth, far below the sketch's own error.
    largest = float(vector.abs().max())
    return (vector * (127 / largest if largest > 0 else 0)).round().to(torch.int8).numpy().tobytes()
