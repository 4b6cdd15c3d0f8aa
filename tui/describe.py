"""All that the detail pane shows of one adapter, read from the catalog in one go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorahub.adapter import Adapter
from lorahub.errors import LorahubError
from lorahub.formats.safetensors import read_header
from lorahub.integrity import glance
from lorahub.lineage import drawn
from lorahub.record import Record
from lorahub.workspace import Workspace
from tui import text

CARD_LIMIT = 20_000


@dataclass(frozen=True, slots=True)
class Description:
    """An adapter in words.

    Attributes:
        name: Its name.
        problem: What is wrong with its files, in words; empty when nothing is known to be.
        facts: Field and value.
        modules: One line a target module.
        card: The card's text.
        lineage: What it came from and went into, as a tree.
    """

    name: str
    problem: str
    facts: tuple[tuple[str, str], ...]
    modules: str
    card: str
    lineage: str


def describe(workspace: Workspace, name: str) -> Description:
    """Describe the adapter of that name.

    Raises:
        NotFoundError: There is none.
    """
    adapter = workspace.get(name)
    info, origin = adapter.info, adapter.origin
    where = f"{origin.repo_id}@{origin.revision}" if origin.repo_id else ""
    where = where or origin.url or str(origin.folder)
    exports = workspace.catalog.exports(adapter.id)
    pushes = workspace.catalog.pushes(adapter.id)
    facts = (
        *(("not mergeable", refusal.message) for refusal in info.refusals),
        *(("warning", warning) for warning in info.warnings),
        ("base model", info.base_model or ""),
        ("rank", ", ".join(map(str, info.ranks))),
        ("alpha", ", ".join(f"{a:g}" for a in sorted({m.alpha for m in info.modules}))),
        ("targets", ", ".join(info.targets)),
        ("modules", f"{len(info.modules):,}"),
        ("parameters", f"{info.parameters:,}"),
        ("dtype", info.dtype),
        ("size", text.size(info.weights_bytes)),
        ("task", info.task_type or ""),
        ("licence", info.license or ""),
        ("tags", ", ".join(info.tags)),
        ("method", adapter.method or ""),
        ("source", origin.source.value),
        ("from", where),
        ("catalogued", adapter.created_at[:16].replace("T", " ")),
        ("id", info.content_hash[:16]),
        *(("exported to", f"{e.folder} ({e.format})") for e in exports),
        *(("pushed to", p.url) for p in pushes),
        *((e.suite, e.text) for e in workspace.evaluations(adapter)),
    )
    return Description(
        name,
        problem_of(adapter),
        tuple((key, value) for key, value in facts if value),
        _modules(adapter),
        info.card[:CARD_LIMIT] or "No card.",
        "\n".join(_lineage(workspace, adapter)),
    )


def scored(workspace: Workspace, names: Iterable[str]) -> str:
    """What suites found of adapters, a block each; nothing where none did.

    Raises:
        NotFoundError: There is no such adapter.
    """
    found = [(name, workspace.evaluations(workspace.get(name))) for name in names]
    return "\n\n".join(
        "\n".join([f"Evaluation of {name}", *(f"{e.suite}: {e.text}" for e in evaluations)])
        for name, evaluations in found
        if evaluations
    )


def problem_of(adapter: Adapter) -> str:
    """What the size and the header of its weights file say is wrong; empty if nothing."""
    path = adapter.weights_path
    seen = glance(path, adapter.info.weights_bytes)
    if seen is not None:
        return f"{seen} ({path}); pull it again, or remove it (x)"
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except LorahubError as error:
            said = error.message.removeprefix(f"{path}: ")
            return f"damaged: {said} ({path}); pull it again, or remove it (x)"
    return ""


def _modules(adapter: Adapter) -> str:
    modules = adapter.info.modules
    if not modules:
        return "No target modules were found."
    top = max(m.rank for m in modules)
    width = max(len(m.name) for m in modules)
    return "\n".join(
        f"{m.name:{width}} r {m.rank:<4} {text.bar(m.rank / top, 8)} a {m.alpha:<6g} "
        f"{m.d_out}x{m.d_in}"
        for m in modules
    )


def _lineage(workspace: Workspace, adapter: Adapter) -> Iterator[str]:
    yield from drawn(workspace.lineage(adapter.name))
    yield from _verification(adapter)
    impact = workspace.impact(adapter.name)
    if impact.branches:
        yield "\nMerged into"
        yield from drawn(impact)[1:]


def _verification(adapter: Adapter) -> Iterator[str]:
    """How well a merge keeps each of its sources, as its record says."""
    try:
        record = Record.read(adapter.origin.folder)
    except LorahubError as error:
        yield f"\n{error.message}"
        return
    if record is None:
        return
    check = record.verification
    yield f"\nVerified: off by {check.worst_error:.1e} at worst, {check.tolerance:.0e} is allowed"
    for parent, kept in zip(record.parents, check.retained, strict=True):
        yield f"  {text.bar(kept, 10)} {kept:6.1%} of {parent.reference} kept"


def neighbours(found: Sequence[Mapping[str, Any]]) -> str:
    """What ``lorahub similar --json`` prints, as a table."""
    if not found:
        return "There is no other adapter to compare it with."
    width = max(len(str(n["name"])) for n in found)
    lines = [f"{'':{width}}  {'deltas':16} subspaces  spectra"]
    for n in found:
        share = text.bar(abs(n["delta"]), 8)
        lines.append(
            f"{n['name']:{width}}  {share} {n['delta']:+.3f} {n['subspace']:11.3f} "
            f"{n['spectrum']:8.3f}"
        )
    return "\n".join(lines)
