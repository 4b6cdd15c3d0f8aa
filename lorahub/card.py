"""The model card of an adapter: what it is, from what, how well, how to use and remake it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

import yaml

from lorahub.adapter import AdapterInfo
from lorahub.extraction import Extraction, ModelSource
from lorahub.licenses import combine
from lorahub.loading import PIPELINES, loading
from lorahub.record import Parent, Record

REMAKE = "## Make it again"
"""Heading below which the card has the recipe and the hashes of what it makes."""


def render_card(
    record: Record,
    info: AdapterInfo,
    *,
    name: str,
    paper: str,
    recipe: str,
    repo_id: str | None = None,
    figures: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """README.md for a merge: YAML metadata and a body for a reader. Names no local path.

    Args:
        record: The merge.
        info: What its files are.
        name: Name of the result.
        paper: Where the method comes from.
        recipe: Text of the pinned recipe.
        repo_id: Where it is published, or None while that is open.
        figures: What was found of it, by suite and by name of the figure.
    """
    head = _metadata(info, record.base_model, common_license(record), ("merge",))
    body = _body(record, info, name, paper, recipe, repo_id, _figures(figures or {}))
    return f"---\n{head}---\n\n{body}"


def _figures(figures: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        f"| {_plain(suite)} | {_plain(key)} | {value:.4g} |"
        for suite, found in figures.items()
        for key, value in found.items()
    ]
    head = ["## Evaluation", "", "| suite | figure | value |", "|---|---|---|"]
    return "\n".join(["", *head, *rows, ""]) if rows else ""


def render_plain_card(
    info: AdapterInfo,
    *,
    name: str,
    repo_id: str,
    figures: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """README.md for an adapter that has none: what its files say, and how to load it.

    ``figures`` as in `render_card`.
    """
    base = _base(info.base_model)
    size = f"{len(info.modules)} modules ({', '.join(_plain(t) for t in info.targets)})"
    ranks = " to ".join(str(r) for r in sorted({info.ranks[0], info.ranks[-1]}))
    return f"""---
{_metadata(info, info.base_model, None, ())}---

# {_plain(name)}

A LoRA adapter for {base}. It adapts {size} at rank {ranks}.
{_figures(figures or {})}
## Use

{_loading(info, info.base_model, name, repo_id)}"""


def read_remake(text: str) -> tuple[str, dict[str, str]] | None:
    """The recipe (YAML) in a card's text and the sha256 (hex) of what it makes, by file name.

    None where the card has no recipe; nothing in it is trusted.
    """
    _, mark, rest = text.partition(f"\n{REMAKE}\n")
    block = re.search(r"^(`{3,})yaml\n(.*?)^\1$", rest, re.DOTALL | re.MULTILINE)
    if not mark or block is None:
        return None
    rows = re.findall(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$", rest[block.end() :], re.MULTILINE)
    return block[2], dict(rows)


def render_extraction(
    record: Extraction,
    info: AdapterInfo,
    *,
    name: str,
    repo_id: str | None = None,
    figures: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """README.md for an adapter extracted from two models. Names no local path.

    ``figures`` as in `render_card`.
    """
    sources = (record.base, record.finetuned)
    license_name = combine([(s.name, s.license) for s in sources]).license
    head = _metadata(info, record.base_model, license_name, ())
    body = _extraction_body(record, info, name, repo_id, _figures(figures or {}))
    return f"---\n{head}---\n\n{body}"


def common_license(record: Record) -> str | None:
    """The licence under which all parents may be handed on, or None; it is never guessed."""
    return combine([(p.reference, p.license) for p in record.parents]).license


def _metadata(
    info: AdapterInfo, base_model: str | None, license_name: str | None, tags: tuple[str, ...]
) -> str:
    data: dict[str, object] = {"library_name": "peft"}
    if _is_repo_id(base_model):
        # Of a merged adapter too: a relation of "merge" would list it among whole models.
        data |= {"base_model": base_model, "base_model_relation": "adapter"}
    if license_name:
        data["license"] = " ".join(license_name.split())[:100]
    if pipeline := PIPELINES.get(info.task_type or ""):
        data["pipeline_tag"] = pipeline
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
    if path.startswith("file://"):
        return PurePosixPath(path).name
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


def _base(name: str | None) -> str:
    if _is_repo_id(name):
        return f"`{name}`"
    return _plain(_last_part(name or "")) or "its base model"


def _fenced(text: str, language: str = "") -> str:
    """Text as a code block that it cannot end."""
    runs = re.findall(r"`+", text)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _loading(info: AdapterInfo, base_model: str | None, name: str, repo_id: str | None) -> str:
    base = base_model if _is_repo_id(base_model) else "BASE_MODEL"
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", 1)[-1]).strip("-.") or "adapter"
    return loading(info, base=str(base), repo=repo_id or "PATH_OR_REPO", name=word)


def _body(
    record: Record,
    info: AdapterInfo,
    name: str,
    paper: str,
    recipe: str,
    repo_id: str | None,
    figures: str,
) -> str:
    check = record.verification
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

A LoRA adapter for {_base(record.base_model)}, merged from {len(record.parents)} adapters with
[lorahub](https://pypi.org/project/lorahub-kit/). It adapts {record.modules} modules
({", ".join(_plain(t) for t in info.targets)}) at rank {record.rank} or less.

## Made from

| adapter | weight | licence | kept |
|---|---|---|---|
{rows}

"Kept" is the share of the adapter's squared norm that the result can express.

## How

Method `{_code(record.method)}` ({_plain(paper)}), {parameters or "no parameters"}, scale
{record.scale:g}, seed {record.seed}, written as {record.dtype}.

## Verification

Recomputed from the sources in float64 by another path than the merge's own.

| figure | value |
|---|---|
| distance from the method's definition | {check.error:.1e} |
| worst module | {check.worst_error:.1e} (`{_code(check.worst_module)}`) |
| allowed for {record.dtype} | {check.tolerance:.1e} |
| distance from the exact weighted sum | {check.truncation:.1%} |
{notes}{figures}
## Use

{_loading(info, record.base_model, name, repo_id)}
{REMAKE}

`lorahub repro {repo_id or "README.md"}` pulls the same commits, merges again and compares bytes;
this page alone is enough for it.

{_fenced(recipe, "yaml")}

| file | sha256 |
|---|---|
| `{_code(info.weights_file)}` | `{info.weights_sha256}` |
| `adapter_config.json` | `{info.config_sha256}` |
"""


def _extraction_body(
    record: Extraction, info: AdapterInfo, name: str, repo_id: str | None, figures: str
) -> str:
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
({", ".join(_plain(t) for t in info.targets)}) at rank {rank} or less;
{len(record.unchanged)} others are the same in both models.

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
{left_out}{figures}
## Use

{_loading(info, record.base_model, name, repo_id)}"""


def _model_cell(source: ModelSource) -> str:
    if source.repo_id and source.revision:
        url = quote(f"https://huggingface.co/{source.repo_id}/tree/{source.revision}", safe=":/")
        return f"[{_plain(source.repo_id)}]({url}) at `{_code(source.revision[:12])}`"
    return _plain(source.name)


def _model_row(source: ModelSource) -> str:
    licence = _plain(source.license or "not stated")
    return f"| {_model_cell(source)} | {licence} | `{source.content_hash[:16]}` |"
