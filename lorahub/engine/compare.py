"""Comparing adapters from their factors alone: no delta is ever formed in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lorahub.adapter import Adapter, Module
from lorahub.errors import IncompatibleError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.formats.safetensors import TensorFile

SIGN_ROWS = 64
"""Rows of the deltas that sign conflict is counted on, spread evenly."""


@dataclass(frozen=True, slots=True)
class Norms:
    """One adapter at one module, or over all: Frobenius norm and effective rank of the delta.

    The effective rank is exp of the entropy of the normalised singular values (Roy & Vetterli,
    EUSIPCO 2007); over all modules it is their mean.
    """

    adapter: str
    norm: float
    effective_rank: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two adapters at one module, or over all they share.

    Attributes:
        one: Name of the first.
        other: Name of the second.
        cosine: Cosine between the deltas, as vectors.
        overlap_a: Mean squared cosine of the principal angles between the row spaces of A.
        overlap_b: The same between the column spaces of B.
        sign_conflict: Share of the entries with opposite signs, on up to 64 rows per module.
    """

    one: str
    other: str
    cosine: float
    overlap_a: float
    overlap_b: float
    sign_conflict: float


@dataclass(frozen=True, slots=True)
class ModuleComparison:
    """All figures of one module."""

    module: str
    norms: tuple[Norms, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures over all shared modules, and per module."""

    norms: tuple[Norms, ...]
    pairs: tuple[Pair, ...]
    modules: tuple[ModuleComparison, ...]


@dataclass(frozen=True, slots=True)
class _Term:
    """One adapter at one module: float64 factors, orthonormal bases, singular values."""

    B: Tensor
    A: Tensor
    left: Tensor
    right: Tensor
    sigma: Tensor


def compare(adapters: Sequence[Adapter], *, listener: Listener = ignore) -> Comparison:
    """Compare two or more adapters over the modules that all of them have.

    Raises:
        IncompatibleError: They share no module, or one of different shapes.
    """
    tables = [{m.name: m for m in a.info.modules} for a in adapters]
    shared = sorted(set.intersection(*(set(t) for t in tables)))
    if not shared:
        raise IncompatibleError(
            f"{', '.join(a.name for a in adapters)} share no target module",
            hint="see their modules with `lorahub show`",
        )
    listener(PhaseStarted("compare", len(shared), "modules"))
    files = [TensorFile(a.weights_path) for a in adapters]
    names = [a.name for a in adapters]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        modules = []
        dots: list[Tensor] = []
        for done, name in enumerate(shared, 1):
            members = [table[name] for table in tables]
            _check_shapes(name, names, members)
            terms = [_term(f, m) for f, m in zip(files, members, strict=True)]
            dots.append(_products(terms))
            modules.append(_compare_module(name, names, terms, dots[-1]))
            listener(Advanced("compare", done, name))
    finally:
        torch.set_num_threads(before)
        for file in files:
            file.close()
    return _total(names, modules, torch.stack(dots).sum(0))


def _check_shapes(name: str, adapters: Sequence[str], members: Sequence[Module]) -> None:
    first = members[0]
    for adapter, m in zip(adapters, members, strict=True):
        if (m.d_out, m.d_in) != (first.d_out, first.d_in):
            raise IncompatibleError(
                f"module '{name}' is {first.d_out}x{first.d_in} in '{adapters[0]}' but "
                f"{m.d_out}x{m.d_in} in '{adapter}'",
                hint="the adapters are for different base models",
            )


def _term(file: TensorFile, module: Module) -> _Term:
    B = torch.empty(module.d_out, module.rank, dtype=torch.float64)
    A = torch.empty(module.rank, module.d_in, dtype=torch.float64)
    file.read_into(module.key_b, B)
    file.read_into(module.key_a, A)
    B *= module.scaling
    left, R_b = torch.linalg.qr(B)
    right, R_a = torch.linalg.qr(A.mT)
    return _Term(B, A, left, right, torch.linalg.svdvals(R_b @ R_a.mT))


def _products(terms: Sequence[_Term]) -> Tensor:
    """Inner products of all pairs of deltas: <B1 A1, B2 A2> = tr(B1ᵀB2 A2A1ᵀ)."""
    return torch.tensor(
        [[float(((x.B.mT @ y.B) * (x.A @ y.A.mT)).sum()) for y in terms] for x in terms],
        dtype=torch.float64,
    )


def _compare_module(
    module: str, names: Sequence[str], terms: Sequence[_Term], dots: Tensor
) -> ModuleComparison:
    norms = tuple(
        Norms(name, float(t.sigma.norm()), _effective_rank(t.sigma))
        for name, t in zip(names, terms, strict=True)
    )
    pairs = []
    for i, j in combinations(range(len(terms)), 2):
        one, other = terms[i], terms[j]
        pairs.append(
            Pair(
                names[i],
                names[j],
                _cosine(dots, i, j),
                _overlap(one.right, other.right),
                _overlap(one.left, other.left),
                _sign_conflict(one, other),
            )
        )
    return ModuleComparison(module, norms, tuple(pairs))


def _cosine(dots: Tensor, i: int, j: int) -> float:
    length = float(dots[i, i].clamp_min(0).sqrt() * dots[j, j].clamp_min(0).sqrt())
    return float(dots[i, j]) / length if length > 0 else 0.0


def _overlap(one: Tensor, other: Tensor) -> float:
    return float((one.mT @ other).square().sum()) / min(one.shape[1], other.shape[1])


def _effective_rank(sigma: Tensor) -> float:
    total = float(sigma.sum())
    if total <= 0:
        return 0.0
    share = sigma / total
    return float(torch.special.entr(share).sum().exp())


def _sign_conflict(one: _Term, other: _Term) -> float:
    rows = torch.linspace(0, one.B.shape[0] - 1, min(SIGN_ROWS, one.B.shape[0])).round().long()
    product = torch.sign(one.B[rows] @ one.A) * torch.sign(other.B[rows] @ other.A)
    both = int((product != 0).sum())
    return int((product < 0).sum()) / both if both else 0.0


def _total(names: Sequence[str], modules: Sequence[ModuleComparison], dots: Tensor) -> Comparison:
    norms = tuple(
        Norms(
            name,
            float(dots[i, i].clamp_min(0).sqrt()),
            sum(m.norms[i].effective_rank for m in modules) / len(modules),
        )
        for i, name in enumerate(names)
    )
    pairs = []
    for p, (i, j) in enumerate(combinations(range(len(names)), 2)):
        each = [m.pairs[p] for m in modules]
        pairs.append(
            Pair(
                names[i],
                names[j],
                _cosine(dots, i, j),
                sum(e.overlap_a for e in each) / len(each),
                sum(e.overlap_b for e in each) / len(each),
                sum(e.sign_conflict for e in each) / len(each),
            )
        )
    return Comparison(norms, tuple(pairs), tuple(modules))
