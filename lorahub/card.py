"""The model card of a merged adapter: what it is, from what, how well, how to use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

import yaml

from lorahub.licenses import combine
from lorahub.record import Parent, Record


def render_card(record: Record, *, name: str, targets: Sequence[str], paper: str) -> str:
    """README.md for a merge: YAML metadata and a body for a reader. Names no local path.

    Args:
        record: The merge.
        name: Name of the result.
        targets: Module types it adapts.
        paper: Where the method comes from.
    """
    return f"---\n{_metadata(record)}---\n\n{_body(record, name, targets, paper)}"


def common_license(record: Record) -> str | None:
    """The licence under which all parents may be handed on, or None; it is never guessed."""
    return combine([(p.reference, p.license) for p in record.parents]).license


def _metadata(record: Record) -> str:
    data: dict[str, object] = {"library_name": "peft"}
    if _is_repo_id(record.base_model):
        data["base_model"] = record.base_model
        data["base_model_relation"] = "merge"
    license_name = common_license(record)
    if license_name:
        data["license"] = " ".join(license_name.split())[:100]
    data["tags"] = ["lora", "peft", "merge", "lorahub"]
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
    base_id = public or "BASE_MODEL"
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
## Use

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base_id}"), "PATH_OR_REPO")
```

vLLM: `vllm serve {base_id} --enable-lora --max-lora-rank {record.rank} --lora-modules NAME=PATH`

llama.cpp: `convert_lora_to_gguf.py PATH`
"""
