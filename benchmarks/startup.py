"""Cold starts: `lorahub --help`, and the verbs that read, over 10,000 adapters."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import insert, select, text

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from store import Catalog
from store.models import adapter_table

COUNT = 10_000
VERBS = (["--help"], ["version"], ["ls"], ["search", "packages"], ["show", "adapter-05000"])
EXAMPLE = Path(__file__).parent.parent / "examples" / "adapters" / "packages"


def main() -> None:
    """Print the median wall and CPU seconds of nine processes each."""
    with tempfile.TemporaryDirectory() as home:
        fill(Path(home))
        # Users' machines cache bytecode; a shell that forbids it would time the compiler.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["LORAHUB_HOME"] = home
        for words in VERBS:
            walls, cpus = [], []
            for _ in range(10):
                start, busy = time.perf_counter(), _children_cpu()
                subprocess.run(
                    [str(Path(sys.executable).parent / "lorahub"), *words],
                    check=True, capture_output=True, env=env,
                )  # fmt: skip
                walls.append(time.perf_counter() - start)
                cpus.append(_children_cpu() - busy)
            wall, cpu = statistics.median(walls[1:]), statistics.median(cpus[1:])
            print(f"lorahub {' '.join(words):18s} {wall:.3f} s wall, {cpu:.3f} s CPU")


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fill(home: Path) -> None:
    """A catalog of 10,000 rows that differ in name: one is real, the others copy it."""
    with Catalog.open(home / "catalog.db") as catalog:
        info = formats.inspect(EXAMPLE)
        catalog.add(Adapter("packages", Origin(Source.FOLDER, EXAMPLE), info))
        with catalog._write() as connection:
            columns = [c for c in adapter_table.columns if c.name != "id"]
            row = dict(connection.execute(select(*columns)).mappings().one())
            rows = [{**row, "name": f"adapter-{i:05d}"} for i in range(COUNT)]
            connection.execute(insert(adapter_table), rows)
            connection.execute(
                text(
                    "INSERT INTO adapters_fts (rowid, name, base, tags, targets, card) "
                    "SELECT id, name, base_model, '', '', card FROM adapters WHERE id > 1"
                )
            )


if __name__ == "__main__":
    main()
