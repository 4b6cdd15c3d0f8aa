"""Batches on 1, 2 and 4 workers of a Ray cluster, and what the cost model says of them.

The speeds of one core are fitted to merges of several sizes in this process. With them the model
predicts batches on the cluster, which are then measured; beside every number of workers stands
what as many processes of plain matrix products get of the same machine, since that is all there
is to share. The last table is only computed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import ray
import torch
from scipy.optimize import nnls

from benchmarks.data import llama_modules, write_adapter
from lorahub.batch import Outcome
from lorahub.cost import Cost, Speed, cost_of, products
from lorahub.events import Listener
from lorahub.executors import Executor, Group, Here, Hindered, Ray, Start, Worker
from lorahub.recipe import Recipe, make_recipe
from lorahub.workspace import Workspace

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
SIZES = ((1, 128, 256, 4), (2, 1024, 2816, 8), (2, 1024, 2816, 32), (4, 2048, 5504, 16))
"""Layers, hidden size, MLP width, rank: what speeds are fitted to; the last is the batch's."""

LLAMA_3_70B = tuple(
    (d_out, d_in)
    for d_out, d_in in (
        (8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192),
        (28672, 8192), (28672, 8192), (8192, 28672),
    )
    for _ in range(80)
)  # fmt: skip
"""(d_out, d_in) of q, k, v, o, gate, up and down of every layer."""


def recipes(size: tuple[int, int, int, int], count: int) -> list[Recipe]:
    """Merges of pairs of adapters, no two of the same pair."""
    *shape, rank = size
    modules = llama_modules(*shape)
    stem = "-".join(map(str, size))
    homes = [write_adapter(DATA / "scale" / stem / f"a{i}", modules, rank, i) for i in range(8)]
    pairs = itertools.islice(itertools.combinations(homes, 2), count)
    return [
        make_recipe(
            {
                "method": "svd",
                "parameters": {"rank": rank},
                "sources": [{"adapter": str(home)} for home in pair],
                "output": {"name": f"m{i}"},
            }
        )
        for i, pair in enumerate(pairs)
    ]


class Timed:
    """An executor whose outcomes carry CPU seconds of their process instead of seconds."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.jobs, self.hosts, self.elsewhere = inner.jobs, inner.hosts, inner.elsewhere

    def run(
        self, groups: Sequence[Group], hindered: Hindered, start: Start
    ) -> Generator[Outcome, None, None]:
        return self._inner.run(groups, hindered, partial(_timed, start))


def _timed(start: Start, listener: Listener) -> Worker:
    worker = start(listener)

    def work(group: Group) -> list[Outcome]:
        begin = time.process_time()
        outcomes = list(worker(group))
        each = (time.process_time() - begin) / len(group)
        return [replace(outcome, seconds=each) for outcome in outcomes]

    return work


def batch(parts: Sequence[list[Recipe]], executor: Executor) -> tuple[float, list[float]]:
    """Seconds of the last of some batches, and the CPU seconds of each of its merges."""
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        for i, part in enumerate(parts):
            with Workspace.open(Path(folder) / str(i)) as space:
                space.pull(sorted({s.adapter for r in part for s in r.sources}))
                start = time.perf_counter()
                found = list(space.batch(part, executor=Timed(executor)))
                assert all(o.state == "merged" for o in found), found
        return time.perf_counter() - start, [o.seconds for o in found]


def costs(some: list[Recipe]) -> list[Cost]:
    """What the merges need."""
    with tempfile.TemporaryDirectory() as folder, Workspace.open(Path(folder)) as space:
        return [cost_of(space.plan(recipe)) for recipe in some]


def fitted() -> Speed:
    """The speeds of one core of this machine, in CPU seconds: the median merge of every size."""
    rows, took = [], []
    for size in SIZES:
        some = recipes(size, 6)
        seconds = float(np.median(batch([some], Here())[1][1:]))
        cost = costs(some[:1])[0]
        flops, moved = cost.source_flops + cost.flops, cost.input_bytes + cost.output_bytes
        # Relative errors count, or the largest size would be all that matters.
        rows.append([1 / seconds, flops / seconds, moved / seconds])
        took.append(1.0)
        print(f"  {flops / 1e9:8.3f} Gflop {moved / 1e6:8.2f} MB {1000 * seconds:9.1f} ms")
    scale = np.abs(np.array(rows)).max(axis=0)
    found = nnls(np.array(rows) / scale, np.array(took))[0] / scale
    merge, flops, moved = (float(value) for value in found)
    return Speed(
        flops=1 / flops if flops else np.inf, bytes=1 / moved if moved else np.inf, merge=merge
    )


def ceiling(processes: int) -> float:
    """How many times one process's products as many processes get done in the same time."""

    def wall(count: int) -> float:
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            pool.map(_gemm, [1] * count, chunksize=1)
            start = time.perf_counter()
            pool.map(_gemm, [200] * count, chunksize=1)
            return time.perf_counter() - start

    return processes * wall(1) / wall(processes) if processes > 1 else 1.0


