"""An adapter on its way into a pack: its deltas and the quantisation step it needs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorahub.packing import model, waterfill
from lorahub.packing.gauge import Delta
from lorahub.packing.joint import Member
from lorahub.packing.members import waterfill_fields
from lorahub.packing.search import search

BYTES_SLOPE, ERROR_SLOPE = -0.6, 1.0
"""Of the logarithms of bytes and error, against that of the step; about."""

EXACT = 1e-9
"""An error that counts as none, where its logarithm is taken."""

_LARGEST_GAIN = 2.0


@dataclass(slots=True)
class Source:
    """An adapter that is coded with loss.

    Attributes:
        deltas: Its modules.
        parameters: Number of values in its factors.
        protect: Whether steps follow the modules' norms.
        step: Quantisation step.
        flags: What each module is predicted from, once that is chosen.
        alone: Error that it has alone, with its share of the budget.
        reached: Error in the latest encoding.
    """

    deltas: list[Delta]
    parameters: int
    protect: bool
    step: float = 1.0
    flags: Sequence[int] = ()
    alone: float = 0.0
    reached: float = 0.0

    def steps(self, factor: float) -> list[float]:
        """Step per module; with ``protect`` it grows with the root of the module's norm."""
        step = self.step * factor
        if not self.protect:
            return [step] * len(self.deltas)
        norms = [math.sqrt(d.energy) for d in self.deltas]
        mean = sum(norms) / len(norms)
        return [step * math.sqrt(n / mean) if n else step for n in norms]

    def settle(self, share: float | None, error: float | None, *, exactly: bool) -> None:
        """Set the step to what the adapter alone needs for its share of bytes, or for an error.

        Args:
            share: Bytes, or None.
            error: Relative error, or None.
            exactly: Whether to encode it for that, or to trust the model of the rate.
        """
        if share is not None:
            self.step = model.step_for_bits(self.deltas, 8 * share)
        else:
            self.step = model.step_for_error(self.deltas, error or 1.0)
        if not exactly:
            return

        def measure(factor: float) -> tuple[float, tuple[float, float]]:
            encoding = waterfill.encode(self.deltas, self.steps(factor), [None] * len(self.deltas))
            reached = relative(encoding.errors.sum(), self.energy)
            if share is not None:
                size = len(waterfill_fields(encoding.coded, ())[1])
                over = math.log(max(size, 1) / share)
            else:
                over = math.log(max(reached, EXACT) / (error or 1.0))
            return over, (factor, reached)

        slope = BYTES_SLOPE if share is not None else ERROR_SLOPE
        floor = model.smallest_step(self.deltas) / self.step
        factor, self.alone = search(measure, slope=slope, floor=floor).best or (1.0, 0.0)
        self.step *= factor

    def rebalance(self) -> None:
        """Take back in step what sharing gained in error, so that all adapters gain alike."""
        if self.alone > 0 and self.reached > 0:
            self.step *= min(max(self.alone / self.reached, 1.0), _LARGEST_GAIN)

    @property
    def energy(self) -> float:
        """Squared Frobenius norm over all modules."""
        return sum(d.energy for d in self.deltas)

    def at(self, factor: float) -> Member:
        """The adapter with all steps times ``factor``."""
        keys = [(d.name, d.rows.shape[1], d.columns.shape[1]) for d in self.deltas]
        return Member(keys, self.deltas, self.steps(factor))


def relative(squared: float, energy: float) -> float:
    """Relative error of four digits: the index keeps it, and noise would cost bytes there."""
    return float(f"{math.sqrt(squared / energy):.4g}") if energy else 0.0
