"""How far suggested merges are from the best in hindsight: every set of two to five tasks.

Run with `python -m benchmarks.suggest`; rewrites its section of docs/quality.md. Data and protocol
are those of `benchmarks.quality`; a set is evaluated on its own tasks. What was evaluated is kept
in benchmarks/data/suggest by the digest of its plan, so that a run can be cut short and taken up
again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

import lorahub
from benchmarks import quality
from benchmarks.quality import DATA, ROOT, TASKS
from lorahub.recipe import make_recipe

KEPT = ROOT / "benchmarks" / "data" / "suggest"
RANK = 8
CANDIDATES: Mapping[int | None, Sequence[str]] = {
    None: ("iso_c", "iso_cts", "tsv", "task_arithmetic"),
    16: ("flat", "task_arithmetic"),
    8: ("flat", "task_arithmetic"),
}
HEADING = "\n## Suggested merges\n"

Set = tuple[str, ...]


def main() -> None:
    """Merge, evaluate, and write the section."""
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    reference = json.loads((DATA / "reference.json").read_text())["tasks"]
    single = {t: float(reference[t]["val"]["single"]) for t in TASKS}
    rows = []
    with tempfile.TemporaryDirectory() as home, lorahub.Workspace.open(Path(home)) as workspace:
        bench = _Bench(workspace, single)
        for size in range(2, len(TASKS) + 1):
            for rank, names in CANDIDATES.items():
                # A result of at least all ranks together is not limited.
                if rank is None or rank < RANK * size:
                    rows.append(_row(bench, size, rank, names))
                    print(rows[-1], flush=True)
    _write(rows)


class _Bench:
    """Norms of merges, evaluated when they are asked for the first time."""

    def __init__(self, workspace: lorahub.Workspace, single: Mapping[str, float]) -> None:
        self._workspace = workspace
        self._single = single
        self._base = quality._base()
        self._tasks = quality._tasks()

    def norm(self, tasks: Set, method: str, rank: int | None) -> float:
        """Mean over the tasks of the accuracy over that of the task's own adapter."""
        recipe = make_recipe(
            {
                "method": method,
                "parameters": {} if rank is None else {"rank": rank},
                "sources": [{"adapter": str(DATA / "adapters" / f"{t}_r8_s0")} for t in tasks],
                "output": {"name": "case"},
            }
        )
        path = KEPT / f"{self._workspace.plan(recipe).digest}.npz"
        if not path.is_file():
            folder = self._workspace.merge(recipe, force=True).adapter.origin.folder
            right = quality._correct(self._base, folder, {t: self._tasks[t] for t in tasks})
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **right)
            partial.replace(path)
        with np.load(path) as right:
            return float(np.mean([right[t].mean() / self._single[t] for t in tasks]))


def _row(bench: _Bench, size: int, rank: int | None, names: Sequence[str]) -> str:
    sets = list(combinations(TASKS, size))
    suggested = np.array([bench.norm(s, "auto", rank) for s in sets])
    norms = {name: np.array([bench.norm(s, name, rank) for s in sets]) for name in names}
    best = np.max([suggested, *norms.values()], axis=0)
    regret = 100 * (best - suggested)
    worst = int(regret.argmax())
    where = f" ({', '.join(sets[worst])})" if regret[worst] > 0 else ""
    cells = [
        str(size),
        str(rank or "any"),
        str(len(sets)),
        f"{suggested.mean():.3f}",
        f"{best.mean():.3f}",
        f"{regret.mean():.1f}",
        f"{regret[worst]:.1f}{where}",
        ", ".join(f"{name} {values.mean():.3f}" for name, values in _descending(norms)),
    ]
    return "| " + " | ".join(cells) + " |"


def _descending(norms: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    yield from sorted(norms.items(), key=lambda item: -item[1].mean())


def _write(rows: Sequence[str]) -> None:
    path = ROOT / "docs" / "quality.md"
    text = path.read_text(encoding="utf-8").split(HEADING)[0]
    heads = ["tasks", "rank", "sets", "suggested", "best in hindsight", "regret", "worst regret",
             "each method for all sets"]  # fmt: skip
    lines = "\n".join(rows)
    path.write_text(
        f"""{text}{HEADING}
`python -m benchmarks.suggest` makes this section: for every set of two to five of the tasks, the
merge that `lorahub suggest` chooses against the best of the named methods at their default scales,
as it turned out on the same 400 texts a task. Norms are means over the sets, regrets in points of
norm. The best in hindsight of several is above the best method even where all are equally good: it
also picks what is lucky (the norm of one pair has a standard error of about two points).

| {" | ".join(heads)} |
|{"---|" * len(heads)}
{lines}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
