"""A Llama-2-7B-shaped merge, disk to disk: 224 modules, four rank-16 bf16 adapters to rank 16.

The peer is the least any tool could do: read the same tensors with safetensors and save as many
bytes as the result has (`read`), or copy all of them through safetensors (`copy`).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.data import LLAMA_2_7B, llama_modules, write_adapter

DATA = Path(__file__).parent / "data"
ADAPTERS, RANK = 4, 16

_MERGE = """
import json, resource, shutil, sys, time
from pathlib import Path
import torch
from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.methods.registry import get
folders, out, workers = sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3])
def load(f):
    return Adapter(Path(f).name, Origin(Source.FOLDER, Path(f)), formats.inspect(Path(f)))
plan = make_plan([load(f) for f in folders], [0.25] * 4, get("svd"), {"rank": 16})
times = []
for _ in range(4):
    out.unlink(missing_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    run(plan, out, workers=workers, device="cpu")
    times.append((time.process_time() - cpu, time.perf_counter() - wall))
cpu, wall = sorted(times[1:])[1]
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu": cpu, "wall": wall, "rss": rss}))
"""

_COPY = """
import json, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
folders, out = sys.argv[1].split(","), Path(sys.argv[2])
times = []
for _ in range(4):
    cpu = time.process_time()
    for i, f in enumerate(folders):
        body = load_file(f + "/adapter_model.safetensors")
        save_file(body, out.with_suffix(f".{i}"))
    times.append(time.process_time() - cpu)
    for i in range(len(folders)):
        out.with_suffix(f".{i}").unlink()
print(json.dumps({"cpu": sorted(times[1:])[1]}))
"""


def main() -> None:
    """Print CPU seconds, wall seconds and peak memory of the merge, and of the copy."""
    for layers in (8, LLAMA_2_7B[0]):
        modules = llama_modules(layers, *LLAMA_2_7B[1:])
        homes = [
            write_adapter(DATA / f"7b-{layers}" / f"a{i}", modules, RANK, i)
            for i in range(ADAPTERS)
        ]
        words = [",".join(map(str, homes)), str(DATA / "out.safetensors")]
        copy = _call(_COPY, *words)
        one = _call(_MERGE, *words, "1")
        two = _call(_MERGE, *words, "2")
        print(f"{len(modules)} modules, {layers} layers")
        print(f"  copy through safetensors  {copy['cpu']:.3f} CPU s")
        print(
            f"  lorahub svd, 1 worker     {one['cpu']:.3f} CPU s, {one['wall']:.3f} s wall, "
            f"peak {one['rss']:.0f} MiB, {one['cpu'] / copy['cpu']:.2f} x copy"
        )
        print(
            f"  lorahub svd, 2 workers    {two['cpu']:.3f} CPU s, {two['wall']:.3f} s wall, "
            f"peak {two['rss']:.0f} MiB, {two['wall'] / one['wall']:.2f} of one worker's wall"
        )


def _call(script: str, *words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", script, *words], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - start:.0f} s, {resource.getpagesize()} B pages")
