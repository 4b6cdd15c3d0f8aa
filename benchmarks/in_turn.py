"""Whole 7B merges in turn in one process, for ratios that a drifting machine leaves alone.

Among them the copy of the inputs through safetensors, the least that any tool could do; what it
costs depends on the version of safetensors. Arguments are the methods, all of them where none is
named.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file

from benchmarks.data import LLAMA_2_7B, llama_modules, write_adapter
from benchmarks.model_7b import DATA, RANK
from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.methods.registry import get

ROUNDS = 7
CASES = {
    "svd": ({"rank": RANK}, None),
    "lego": ({"rank": RANK}, None),
    "welore": ({}, f"rank {RANK}"),
    "iso_c": ({"rank": RANK}, None),
    "tsv": ({"rank": RANK}, None),
    "tsv_iso": ({"rank": RANK}, None),
    "knots": ({"rank": RANK}, None),
    "iso_cts": ({"rank": RANK}, None),
    "core": ({"rank": RANK}, None),
    "ctm": ({"rank": RANK}, None),
    "pico": ({"rank": RANK}, None),
    "cart": ({"rank": RANK}, None),
    "flat": ({"rank": RANK}, None),
    "robust": ({}, None),
}


def main() -> None:
    """Print median CPU seconds of four adapters at one worker, over the copy and over `svd`."""
    wanted = sys.argv[1:] or list(CASES)
    modules = llama_modules(*LLAMA_2_7B)
    homes = [write_adapter(DATA / "7b-32" / f"a{i}", modules, RANK, i) for i in range(4)]
    adapters = [Adapter(f.name, Origin(Source.FOLDER, f), formats.inspect(f)) for f in homes]
    out = DATA / "in-turn.safetensors"
    works: dict[str, Callable[[], object]] = {"copy": lambda: _copy(homes, out)}
    for name in dict.fromkeys(("svd", *wanted)):
        parameters, budget = CASES[name]
        plan = make_plan(adapters, [1.0] * 4, get(name), parameters, budget=budget)
        works[name] = partial(run, plan, out, workers=1, device="cpu")
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            out.unlink(missing_ok=True)
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    out.unlink()
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    print(f"safetensors {safetensors.__version__}")
    for name, seconds in medians.items():
        print(f"{name:7s} {seconds:.3f} CPU s, {seconds / medians['copy']:.2f} x copy, "
              f"{seconds / medians['svd']:.2f} x svd")  # fmt: skip


def _copy(homes: Sequence[Path], out: Path) -> None:
    """Through one file after another; the last stays."""
    for home in homes:
        save_file(load_file(home / "adapter_model.safetensors"), out)


if __name__ == "__main__":
    main()
