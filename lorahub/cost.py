"""What merges cost: an estimate of time from the shapes alone.

A merge reads its sources, multiplies their factors into Gram matrices, multiplies its own factors
out, and verifies and writes the result. With R the stacked rank of a module and k the rank that is
written, the products take ``8 (R + k)^2 (d_in + d_out)`` flops, verification in float64 included;
``8 R^2 (d_in + d_out)`` of them, and the reading, depend on the sources only and happen once for
merges that share them. Everything smaller is the merge's own constant.

`benchmarks.scale` measures the speeds anew and compares what they predict with what it takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan


ELEMENT_FLOPS = 900
"""What working on a delta element by element costs, per element and stacked rank."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one merge needs.

    Attributes:
        source_flops: Products of the sources' factors among themselves.
        flops: All other products.
        input_bytes: Factors read.
        output_bytes: Factors written.
    """

    source_flops: int
    flops: int
    input_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one core works.

    Attributes:
        flops: Floating-point operations a second, in thin products.
        bytes: Bytes a second: read, converted and hashed, or encoded, hashed and written.
        merge: Seconds that every merge takes besides: plan, catalog, small decompositions, fsync.
        task: Seconds that handing a group to another process takes.
        start: Seconds until another process can work, imports included.
    """

    flops: float = 6e10
    bytes: float = 9e7
    merge: float = 0.05
    task: float = 0.01
    start: float = 6.0

    def seconds(self, group: Iterable[Cost]) -> float:
        """How long merges with the same sources take together on one core."""
        costs = list(group)
        flops = sum(c.flops for c in costs) + max(c.source_flops for c in costs)
        moved = sum(c.output_bytes for c in costs) + max(c.input_bytes for c in costs)
        return self.merge * len(costs) + flops / self.flops + moved / self.bytes

    def batch_seconds(self, groups: Iterable[Iterable[Cost]], workers: float = 1) -> float:
        """How long groups take on ``workers`` processes with a core each, on any machines.

        They are not all done at once: in the end, each waits half a group on average.
        """
        each = [self.seconds(group) + self.task for group in groups]
        share = sum(each) / workers + (1 - 1 / workers) * sum(each) / len(each) / 2
        return self.start + max(share, *each)


def products(total_rank: int, rank: int, width: int) -> tuple[int, int]:
    """Flops of a module whose ``d_in + d_out`` is ``width``: among its sources, and all others."""
    return 8 * total_rank**2 * width, 8 * (2 * total_rank + rank) * rank * width


def cost_of(plan: Plan) -> Cost:
    """What a plan needs."""
    source = own = 0
    for m in plan.modules:
        shared, others = products(m.total_rank, m.rank, m.d_in + m.d_out)
        source += shared
        own += others
        if plan.method.space == "delta":
            own += ELEMENT_FLOPS * m.d_in * m.d_out * m.total_rank
    return Cost(source, own, plan.input_bytes, plan.output_bytes)
