"""Llama-2-7B-shaped merges, disk to disk: 224 modules, rank-16 bf16 adapters to rank 16.

The peer is the least any tool could do: copying the inputs through safetensors. The floor of a
method is what it cannot do without, each part timed by itself in the same process: reading the
inputs, converting them, the two Gram matrices above their diagonals, one eigenproblem, the thin
products, and writing the result.

What two workers can gain is the machine's: beside their wall time stands that of two plain
processes that share some of the same products and copies, over that of one which does them all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.data import LLAMA_2_7B, llama_modules, write_adapter

DATA = Path(__file__).parent / "data"
RANK = 16
METHODS = ("svd", "lego", "welore", "cat", "flat", "iso_c", "iso_cts", "tsv", "knots")

_MERGE = """
import json, resource, sys, time
from pathlib import Path
import torch
from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.plan import make_plan
from lorahub.engine.run import run
from lorahub.methods.registry import get
folders, out, workers = sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3])
name, repeats = sys.argv[4], int(sys.argv[5])
def load(f):
    return Adapter(Path(f).name, Origin(Source.FOLDER, Path(f)), formats.inspect(Path(f)))
options = {"budget": "rank 16"} if name == "welore" else {}
parameters = {} if name in ("welore", "cat") else {"rank": 16}
plan = make_plan([load(f) for f in folders], [1.0] * len(folders), get(name), parameters, **options)
times = []
for _ in range(repeats + 1):
    out.unlink(missing_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    run(plan, out, workers=workers, device="cpu")
    times.append((time.process_time() - cpu, time.perf_counter() - wall))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rss = peak if len(times) == 1 else rss  # of a process that merges once, as a command does
cpu, wall = sorted(times[1:])[repeats // 2]
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

_FLOOR = """
import json, sys, time
import torch
torch.set_num_threads(1)
adapters, layers, rank = map(int, sys.argv[1:4])
R = adapters * rank
step = max(32, R // 8)
strips = [slice(j, j + step) for j in range(0, R, step)]
def timed(work):
    work()
    found = []
    for _ in range(5):
        cpu = time.process_time()
        work()
        found.append(time.process_time() - cpu)
    return sorted(found)[2]
total = {"read": 0.0, "convert": 0.0, "gram": 0.0, "eigen": 0.0, "thin": 0.0, "write": 0.0}
out = open("/dev/shm/floor", "wb", buffering=0)
for d, count in ((4096, 11), (11008, 3)):  # widths of all A and B of a layer
    X, half = torch.randn(R, d), torch.randn(R, d).bfloat16()
    W = torch.randn(rank, R)
    source = bytearray(half.numel() * 2)
    target = bytearray(half.numel() * 2)
    made = memoryview(bytearray(rank * d * 2))
    total["read"] += layers * count * timed(lambda: target.__setitem__(slice(None), source))
    total["convert"] += layers * count * timed(lambda: X.copy_(half))
    total["gram"] += layers * count * timed(
        lambda: [X[s] @ X[s.start :].mT for s in strips]
    )
    total["thin"] += layers * count * timed(lambda: W @ X)
    total["write"] += layers * count * timed(lambda: (out.seek(0), out.write(made)))
G = torch.randn(R, R, dtype=torch.float64)
G = G @ G.mT
total["eigen"] = layers * 7 * timed(lambda: torch.linalg.eigh(G))
print(json.dumps({**total, "cpu": sum(total.values())}))
"""

_PLAIN = """
import sys, time
import torch
torch.set_num_threads(1)
X, half = torch.randn(64, 11008), torch.randn(64, 11008).bfloat16()
made = torch.empty_like(half)
def work(count):
    for _ in range(count):
        X.copy_(half)
        X @ X.mT
        made.copy_(half)
work(20)
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
work(int(sys.argv[1]))
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print CPU seconds, wall seconds and peak memory of merges, floors and the copy."""
    for adapters, layers in ((4, 8), (4, LLAMA_2_7B[0]), (16, LLAMA_2_7B[0])):
        _compare(adapters, layers)


def _compare(adapters: int, layers: int) -> None:
    modules = llama_modules(layers, *LLAMA_2_7B[1:])
    homes = [
        write_adapter(DATA / f"7b-{layers}" / f"a{i}", modules, RANK, i) for i in range(adapters)
    ]
    words = [",".join(map(str, homes)), str(DATA / "out.safetensors")]
    floor = _call(_FLOOR, str(adapters), str(layers), str(RANK))
    copy = _call(_COPY, *words)["cpu"]
    parts = ", ".join(f"{k} {v:.2f}" for k, v in floor.items() if k != "cpu")
    print(f"N = {adapters}, {len(modules)} modules")
    print(f"  copy through safetensors {copy:.3f} CPU s; floor of svd {floor['cpu']:.3f} ({parts})")
    svd = 0.0
    for method in METHODS:
        one = _call(_MERGE, *words, "1", method, "3" if adapters < 16 else "1")
        svd = svd or one["cpu"]
        print(f"  {method:7s} {one['cpu']:.3f} CPU s, peak {one['rss']:.0f} MiB; "
              f"{one['cpu'] / copy:.2f} x copy, {one['cpu'] / floor['cpu']:.2f} x floor, "
              f"{one['cpu'] / svd:.2f} x svd")  # fmt: skip
    walls = [_call(_MERGE, *words, str(w), "svd", "3")["wall"] for w in (1, 2)]
    print(f"  svd, two workers: {walls[1]:.3f} s wall, {walls[1] / walls[0]:.2f} of one worker's; "
          f"the machine's own two, {_ceiling():.2f} of one")  # fmt: skip


def _ceiling(units: int = 4000, repeats: int = 5) -> float:
    """Wall time of two plain processes that share work over that of one, the median ratio."""
    ratios = [_wall(units // 2, 2) / _wall(units, 1) for _ in range(repeats)]
    return sorted(ratios)[repeats // 2]


def _wall(units: int, processes: int) -> float:
    """Seconds until the last of some processes that begin together has done its units."""
    words = [sys.executable, "-c", _PLAIN, str(units)]
    running = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in running)


def _call(script: str, *words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", script, *words], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
