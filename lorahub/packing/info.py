"""What reading a pack gives: its members, and their factors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorahub.adapter import ModuleKind


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one codec made of a member: bytes, and relative error of the delta."""

    codec: str
    bytes: int
    error: float


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One adapter of a pack.

    Attributes:
        name: Its name in the pack.
        codec: ``exact``, ``waterfill``, or the baseline that did better.
        modules: Number of its target modules.
        parameters: Number of values its factors had.
        rank: Largest rank that is stored.
        bytes: Bytes of its data; of an exact one, of its factors before anything is shared.
        error: Relative Frobenius error over all modules; 0 for exact ones.
        worst_module: Module with the largest relative error, None for exact ones.
        worst_error: That error.
        base_model: Base model as the adapter named it, or None.
        license: Licence its card states, or None.
        same_as: Member with the same files, whose data it uses; None for most.
        table: What each codec would have given at these bytes; empty for exact ones.
    """

    name: str
    codec: str
    modules: int
    parameters: int
    rank: int
    bytes: int
    error: float
    worst_module: str | None
    worst_error: float
    base_model: str | None
    license: str | None
    same_as: str | None
    table: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class PackInfo:
    """A pack file.

    Attributes:
        path: The file.
        bytes: Its size.
        bf16_bytes: What the members' parameters need in bfloat16.
        members: The adapters in it.
    """

    path: Path
    bytes: int
    bf16_bytes: int
    members: tuple[MemberInfo, ...]

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than its members in bfloat16."""
        return self.bf16_bytes / self.bytes


@dataclass(frozen=True, slots=True)
class Expanded:
    """One module of a decoded member: delta = B @ A.

    Attributes:
        name: Module path inside the base model.
        kind: How the delta meets the base weight.
        A: float32 (r, d_in).
        B: float32 (d_out, r).
    """

    name: str
    kind: ModuleKind
    A: NDArray[np.float32]
    B: NDArray[np.float32]
