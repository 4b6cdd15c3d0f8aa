"""How the cost of a merge grows: with the number of modules, and with the sum of the ranks.

Modules of a 1B model's shapes (2048, 5504), rank-16 bf16 adapters, to rank 16, CPU seconds at one
thread. Prints the times and the exponents of the growth, and draws docs/scaling.svg.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.data import llama_modules, write_adapter
from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.methods.registry import get

DATA = Path(__file__).parent / "data"
RANK = 16
METHODS = ("svd", "lego", "cat")
LAYERS = (2, 4, 8, 16, 32)
ADAPTERS = (2, 4, 8, 16, 32, 64)


def main() -> None:
    """Print both tables and draw them."""
    tables = {}
    for method in METHODS:
        modules = [(7 * n, _seconds(method, n, 4)) for n in LAYERS]
        ranks = [(RANK * n, _seconds(method, 2, n)) for n in ADAPTERS]
        tables[method] = modules, ranks
        for label, rows in (("modules", modules), ("sum of ranks", ranks)):
            cells = ", ".join(f"{x}: {y:.3f}" for x, y in rows)
            print(
                f"{method:5s} by {label:12s} {cells} s; exponent {_exponent(rows):.2f}", flush=True
            )
    _draw(tables)


def _seconds(method: str, layers: int, adapters: int) -> float:
    """Median CPU seconds of three runs."""
    modules = llama_modules(layers, 2048, 5504)
    folders = [
        write_adapter(DATA / f"1b-{layers}" / f"a{i}", modules, RANK, i) for i in range(adapters)
    ]
    loaded = [Adapter(f.name, Origin(Source.FOLDER, f), formats.inspect(f)) for f in folders]
    parameters = {} if method == "cat" else {"rank": RANK}
    plan = make_plan(loaded, [1.0] * adapters, get(method), parameters)
    out = DATA / "scaling.safetensors"
    found = []
    for _ in range(4):
        out.unlink(missing_ok=True)
        start = time.process_time()
        run(plan, out, workers=1, device="cpu")
        found.append(time.process_time() - start)
    return sorted(found[1:])[1]


Rows = list[tuple[int, float]]


def _exponent(rows: Rows) -> float:
    """Slope of log time over log size, over the larger half of the sizes."""
    x, y = np.log(np.array(rows[len(rows) // 2 :])).T
    return float(np.polyfit(x, y, 1)[0])


def _draw(tables: dict[str, tuple[Rows, Rows]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lorahub"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for panel, (axis, label) in enumerate(zip(axes, ("modules", "sum of ranks"), strict=True)):
        for method, both in tables.items():
            axis.loglog(*zip(*both[panel], strict=True), marker="o", label=method)
        axis.set_xlabel(label)
        axis.set_ylabel("CPU seconds")
        axis.grid(which="both", alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(Path(__file__).parent.parent / "docs" / "scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
