"""Seven further tasks for `benchmarks.suggest`, which no rule of lorahub was chosen on.

Their adapters are trained here, from the texts of the testbed, the way its own were: LoRA of rank
8 on the same 36 modules, one frozen head a task from 16 embeddings of the base a class. Three
tasks group the labels of one of the testbed's at random, one asks which of its five sets a text
is of, and three whether the order of the words was changed. Adapters and texts are kept in
benchmarks/data/further; training takes a few minutes a task.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, normalize

from benchmarks.suites.accuracy import DATA, ROOT, SHARPNESS, TASKS, Task, base, correct

KEPT = ROOT / "benchmarks" / "data" / "further"
GROUPS = {"langid": 5, "debsec": 4, "codelang": 3}
ORDERS = ("halves", "reversal", "shuffle")
NAMES = (*(f"{task}-groups" for task in GROUPS), "source", *ORDERS)
TESTED = 200
LENGTH = 32
SHOTS = 16
STEPS, BATCH, RATE = 240, 16, 2e-3

Ids = list[int]
Example = tuple[Ids, int]


@dataclass(frozen=True, slots=True)
class Further:
    """A task: its adapter's folder, its held-out texts, and what the adapter has right of them."""

    folder: Path
    task: Task
    single: float


def further_tasks() -> Mapping[str, Further]:
    """All of them, by name; those that are not there yet are trained."""
    return {name: _kept(name) or _trained(name) for name in NAMES}


def _kept(name: str) -> Further | None:
    path = KEPT / f"{name}.safetensors"
    if not path.is_file():
        return None
    kept = load_file(path)
    single = json.loads((KEPT / f"{name}.json").read_text())["single"]
    return Further(KEPT / name, (kept["ids"], kept["labels"], kept["head"]), single)


def _trained(name: str) -> Further:
    from peft import LoraConfig, get_peft_model

    seed = NAMES.index(name)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    tested, taught = _examples(name, generator)
    head = _head(taught)
    like = json.loads((DATA / "adapters" / "bshift_r8_s0" / "adapter_config.json").read_text())
    config = LoraConfig(r=8, lora_alpha=16, target_modules=like["target_modules"])
    model = get_peft_model(copy.deepcopy(base()), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        drawn = [taught[i] for i in generator.integers(len(taught), size=BATCH)]
        labels = torch.tensor([label for _, label in drawn])
        loss = cross_entropy(SHARPNESS * _embedded(model, drawn) @ head.T, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.peft_config["default"].base_model_name_or_path = like["base_model_name_or_path"]
    model.save_pretrained(str(KEPT / name))
    task = (_padded(tested), torch.tensor([label for _, label in tested]), head)
    single = float(correct(base(), KEPT / name, {name: task})[name].mean())
    (KEPT / f"{name}.json").write_text(json.dumps({"single": single}))
    ids, labels, _ = task
    partial = KEPT / f"{name}.partial"
    save_file({"ids": ids, "labels": labels, "head": head}, partial)
    partial.replace(KEPT / f"{name}.safetensors")
    return Further(KEPT / name, task, single)


def _examples(name: str, generator: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Those to test, and those to teach, in random order."""
    texts = load_file(DATA / "eval_val.safetensors")
    found: list[Example] = []
    for number, task in enumerate(TASKS):
        ids = [row[row != 0][:LENGTH].tolist() for row in texts[f"{task}.ids"].long()]
        labels = texts[f"{task}.y"].tolist()
        if name == "source":
            found += [(text, number) for text in ids]
        elif name == f"{task}-groups":
            groups = generator.integers(GROUPS[task], size=max(labels) + 1)
            found += [(text, int(groups[y])) for text, y in zip(ids, labels, strict=True)]
        elif name in ORDERS and task != "bshift":
            found += [(text, 0) for text in ids if len(text) > 9]
    found = [found[i] for i in generator.permutation(len(found))]
    tested, taught = found[:TESTED], found[TESTED:]
    if name in ORDERS:
        tested = [_reordered(name, text, generator) for text, _ in tested]
        taught = [_reordered(name, text, generator) for text, _ in taught * 4]
    return tested, taught


def _reordered(name: str, text: Ids, generator: np.random.Generator) -> Example:
    """One text in two with another order of its words, and whether it has one."""
    first, *words, last = text
    label = int(generator.integers(2))
    if label and name == "halves":
        half = len(words) // 2
        words = words[half:] + words[:half]
    elif label and name == "reversal":
        start = int(generator.integers(len(words) - 4))
        words[start : start + 5] = reversed(words[start : start + 5])
    elif label:
        words = [words[i] for i in generator.permutation(len(words))]
    return [first, *words, last], label


def _padded(examples: Sequence[Example]) -> torch.Tensor:
    """Token ids (n, length), 0 where a text has ended."""
    length = max(len(text) for text, _ in examples)
    return torch.tensor([text + [0] * (length - len(text)) for text, _ in examples])


def _embedded(model: torch.nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    ids = _padded(examples)
    mask = (ids != 0).float()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


@torch.no_grad()
def _head(taught: Sequence[Example]) -> torch.Tensor:
    """(classes, width): the mean of what the base makes of the first texts of each class."""
    classes = 1 + max(label for _, label in taught)
    shots = [[one for one in taught if one[1] == c][:SHOTS] for c in range(classes)]
    return torch.stack([normalize(_embedded(base(), some).mean(0), dim=0) for some in shots])