def _gemm(times: int) -> None:
    torch.set_num_threads(1)
    A = torch.ones(32, 8192)
    for _ in range(times):
        A @ A.mT


def joined(workers: int, do: Callable[[], T]) -> T:
    """Do something as a program that has joined a cluster of that many workers."""
    ray.init(
        "local", num_cpus=workers, include_dashboard=False, log_to_driver=False,
        logging_level="error", object_store_memory=100 << 20,
    )  # fmt: skip
    try:
        return do()
    finally:
        ray.shutdown()


def main(words: list[str] | None = None) -> None:
    """Fit, predict, measure, and compute what cannot be measured here."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    given = parser.parse_args(words or [])
    print("one merge in this process, CPU time")
    speed = fitted()
    print(f"  fitted: {speed.flops / 1e9:.1f} Gflop/s, {speed.bytes / 1e6:.0f} MB/s, "
          f"{1000 * speed.merge:.0f} ms a merge")  # fmt: skip
    some, warm = recipes(SIZES[-1], given.count), recipes(SIZES[0], 2 * max(given.workers))
    needed = [[cost] for cost in costs(some)]
    cpu = sum(batch([some], Here())[1]) / given.count
    expected = sum(map(speed.seconds, needed)) / given.count
    print(f"{given.count} merges of the last size: {cpu:.3f} CPU s each, predicted {expected:.3f}")
    print("on a cluster: workers, CPU s a merge, cores that plain products get meanwhile,")
    print("  predicted wall s on those cores, measured wall s, efficiency over those cores")
    alone = 0.0
    for workers in given.workers:
        before = ceiling(workers)
        wall, each = joined(workers, lambda: batch([warm, some], Ray()))
        cores = (before + ceiling(workers)) / 2
        predicted = replace(speed, start=0).batch_seconds(needed, cores)
        alone = alone or wall * cores
        print(f"  {workers}  {sum(each) / given.count:.3f}  {cores:.2f}  {predicted:7.1f}  "
              f"{wall:7.1f}  {alone / wall / cores:.0%}")  # fmt: skip
    print("computed: 1,000 merges of 4 adapters of rank 16 on a 70B model, hours on N cores")
    for name, groups in (("one sweep", 16), ("no sources shared", 1)):
        hours = [
            speed.batch_seconds([[large()] * groups] * (1000 // groups), cores) / 3600
            for cores in (1, 16, 64, 256)
        ]
        print(f"  {name}: {', '.join(f'{h:.2f}' for h in hours)} (1, 16, 64, 256)")


def large() -> Cost:
    """One merge of four rank-16 adapters of a 70B model to rank 16, in bf16."""
    source = own = 0
    for d_out, d_in in LLAMA_3_70B:
        shared, others = products(64, 16, d_out + d_in)
        source, own = source + shared, own + others
    size = sum(16 * (d_out + d_in) * 2 for d_out, d_in in LLAMA_3_70B)
    return Cost(source, own, 4 * size, size)


if __name__ == "__main__":
    main(sys.argv[1:])
