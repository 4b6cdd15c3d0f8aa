"""How good merges are: five tasks in one adapter, by method, rank and budget.

Run with `python -m benchmarks.quality`; rewrites docs/quality.md and its plot. Every case is a
recipe of a batch and is scored by the suite in benchmarks/suites; merges and figures stay in the
catalog in benchmarks/data/quality, and only what is missing there is done. Remove that folder to
do all of it again, as after a change of a method. Differences are paired, text by text.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import lorahub
from benchmarks.suites.accuracy import DATA, ROOT, TASKS, answers, single
from lorahub.recipe import Recipe, make_recipe

HOME = ROOT / "benchmarks" / "data" / "quality"
SUITE = ROOT / "benchmarks" / "suites" / "accuracy.yaml"

EQUAL = tuple(f"{task}_r8_s0" for task in TASKS)
MIXED = ("langid_r16_s0", "debsec_r4_s0", "codelang_r8_s0", "mansec_r4_s0", "bshift_r8_s0")
LOUD = ("langid_r8_s0", "debsec_r8_s0", "codelang_r8_s0", "mansec_r8_s0", "loud")
ELEMENTWISE = ("ties", "dare", "dare_ties", "della", "breadcrumbs", "magnitude_prune")
CORE = ("iso_c", "iso_cts", "tsv", "tsv_iso", "knots", "core", "cart", "pico", "karcher")


@dataclass(frozen=True)
class Case:
    """One merge to try, and the case it is compared with, text by text."""

    label: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = EQUAL
    against: str | None = None


def _ranked(method: str, rank: int) -> Case:
    against = None if method == "task_arithmetic" else f"task_arithmetic, rank {rank}"
    return Case(f"{method}, rank {rank}", method, {"rank": rank}, against=against)


def _allocated(rule: str, rank: int) -> Case:
    label, uniform = (f"welore, {r}, rank {rank}" for r in (rule, "uniform"))
    options = {"budget": f"rank {rank}", "allocate": rule, "scale": 0.4}
    return Case(label, "welore", {}, options, against=uniform)


CASES = (
    Case("task_arithmetic", "task_arithmetic"),
    *(_ranked("task_arithmetic", k) for k in (8, 16, 32)),
    Case("linear_factors", "linear_factors", options={"scale": 0.4},
         against="task_arithmetic, rank 8"),
    *(_ranked("lego", k) for k in (8, 16, 32)),
    *(Case(m, m, against="task_arithmetic") for m in (*CORE, *ELEMENTWISE, "robust")),
    *(_ranked(m, k) for m in ("flat", "iso_c", "tsv", "knots") for k in (8, 16, 32)),
    *(Case(f"mos, packed {n} times", "mos", options={"pack": n, "scale": 0.405},
           against="task_arithmetic") for n in (4, 8, 16)),
    *(_allocated(rule, k) for k in (8, 16) for rule in ("uniform", "welore", "energy", "relative")),
    Case("task_arithmetic, mixed ranks", "task_arithmetic", {"rank": 16}, sources=MIXED),
    Case("lego, mixed ranks", "lego", {"rank": 16}, sources=MIXED,
         against="task_arithmetic, mixed ranks"),
    Case("task_arithmetic, one 20 times as loud", "task_arithmetic", {"rank": 16}, sources=LOUD),
    Case("lego, one 20 times as loud", "lego", {"rank": 16}, sources=LOUD,
         against="task_arithmetic, one 20 times as loud"),
)  # fmt: skip


def main() -> None:
    """Merge and score what is missing, and write the table and the plot from what is stored."""
    torch.set_num_threads(1)
    _write_source("loud", gain=20)
    _write_source("zero", gain=0)
    with lorahub.Workspace.open(HOME / "lorahub") as workspace:
        names = {"zero": _pulled(workspace, "zero")}
        names |= {case.label: _name(case) for case in CASES}
        for outcome in workspace.batch(map(_recipe, CASES), resume=True):
            if outcome.error is not None:
                raise outcome.error
        missing = [name for name in names.values() if not _is_scored(workspace, name)]
        for name, figures in workspace.evaluate(missing, str(SUITE)):
            if isinstance(figures, lorahub.LorahubError):
                raise figures
            print(f"{name}: {figures['norm']:.3f}", flush=True)
        found = {label: _result(workspace, name) for label, name in names.items()}
    _write(CASES, found)


def _name(case: Case) -> str:
    return re.sub(r"\W+", "-", case.label)


def _recipe(case: Case) -> Recipe:
    made = {name: HOME / name for name in ("loud", "zero")}
    folders = {name: made.get(name, DATA / "adapters" / name) for name in case.sources}
    body = {
        "method": case.method,
        "parameters": dict(case.parameters),
        "sources": [{"adapter": str(folders[name])} for name in case.sources],
        "output": {"name": _name(case)},
        **case.options,
    }
    return make_recipe(body)


def _write_source(name: str, *, gain: int) -> None:
    """An adapter that is ``gain`` times as loud as it was; 0 is as good as none."""
    folder = HOME / name
    if folder.is_dir():
        return
    partial = folder.with_name(f"{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(DATA / "adapters" / "bshift_r8_s0", partial, copy_function=shutil.copyfile)
    path = partial / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": gain * config["lora_alpha"]}))
    partial.rename(folder)


def _pulled(workspace: lorahub.Workspace, name: str) -> str:
    (pulled,) = workspace.pull([str(HOME / name)])
    if pulled.adapter is None:
        raise pulled.error or AssertionError(name)
    return pulled.adapter.name


def _is_scored(workspace: lorahub.Workspace, name: str) -> bool:
    adapter = workspace.get(name)
    stored = any(e.suite == SUITE.stem for e in workspace.evaluations(adapter))
    return stored and answers(adapter.origin.folder) is not None


@dataclass(frozen=True)
class Result:
    """What is stored of a case: figures by name, and by task whether each text was right."""

    figures: Mapping[str, float]
    right: Mapping[str, np.ndarray]


def _result(workspace: lorahub.Workspace, name: str) -> Result:
    adapter = workspace.get(name)
    (found,) = (e for e in workspace.evaluations(adapter) if e.suite == SUITE.stem)
    right = answers(adapter.origin.folder)
    assert right is not None
    return Result(found.figures, right)


def _difference(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Paired difference of the norms, and its standard error."""
    own = single()
    gaps = {t: (one[t].astype(float) - other[t]) / own[t] for t in TASKS}
    error = np.sqrt(sum(g.var(ddof=1) / len(g) for g in gaps.values())) / len(TASKS)
    return float(np.mean([g.mean() for g in gaps.values()])), float(error)


