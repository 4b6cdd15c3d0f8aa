"""The model card of an adapter made here: what it is, from what, how well, how to use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

import yaml

from lorahub.extraction import Extraction, ModelSource
from lorahub.record import Parent, Record


def render_card(record: Record, *, name: str, targets: Sequence[str], paper: str) -> str:
    """README.md for a merge: YAML metadata and a body for a reader. Names no local path.

    Args:
        record: The merge.
        name: Name of the result.
        targets: Module types it adapts.
        paper: Where the method comes from.
    """
    metadata = _metadata(record.base_model, "merge", common_license(record))
    return f"---\n{metadata}---\n\n{_body(record, name, targets, paper)}"


def render_extraction(record: Extraction, *, name: str, targets: Sequence[str]) -> str:
    """README.md for an adapter extracted from two models, as `render_card`."""
    sources = (record.base, record.finetuned)
    licenses = {s.license for s in sources}
    license_name = licenses.pop() if len(licenses) == 1 else None
    metadata = _metadata(record.base_model, "adapter", license_name)
    return f"---\n{metadata}---\n\n{_extraction_body(record, name, targets)}"


def common_license(record: Record) -> str | None:
    """The licence all parents share, or None; it is never guessed."""
    licenses = {p.license for p in record.parents}
    return licenses.pop() if len(licenses) == 1 else None


def _metadata(base_model: str | None, relation: str, license_name: str | None) -> str:
    data: dict[str, object] = {"library_name": "peft"}
    if _is_repo_id(base_model):
        data["base_model"] = base_model
        data["base_model_relation"] = relation
    if license_name:
        data["license"] = " ".join(license_name.split())[:100]
    tags = ["merge"] if relation == "merge" else []
    data["tags"] = ["lora", "peft", *tags, "lorahub"]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _is_repo_id(name: str | None) -> bool:
    """Whether a model is named by a Hub id; anything else may be somebody's local path."""
    return bool(name and re.fullmatch(r"[a-zA-Z0-9][\w.-]*(/[\w.-]+)?", name, re.ASCII))


def _plain(text: str) -> str:
    """Foreign text that can break out of neither a table cell nor a paragraph."""
    # Cut first: a cut behind an escaping backslash would escape what follows the text.
    short = " ".join(text.split())[:200]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", "".join(c for c in short if c.isprintable()))


def _code(text: str) -> str:
    """Foreign text that can stand between backticks, also in a table."""
    return re.sub(r"[^\w./+-]", "_", text)[:200]


def _last_part(path: str) -> str:
    """The name at the end of an absolute path of any system; other text as it is."""
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
        return PureWindowsPath(path).name
    return path


def _parent_cell(parent: Parent) -> str:
    if parent.repo_id and parent.revision:
        host = (parent.endpoint or "https://huggingface.co").rstrip("/")
        url = quote(f"{host}/{parent.repo_id}/tree/{parent.revision}", safe=":/")
        return f"[{_plain(parent.repo_id)}]({url}) at `{_code(parent.revision[:12])}`"
    return _plain(_last_part(parent.reference))


def _weight_cell(parent: Parent) -> str:
    others = "".join(f", {w:g} at {_plain(pattern)}" for pattern, w in parent.weights.items())
    return f"{parent.weight:g}{others}"


