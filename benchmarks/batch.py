"""Batches: many small merges in one go, a sweep over large adapters, and killed batches.

The small merges have tiny shapes and the real code path. A sweep is compared with the same
merges made one by one, in one process and as commands, and with scores that write nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import LLAMA_2_7B, llama_modules, write_adapter
from lorahub.recipe import Recipe, make_recipe
from lorahub.workspace import Workspace

DATA = Path(__file__).parent / "data"
TINY = [(f"layers.{i}.{p}_proj", 64, 64) for i in range(2) for p in "qv"]


def small(count: int, folder: Path) -> list[Recipe]:
    """Recipes of merges of two tiny adapters with weights that differ."""
    homes = [write_adapter(folder / f"a{i}", TINY, 4, i) for i in range(2)]
    return [recipe(homes, [i + 1, count - i], f"m{i}", 4) for i in range(count)]


def recipe(homes: list[Path], weights: list[int], name: str, rank: int) -> Recipe:
    """One merge by `svd`, with weights that add up to 1."""
    sources = [
        {"adapter": str(home), "weight": weight / sum(weights)}
        for home, weight in zip(homes, weights, strict=True)
    ]
    body: dict[str, Any] = {"method": "svd", "parameters": {"rank": rank}, "sources": sources}
    return make_recipe(body | {"output": {"name": name}})


def many(count: int, jobs: int) -> None:
    """Seconds for each of many small merges, and memory after a tenth and at the end."""
    with tempfile.TemporaryDirectory() as folder, Workspace.open(Path(folder) / "home") as space:
        times, memory, start = [], [], time.perf_counter()
        for outcome in space.batch(small(count, Path(folder)), jobs=jobs):
            assert outcome.state == "merged", outcome
            times.append(time.perf_counter())
            memory.append(_resident())
        tenth = count // 10
        early, late = times[2 * tenth] - times[tenth], times[-1] - times[-1 - tenth]
        each = 1000 * (times[-1] - start) / count
        print(
            f"{count} merges, {jobs} jobs: {each:.1f} ms each, {1000 * _cpu() / count:.1f} of CPU"
        )
        print(f"  second tenth {1000 * early / tenth:.1f} ms, last {1000 * late / tenth:.1f} ms")
        print(f"  resident {memory[tenth]:.0f} MiB after a tenth, {memory[-1]:.0f} at the end")


def sweep(count: int, layers: int) -> None:
    """A sweep of weightings of four adapters against the same merges one by one.

    Three merges are made alone, in one process and as commands of their own; what ``count`` of
    them would take is three times that, extrapolated.
    """
    modules = llama_modules(layers, *LLAMA_2_7B[1:])
    homes = [write_adapter(DATA / f"7b-{layers}" / f"a{i}", modules, 16, i) for i in range(4)]
    draw = random.Random(0)
    drawn = [[draw.randrange(1, 10) for _ in homes] for _ in range(count)]
    recipes = [recipe(homes, weights, f"m{i}", 16) for i, weights in enumerate(drawn)]
    values = sum(16 * (d_out + d_in) for _, d_out, d_in in modules)
    print(f"{count} weightings of 4 adapters of {len(modules)} modules; each writes "
          f"{2 * values / 1e6:.0f} MB and needs {2 * 64 * values / 1e9:.2f} Gflop of thin products "
          f"in float32, {2 * 80 * values / 1e9:.2f} in float64 to verify")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        folder = Path(name)
        with Workspace.open(folder / "all") as space:
            start = _cpu(), time.perf_counter()
            for outcome in space.batch(recipes):
                assert outcome.state == "merged", outcome
                space.remove([outcome.name], files=True)  # the disk holds few of them
            batch = (_cpu() - start[0]) / count, (time.perf_counter() - start[1]) / count
        print(f"  in a batch       {batch[0]:.3f} CPU s each, {batch[1]:.3f} s")
        with Workspace.open(folder / "one") as space:
            singles = [_timed(partial(space.merge, one)) for one in recipes[:4]]
        _compared("in one process", singles[1:], batch)
        commands = []
        for i, one in enumerate(recipes[:3]):
            path = folder / f"{i}.yaml"
            path.write_text(one.to_yaml())
            words = [sys.executable, "-m", "lorahub", "merge", str(path)]
            home = _home(folder / f"command-{i}")
            commands.append(
                _timed(
                    lambda w=words, h=home: subprocess.run(
                        w, check=True, env=h, stdout=subprocess.DEVNULL
                    )
                )
            )
        _compared("as commands", commands, batch)
        _searched(folder, homes, count, statistics.median(cpu for cpu, _ in commands))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    start = _cpu(), time.perf_counter()
    work()
    return _cpu() - start[0], time.perf_counter() - start[1]


def _compared(what: str, times: list[tuple[float, float]], batch: tuple[float, float]) -> None:
    cpu, wall = (statistics.median(t) for t in zip(*times, strict=True))
    print(f"  {what:<16} {cpu:.3f} CPU s each ({cpu / batch[0]:.1f} x), "
          f"{wall:.3f} s ({wall / batch[1]:.1f} x)")  # fmt: skip


def _searched(folder: Path, homes: list[Path], count: int, command: float) -> None:
    """The same search space scored in factor space."""
    path = folder / "search.yaml"
    path.write_text(recipe(homes, [1] * len(homes), "best", 16).to_yaml())
    with Workspace.open(folder / "search") as space:
        trials = space.search_weights(path, "factors", budget=count, objective="retained")
        first = _timed(lambda: next(trials))
        cpu, wall = _timed(lambda: [next(trials) for _ in range(count - 1)])
        trials.close()
    each = cpu / (count - 1)
    print(f"  scored only      {each:.3f} CPU s each ({command / each:.0f} x a command), "
          f"{wall / (count - 1):.3f} s; the first, which reads, {first[0]:.1f} CPU s")  # fmt: skip


def killed(count: int, kills: int) -> None:
    """A batch killed at random points and resumed, against one that ran through."""
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [sys.executable, "-m", "benchmarks.batch", "--child", name, "--count", str(count)]
        start = time.perf_counter()
        subprocess.run(words, check=True, env=_home(folder / "whole"))
        whole = time.perf_counter() - start
        for _ in range(kills):
            child = subprocess.Popen(words, env=_home(folder / "killed"))
            time.sleep(draw.uniform(0.3, 1) * whole / 2)
            child.send_signal(signal.SIGKILL)
            child.wait()
        subprocess.run(words, check=True, env=_home(folder / "killed"))
        found = [_contents(folder / home / "adapters") for home in ("whole", "killed")]
        assert found[0] == found[1], "the results differ"
        print(f"{count} merges killed {kills} times and resumed: {len(found[0])} files, all equal")


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _home(folder: Path) -> dict[str, str]:
    return os.environ | {"LORAHUB_HOME": str(folder)}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _cpu() -> float:
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def main(words: list[str] | None = None) -> None:
    """Run what the words say; all of it without any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--weightings", type=int, default=100)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", choices=["many", "jobs", "sweep", "killed"])
    parser.add_argument("--child", type=Path)
    given = parser.parse_args(words or [])
    if given.child:
        with Workspace.open() as space:
            for outcome in space.batch(small(given.count, given.child)):
                assert outcome.error is None, outcome
        return
    if given.only in {None, "many"}:
        many(given.count, 1)
    if given.only in {None, "jobs"}:
        many(given.count, 2)
    if given.only in {None, "sweep"}:
        sweep(given.weightings, given.layers)
    if given.only in {None, "killed"}:
        killed(given.count, given.kills)


if __name__ == "__main__":
    main(sys.argv[1:])
