"""A LoRA from two full models: the best low-rank approximation of every weight's difference.

One difference is in memory at a time. What is finished stands in a folder of its own, a file per
module, so that an extraction that was stopped goes on with the next module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

from lorahub.adapter import DTYPE_BYTES, Module, ModuleKind
from lorahub.engine.batches import module_seed
from lorahub.engine.model_pair import ModelPair
from lorahub.engine.verify import TOLERANCE
from lorahub.errors import (
    IncompatibleError,
    IntegrityError,
    InvalidAdapterError,
    InvalidRecipeError,
    VerificationError,
)
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.extraction import ExtractedModule
from lorahub.formats.peft import tensor_keys
from lorahub.formats.safetensors import (
    TensorFile,
    Writer,
    encode,
    encode_header,
    header_entry,
    read_header,
)
from lorahub.kernels.dense import squared_distance
from lorahub.kernels.truncation import Truncation, truncated
from lorahub.record import Verification

_SLACK = 1e-5
"""How much the residual of an extraction may exceed the predicted one, rounding included."""


def extract(
    pair: ModelPair,
    work: Path,
    output: Path,
    *,
    rank: int | None,
    energy: float | None,
    dtype: str,
    listener: Listener = ignore,
) -> tuple[tuple[ExtractedModule, ...], tuple[str, ...]]:
    """Write the factors of every linear weight that differs to ``output`` (safetensors).

    The factors are balanced, at scaling 1, their ranks in order of descending singular values.
    The result does not depend on what was found finished in ``work``.

    Args:
        pair: The models.
        work: Folder of finished modules, for these models and parameters alone.
        output: File to create.
        rank: Largest rank; None is as many as there are.
        energy: Share (0..1] of each difference's squared norm to keep; None keeps ``rank``.
        dtype: safetensors dtype name of the factors.
        listener: Receives the ``extract`` phase.

    Returns:
        What was written, by name, and the names of the weights that do not differ.

    Raises:
        InvalidAdapterError: A weight holds NaN or Inf, or a file changed meanwhile.
        InvalidRecipeError: A value does not fit ``dtype``.
        IncompatibleError: No weight differs.
        VerificationError: A result is further from its difference than its rank explains.
        OSError: The disk is full or failing.
    """
    listener(PhaseStarted("extract", len(pair.modules), "modules"))
    found = []
    for index, name in enumerate(pair.modules):
        part = work / f"{index:05}.safetensors"
        module = _finished(part, name)
        if module is None:
            module = _extract(pair, name, part, rank, energy, dtype)
        found.append((module, part))
        listener(Advanced("extract", index + 1, name))
    changed = [(m, part) for m, part in found if m.rank]
    if not changed:
        raise IncompatibleError(
            "the two models have the same linear weights in every block",
            hint="give the base model first and the fine-tuned one second",
        )
    _join(changed, output, dtype)
    return tuple(m for m, _ in changed), tuple(m.name for m, _ in found if not m.rank)


def verify(
    pair: ModelPair,
    weights: Path,
    written: tuple[Module, ...],
    *,
    dtype: str,
    listener: Listener = ignore,
) -> Verification:
    """Compare written factors with the differences again, in float64.

    The error of a module is by how much its distance from the difference exceeds the least one
    that its rank allows, relative to the difference; the least one is found anew, in float64 from
    starting directions of their own.

    Raises:
        IntegrityError: A written module is none of the pair's.
        InvalidAdapterError: A file cannot be read any more.
    """
    listener(PhaseStarted("verify", len(written), "modules"))
    excess: list[float] = []
    distance = total = 0.0
    worst = ("", 0.0)
    with closing(TensorFile(weights)) as file:
        for module in written:
            if module.name not in pair.modules:
                raise IntegrityError(f"{weights}: module '{module.name}' is none of the models'")
            D = pair.difference(module.name)[0].double()
            B, A = D.new_empty(module.d_out, module.rank), D.new_empty(module.rank, module.d_in)
            file.read_into(module.key_b, B)
            file.read_into(module.key_a, A)
            found = squared_distance(D, B * module.scaling, A)
            best = truncated(D, rank=module.rank, seed=module_seed(1, module.name))
            least = math.sqrt(max(0.0, best.energy - best.captured))
            excess.append(max(0.0, math.sqrt(found) - least) ** 2)
            worst = max(worst, (module.name, _relative(excess[-1], best.energy)), key=itemgetter(1))
            distance, total = distance + found, total + best.energy
            listener(Advanced("verify", len(excess), module.name))
    truncation = _relative(distance, total)
    return Verification(
        error=_relative(sum(excess), total),
        worst_error=worst[1],
        worst_module=worst[0],
        truncation=truncation,
        retained=(max(0.0, 1 - truncation**2),),
        tolerance=TOLERANCE[dtype],
    )


def overall_error(modules: tuple[ExtractedModule, ...]) -> float:
    """Frobenius distance of all modules from their differences, relative to them."""
    lost = sum((m.error * m.norm) ** 2 for m in modules)
    return _relative(lost, sum(m.norm**2 for m in modules))


def _extract(
    pair: ModelPair, name: str, part: Path, rank: int | None, energy: float | None, dtype: str
) -> ExtractedModule:
    """Find the factors of one module; leaves them in ``part`` and what they are beside it."""
    D, base_norm = pair.difference(name)
    best = truncated(D, rank=rank, energy=energy, seed=module_seed(0, name))
    error = 0.0
    if best.rank:
        _write(part, name, best, dtype)
        with closing(TensorFile(part)) as file:
            for key, out in zip(_keys(name), (best.right, best.left), strict=True):
                file.read_into(key, out)
        error = _relative(squared_distance(D, best.left, best.right), best.energy)
        least = _relative(best.energy - best.captured, best.energy)
        if error > least + _SLACK + TOLERANCE[dtype]:
            raise VerificationError(
                f"module '{name}' is off by {error:.1e}, its rank explains {least:.1e}",
                hint="this is a defect of lorahub or of the machine; please report it",
            )
    d_out, d_in = D.shape
    module = ExtractedModule(
        name=name,
        d_out=d_out,
        d_in=d_in,
        rank=best.rank,
        change=_relative(best.energy, base_norm**2),
        error=error,
        norm=math.sqrt(best.energy),
    )
    marker = part.with_suffix(".json")
    passing = marker.with_suffix(".tmp")
    passing.write_text(json.dumps(asdict(module)), encoding="utf-8")
    passing.replace(marker)
    return module


def _write(part: Path, name: str, best: Truncation, dtype: str) -> None:
    part.unlink(missing_ok=True)
    factors = [encode(f, dtype) for f in (best.right, best.left)]
    if not all(f.finite for f in factors):
        raise InvalidRecipeError(
            f"module '{name}': a value of the factors overflows {dtype}", hint="use --dtype F32"
        )
    keys = _keys(name)
    sizes = [(f.shape, len(f.data)) for f in factors]
    with Writer(part, _header_room(dict(zip(keys, sizes, strict=True)), dtype)) as writer:
        for key, factor in zip(keys, factors, strict=True):
            writer.write(key, factor)


def _finished(part: Path, name: str) -> ExtractedModule | None:
    """What an earlier call left of a module, if it is whole."""
    try:
        module = ExtractedModule(**json.loads(part.with_suffix(".json").read_text("utf-8")))
        if module.rank and read_header(part).tensors.keys() != set(_keys(name)):
            return None
    except (OSError, ValueError, TypeError, InvalidAdapterError):
        return None
    return module if module.name == name else None


def _join(changed: Sequence[tuple[ExtractedModule, Path]], output: Path, dtype: str) -> None:
    """Copy the factors of all modules into one file."""
    sizes = {}
    for m, _ in changed:
        shapes = (m.rank, m.d_in), (m.d_out, m.rank)
        for key, shape in zip(_keys(m.name), shapes, strict=True):
            sizes[key] = shape, math.prod(shape) * DTYPE_BYTES[dtype]
    with Writer(output, _header_room(sizes, dtype)) as writer:
        for m, part in changed:
            with closing(TensorFile(part)) as file:
                for key in _keys(m.name):
                    writer.copy(key, file)


def _header_room(sizes: Mapping[str, tuple[tuple[int, ...], int]], dtype: str) -> int:
    """Bytes of the header of tensors given by shape and size in bytes."""
    entries, end = {}, 0
    for key, (shape, size) in sizes.items():
        entries[key] = header_entry(dtype, shape, end, size)
        end += size
    return len(encode_header(entries))


def _keys(name: str) -> tuple[str, str]:
    return tensor_keys(name, ModuleKind.LINEAR)


def _relative(squared: float, whole: float) -> float:
    """The root of a ratio of squared norms; nothing of nothing is 0."""
    return math.sqrt(max(0.0, squared) / whole) if whole > 0 else float(squared > 0)
