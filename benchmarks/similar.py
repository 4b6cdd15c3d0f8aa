"""Likeness among 10,000 sketched adapters, and what it costs to sketch one of a 7B."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sqlalchemy import insert, select

from benchmarks.data import LLAMA_2_7B, llama_modules, write_adapter
from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.sketch import DELTA, SPECTRUM, SUBSPACE, sketch
from lorahub.sketching import VERSION
from lorahub.workspace import Workspace
from store.models import adapter_table, sketch_table

COUNT = 10_000
EXAMPLE = Path(__file__).parent.parent / "examples" / "adapters" / "packages"


def main() -> None:
    """Print medians of wall and CPU seconds."""
    with tempfile.TemporaryDirectory() as home, Workspace.open(Path(home)) as workspace:
        _fill(workspace)
        _time("similar", lambda: workspace.similar("packages"))
        _time("similar --by spectrum", lambda: workspace.similar("packages", by="spectrum"))
        _time("cluster", workspace.cluster, 3)
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), llama_modules(*LLAMA_2_7B), 16, 0)
        info = formats.inspect(Path(folder))
        adapter = Adapter("one", Origin(Source.FOLDER, Path(folder)), info)
        _time(f"sketch {len(info.modules)} modules of a 7B", lambda: sketch(adapter), 5)


def _time(what: str, work: Callable[[], object], rounds: int = 9) -> None:
    walls, cpus = [], []
    for _ in range(rounds + 1):
        start, busy = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - start)
        cpus.append(time.process_time() - busy)
    wall, cpu = statistics.median(walls[1:]), statistics.median(cpus[1:])
    print(f"{what:32s} {wall:.3f} s wall, {cpu:.3f} s CPU")


def _fill(workspace: Workspace) -> None:
    """A catalog of adapters with sketches in random directions."""
    rng = np.random.default_rng(0)
    catalog = workspace.catalog
    catalog.add(Adapter("packages", Origin(Source.FOLDER, EXAMPLE), formats.inspect(EXAMPLE)))
    with catalog._write() as connection:
        columns = [c for c in adapter_table.columns if c.name != "id"]
        row = dict(connection.execute(select(*columns)).mappings().one())
        rows = [{**row, "name": f"adapter-{i:05d}"} for i in range(COUNT)]
        connection.execute(insert(adapter_table), rows)
        ids = connection.execute(select(adapter_table.c.id)).scalars().all()
        connection.execute(
            insert(sketch_table),
            [
                {
                    "adapter_id": i,
                    "version": VERSION,
                    "norm": 1.0,
                    "structure": rng.bytes(32),
                    "factors": rng.bytes(32),
                    "delta": _vector(rng, DELTA),
                    "subspace": _vector(rng, SUBSPACE),
                    "spectrum": _vector(rng, SPECTRUM),
                }
                for i in ids
            ],
        )


def _vector(rng: np.random.Generator, size: int) -> bytes:
    values = rng.standard_normal(size)
    return bytes(np.round(values * 127 / np.abs(values).max()).astype(np.int8))


if __name__ == "__main__":
    main()
