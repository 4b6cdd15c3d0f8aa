"""What is to be extracted, and what of it is known before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorahub.adapter import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class Request:
    """What to extract.

    Attributes:
        base: Folder of the base model.
        finetuned: Folder of the fine-tuned model.
        rank: Largest rank, or None.
        energy: Share (0..1] of each difference's squared norm to keep, or None.
        dtype: F32, F16 or BF16; None takes the fine-tuned model's.
        base_model: Hub id of the base model; None takes what its folder tells.
        name: Catalog name of the result, or None.
        folder: Folder of the result, or None.
    """

    base: Path
    finetuned: Path
    rank: int | None = None
    energy: float | None = None
    dtype: str | None = None
    base_model: str | None = None
    name: str | None = None
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One linear weight of both models; ``rank`` is the largest it can get."""

    name: str
    d_out: int
    d_in: int
    rank: int


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """What an extraction would write, known from headers alone.

    Attributes:
        base_model: Hub id of the base model, or None where it is not known.
        dtype: safetensors dtype name of the factors.
        modules: By name; those whose weights turn out to be the same are not written.
    """

    base_model: str | None
    dtype: str
    modules: tuple[PlannedModule, ...]

    @property
    def output_bytes(self) -> int:
        """Bytes of factors that will be written, at most."""
        return DTYPE_BYTES[self.dtype] * sum(m.rank * (m.d_out + m.d_in) for m in self.modules)