def _row(case: Case, results: Mapping[str, Result]) -> str:
    found = results[case.label]
    gap = ""
    if case.against is not None:
        difference, error = _difference(found.right, results[case.against].right)
        gap = f"{100 * difference:+.1f} ± {100 * error:.1f}"
    each = [f"{found.figures[t]:.3f}" for t in TASKS]
    cells = [case.label, f"{found.figures['norm']:.3f}", *each, gap]
    return "| " + " | ".join(cells) + " |"


def _write(cases: Sequence[Case], results: Mapping[str, Result]) -> None:
    zero = Case("no adapter", "")
    results = {zero.label if label == "zero" else label: r for label, r in results.items()}
    rows = "\n".join(_row(case, results) for case in (*cases, zero))
    heads = ["merge", "norm", *TASKS, "points against its partner"]
    text = f"""# How good merges are

`python -m benchmarks.quality` makes this page: five LoRA adapters (rank 8) of all-MiniLM-L6-v2, one
task each with a frozen head, merged with each method's default scale unless said (a recipe of a
batch each), and evaluated on 400 held-out texts a task (by the suite in benchmarks/suites). `norm`
is the accuracy over that of the task's own adapter, averaged over the tasks (standard error about
1.3 points). The last column is the difference from the merge it competes with, paired text by text,
in points of norm, with its standard error: low-rank methods against `task_arithmetic` of the same
rank, allocations against one rank for all modules.

| {" | ".join(heads)} |
|{"---|" * len(heads)}
{rows}

![norm of every merge](quality.svg)
"""
    page = ROOT / "docs" / "quality.md"
    # What other benchmarks wrote after the plot stays.
    _, mark, others = page.read_text(encoding="utf-8").partition("\n## ")
    page.write_text(text + mark + others, encoding="utf-8")
    _plot({c.label: results[c.label].figures["norm"] for c in (*cases, zero)})


def _plot(norms: Mapping[str, float]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lorahub"
    from matplotlib import pyplot as plt

    order = sorted(norms, key=lambda label: norms[label])
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(order) + 0.8))
    axes.barh(order, [norms[label] for label in order], color="#2a78b5")
    axes.set_xlim(0.6, None)
    axes.set_xlabel("norm: accuracy over that of the task's own adapter")
    axes.bar_label(axes.containers[0], fmt="%.3f", padding=2)  # type: ignore[arg-type]
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "quality.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