def _body(record: Record, name: str, targets: Sequence[str], paper: str) -> str:
    check = record.verification
    public = record.base_model if _is_repo_id(record.base_model) else None
    base = (
        f"`{public}`" if public else _plain(_last_part(record.base_model or "")) or "its base model"
    )
    rows = "\n".join(
        f"| {_parent_cell(p)} | {_weight_cell(p)} | {_plain(p.license or 'not stated')} "
        f"| {kept:.1%} |"
        for p, kept in zip(record.parents, check.retained, strict=True)
    )
    parameters = ", ".join(
        _plain(f"{k} = {v}") for k, v in record.parameters.items() if v is not None
    )
    notes = "".join(f"\n- {_plain(note)}" for note in record.notes)
    notes = f"\n## Notes\n{notes}\n" if notes else ""
    return f"""# {_plain(name)}

A LoRA adapter for {base}, merged from {len(record.parents)} adapters with
[lorahub](https://pypi.org/project/lorahub-kit/). It adapts {record.modules} modules
({", ".join(_plain(t) for t in targets)}) at rank {record.rank} or less.

## Made from

| adapter | weight | licence | kept |
|---|---|---|---|
{rows}

"Kept" is the share of the adapter's squared norm that the result can express.

## How

Method `{_code(record.method)}` ({_plain(paper)}), {parameters or "no parameters"}, scale
{record.scale:g}, seed {record.seed}, written as {record.dtype}. To make it again:

```
lorahub merge recipe.yaml
```

## Verification

Recomputed from the sources in float64 by another path than the merge's own.

| figure | value |
|---|---|
| distance from the method's definition | {check.error:.1e} |
| worst module | {check.worst_error:.1e} (`{_code(check.worst_module)}`) |
| allowed for {record.dtype} | {check.tolerance:.1e} |
| distance from the exact weighted sum | {check.truncation:.1%} |
{notes}
{_use(public, record.rank)}"""


def _extraction_body(record: Extraction, name: str, targets: Sequence[str]) -> str:
    public = record.base_model if _is_repo_id(record.base_model) else None
    rank = max(m.rank for m in record.modules)
    worst = max(record.modules, key=lambda m: m.error)
    asked = [f"rank {record.rank}"] if record.rank else []
    asked += [f"{record.energy:.1%} of each difference's squared norm"] if record.energy else []
    left_out = "".join(
        f"\n- `{_code(t.name)}` {_plain(t.reason)}"
        + ("" if t.change is None else f", by {t.change:.2%} of its norm")
        for t in record.left_out
    )
    left_out = f"\n## Not in the adapter\n{left_out}\n" if left_out else ""
    return f"""# {_plain(name)}

A LoRA adapter for {_model_cell(record.base)}: the best low-rank approximation of what fine-tuning
added to it in {_model_cell(record.finetuned)}, extracted from the two models with
[lorahub](https://pypi.org/project/lorahub-kit/). It adapts {len(record.modules)} modules
({", ".join(_plain(t) for t in targets)}) at rank {rank} or less; {len(record.unchanged)} others
are the same in both models.

## Made from

| model | licence | sha256 over its weights |
|---|---|---|
{_model_row(record.base)}
{_model_row(record.finetuned)}

## How well

Asked for: {" and ".join(asked)}. Written as {record.dtype}. Distances are measured in float64.

| figure | value |
|---|---|
| distance from the differences | {record.error:.1%} |
| share of their squared norm that is kept | {record.kept:.1%} |
| worst module | {worst.error:.1%} (`{_code(worst.name)}`) |
{left_out}
{_use(public, rank)}"""


def _model_cell(source: ModelSource) -> str:
    if source.repo_id and source.revision:
        url = quote(f"https://huggingface.co/{source.repo_id}/tree/{source.revision}", safe=":/")
        return f"[{_plain(source.repo_id)}]({url}) at `{_code(source.revision[:12])}`"
    return _plain(source.name)


def _model_row(source: ModelSource) -> str:
    licence = _plain(source.license or "not stated")
    return f"| {_model_cell(source)} | {licence} | `{source.content_hash[:16]}` |"


def _use(public: str | None, rank: int) -> str:
    base_id = public or "BASE_MODEL"
    return f"""## Use

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base_id}"), "PATH_OR_REPO")
```

vLLM: `vllm serve {base_id} --enable-lora --max-lora-rank {rank} --lora-modules NAME=PATH`

llama.cpp: `convert_lora_to_gguf.py PATH`
"""
