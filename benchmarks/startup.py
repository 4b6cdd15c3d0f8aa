"""Cold starts: `lorahub --help`, and the verbs that read, over 10,000 adapters."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from store import Catalog
from store.adapters import insert_rows

COUNT = 10_000
VERBS = (
    ["--help"],
    ["version"],
    ["ls"],
    ["search", "packages"],
    ["search", "pakages"],
    ["ls", "--base", "gpt2", "--rank", "4.."],
    ["show", "adapter-05000"],
)
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
    """A catalog of 10,000 adapters that differ in name, with the modules of a real one."""
    info = formats.inspect(EXAMPLE)
    bare = replace(info, modules=())
    with Catalog.open(home / "catalog.db") as catalog:
        catalog.add(Adapter("packages", Origin(Source.FOLDER, EXAMPLE), info))
        with catalog._write() as connection:
            for i in range(COUNT):
                one = info if i == COUNT // 2 else bare
                insert_rows(
                    connection, Adapter(f"adapter-{i:05d}", Origin(Source.FOLDER, EXAMPLE), one)
                )


if __name__ == "__main__":
    main()
