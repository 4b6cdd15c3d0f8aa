"""WeLore on the weights of a whole model (Jaiswal et al., ICML 2025, arXiv 2407.11239).

Two passes over the files, one matrix in memory at a time: singular values first, of which only
the values are kept; then, once one threshold over all matrices meets the reduction, the factors.
What the threshold leaves below the break-even rank becomes ``<name>_left @ <name>_right``
(U sqrt(S) and sqrt(S) V^T); every other tensor is written as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorahub.adapter import Adapter
from lorahub.engine.base_weights import BaseWeights
from lorahub.engine.factored import Choice, CompressedWeight, SecondPass, matrix_shape
from lorahub.engine.plan import LORAHUB_VERSION
from lorahub.errors import InvalidRecipeError, StorageError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.formats import checkpoint
from lorahub.kernels.allocation import allocate_dense, lrc_report
from lorahub.kernels.dense import singular_values
from lorahub.plot import rank_chart

RECORD_NAME = "compressed.json"
RECORD_VERSION = 1
CHART_NAME = "ranks.svg"
LARGEST_REDUCTION = 0.3
"""Above this, the paper's untuned models are of no use (see `_check_reduction`)."""


@dataclass(frozen=True, slots=True)
class Compression:
    """The record of a compression (``compressed.json``).

    Attributes:
        lorahub: Version of lorahub that made it.
        sources: sha256 (hex) of each weights file it was made from, by name.
        adapter: Content hash of the adapter given with the model, or None.
        adapter_kept: Whether that adapter stands beside the weights instead of in them.
        asked: Reduction that was asked for (0..1).
        reduction: Share of the matrices' parameters that was saved.
        bytes_before: Size of the model's weights files.
        bytes_after: Size of the files written, an adapter that was kept included.
        error: Frobenius distance of all matrices from what they were, relative to it.
        adapter_error: The same with the adapter on both sides, over the factored matrices that
            it targets; None unless it was kept.
        files: Names of the weights files written.
        weights: One entry per matrix, in file order.
    """

    lorahub: str
    sources: Mapping[str, str]
    adapter: str | None
    adapter_kept: bool
    asked: float
    reduction: float
    bytes_before: int
    bytes_after: int
    error: float
    adapter_error: float | None
    files: tuple[str, ...]
    weights: tuple[CompressedWeight, ...]

    def to_json(self) -> str:
        """The text of ``compressed.json``."""
        return json.dumps({"version": RECORD_VERSION, **asdict(self)}, indent=2) + "\n"


def compress(
    model: Path,
    output: Path,
    *,
    reduction: float,
    adapter: Adapter | None = None,
    keep_adapter: bool = False,
    force: bool = False,
    listener: Listener = ignore,
) -> Compression:
    """Compress the linear weights in a model's transformer blocks into ``output``.

    Args:
        model: Folder that transformers' ``save_pretrained`` wrote, with safetensors.
        output: An empty folder.
        reduction: Share (0..1) of the parameters of those weights to save.
        adapter: Added to the weights before they are compressed.
        keep_adapter: Compress the weights without the adapter instead, and write an adapter of
            the same ranks beside them that also takes up what the compression cut off: at each
            matrix the best rank-r part of its delta and of that error.
        force: Allow a reduction over 30 %.
        listener: Receives the ``spectra`` and ``compress`` phases.

    Raises:
        UsageError: The reduction is no share, or there is no adapter to keep.
        InvalidRecipeError: It is over 30 %, cannot be met, or a value does not fit its dtype.
        InvalidAdapterError: The folder is no model, or a file of it is damaged or holds NaN.
        IncompatibleError: The adapter is not of this model.
        UnsupportedAdapterError: The adapter cannot be added to weights.
        StorageError: The disk is full or failing.
    """
    _check_reduction(reduction, force=force)
    if keep_adapter and adapter is None:
        raise UsageError("there is no adapter to keep", hint="name one: --with REF --keep-adapter")
    folded = not keep_adapter
    with BaseWeights.open(model, adapter) as source:
        choices = _choose(source, reduction, listener, folded=folded)
        listener(PhaseStarted("compress", len(choices), "weights"))
        try:
            second = SecondPass(source, choices, listener)
            files = second.run(output, adapter if keep_adapter else None)
            for path in checkpoint.describing_files(model):
                shutil.copyfile(path, output / path.name)
            record = _record(second, files, output, reduction, adapter, keep_adapter)
            (output / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
            chart = rank_chart([(w.name, w.rank / w.full_rank, w.lrc) for w in record.weights])
            (output / CHART_NAME).write_text(chart, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{output}: cannot be written ({error.strerror})",
                hint="free some space, or write to another folder",
            ) from error
    return record


def _check_reduction(reduction: float, *, force: bool) -> None:
    if not 0 <= reduction < 1:
        raise UsageError(
            f"a reduction of {reduction} is no share of the parameters",
            hint="give a number from 0 to 0.3, e.g. --reduction 0.2",
        )
    if reduction > LARGEST_REDUCTION and not force:
        raise InvalidRecipeError(
            f"a reduction of {reduction:.0%} is too much without calibration data: the perplexity "
            "(C4) that WeLore reports for LLaMA-2-7B is 7.1 at 10 %, 14.4 at 30 % and 1836 at "
            "50 %, before any tuning",
            hint="stay at 30 % or less; --force does it all the same",
        )


def _choose(
    source: BaseWeights, reduction: float, listener: Listener, *, folded: bool
) -> dict[str, Choice]:
    """The first pass."""
    listener(PhaseStarted("spectra", len(source.matrices), "weights"))
    spectra: list[NDArray[np.float64]] = []
    for name in source.matrices:
        spectra.append(singular_values(source.read(name, folded=folded)))
        listener(Advanced("spectra", len(spectra), name))
    shapes = [matrix_shape(source.entries[name]) for name in source.matrices]
    full = sum(rows * columns for rows, columns in shapes)
    ranks = allocate_dense(spectra, shapes, math.floor(full * (1 - reduction)))
    rows = lrc_report(source.matrices, spectra, shapes, ranks)
    return {
        row.name: Choice(row, float(np.square(s).sum()))
        for row, s in zip(rows, spectra, strict=True)
    }


def _record(
    second: SecondPass,
    files: tuple[str, ...],
    output: Path,
    asked: float,
    adapter: Adapter | None,
    keep_adapter: bool,
) -> Compression:
    source = second.source
    before = sum(math.prod(w.shape) for w in second.weights)
    after = sum(w.parameters for w in second.weights)
    return Compression(
        lorahub=LORAHUB_VERSION,
        sources={f.path.name: _sha256(f.path) for f in source.files},
        adapter=adapter.info.content_hash if adapter else None,
        adapter_kept=keep_adapter,
        asked=asked,
        reduction=1 - after / before,
        bytes_before=sum(f.path.stat().st_size for f in source.files),
        bytes_after=sum(p.stat().st_size for p in output.rglob("*.safetensors")),
        error=second.error.relative,
        adapter_error=second.adapter_error.relative if keep_adapter else None,
        files=files,
        weights=tuple(second.weights),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
