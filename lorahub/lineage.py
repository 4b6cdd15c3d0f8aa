"""The family tree of an adapter, as a value, as lines of text and as Mermaid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from store import Catalog
from store.lineage import LineageAdapter, LineageEdge


@dataclass(frozen=True, slots=True)
class Kin:
    """An adapter in a family tree.

    Attributes:
        name: Catalog name, or the reference of one that is not in the catalog.
        content_hash: Identity of its content.
        method: Method it was merged with, or None.
        license: Licence it states, or None.
        repo_id: ``owner/name`` when it came from the Hub, else None.
        revision: Commit when it came from the Hub, else None.
        catalogued: Whether the catalog has it.
        weight: Weight of this parent in the merge, or None at the root.
        branches: Its parents, where the tree goes up; what it was merged into, where it goes
            down.
        omitted: Why its branches are left out here (``as above``: they stand elsewhere in the
            tree; ``and more``: too many generations away), or None.
    """

    name: str
    content_hash: str
    method: str | None
    license: str | None
    repo_id: str | None
    revision: str | None
    catalogued: bool
    weight: float | None
    branches: tuple[Kin, ...]
    omitted: str | None


def ancestors(catalog: Catalog, adapter_id: int) -> Kin:
    """What an adapter came from, over all generations."""
    edges = catalog.ancestry(adapter_id)
    below: dict[int, list[LineageEdge]] = defaultdict(list)
    for edge in edges:
        below[edge.child_id].append(edge)
    ids = {adapter_id, *(e.parent_id for e in edges if e.parent_id is not None)}
    return _Tree(catalog.lineage_adapters(sorted(ids)), below, up=True).root(adapter_id)


def descendants(catalog: Catalog, adapter_id: int) -> Kin:
    """What an adapter is part of, over all generations."""
    edges = catalog.descent(adapter_id)
    below: dict[int, list[LineageEdge]] = defaultdict(list)
    adapters = catalog.lineage_adapters(sorted({adapter_id, *(e.child_id for e in edges)}))
    by_content: dict[str, list[int]] = defaultdict(list)
    for adapter in adapters.values():
        by_content[adapter.content_hash].append(adapter.id)
    for edge in edges:
        # Twins of one content share their descendants.
        for parent in by_content[edge.content_hash]:
            below[parent].append(edge)
    return _Tree(adapters, below, up=False).root(adapter_id)


MOST_GENERATIONS = 100
"""More are cut off: trees are walked by recursion, and no screen shows them."""


class _Tree:
    """Grows a tree from edges; a subtree stands once, so that its size is that of the edges."""

    def __init__(
        self,
        adapters: Mapping[int, LineageAdapter],
        below: Mapping[int, Sequence[LineageEdge]],
        *,
        up: bool,
    ) -> None:
        self._adapters = adapters
        self._below = below
        self._up = up
        self._grown: set[int] = set()

    def root(self, adapter_id: int) -> Kin:
        """The tree of an adapter."""
        return self._known(self._adapters[adapter_id], None, 0)

    def _known(self, about: LineageAdapter, weight: float | None, generation: int) -> Kin:
        edges = self._below.get(about.id, ())
        omitted = None
        if edges and about.id in self._grown:
            omitted = "as above"
        elif edges and generation == MOST_GENERATIONS:
            omitted = "and more"
        else:
            self._grown.add(about.id)
        branches = () if omitted else tuple(self._branch(e, generation + 1) for e in edges)
        return Kin(
            about.name,
            about.content_hash,
            about.method,
            about.license,
            about.repo_id,
            about.revision,
            True,
            weight,
            branches,
            omitted,
        )

    def _branch(self, edge: LineageEdge, generation: int) -> Kin:
        about = self._adapters.get((edge.parent_id or 0) if self._up else edge.child_id)
        if about is not None:
            return self._known(about, edge.weight, generation)
        return Kin(
            edge.reference,
            edge.content_hash,
            None,
            None,
            edge.repo_id,
            edge.revision,
            False,
            edge.weight,
            (),
            None,
        )


def drawn(root: Kin) -> list[str]:
    """The tree as lines of text."""
    lines = [_line(root)]

    def grow(kin: Kin, indent: str) -> None:
        for i, branch in enumerate(kin.branches, 1):
            last = i == len(kin.branches)
            lines.append(f"{indent}{'└─' if last else '├─'} {_line(branch)}")
            grow(branch, indent + ("   " if last else "│  "))

    grow(root, "")
    return lines


def _line(kin: Kin) -> str:
    parts = [kin.name]
    if kin.weight is not None:
        parts.append(f"weight {kin.weight:g}")
    if kin.method:
        parts.append(kin.method)
    parts.append(kin.content_hash[:12])
    if kin.repo_id:
        parts.append(f"{kin.repo_id}@{kin.revision}")
    if not kin.catalogued:
        parts.append("(not in the catalog)")
    if kin.omitted:
        parts.append(f"({kin.omitted})")
    return "  ".join(parts)


def mermaid(root: Kin, *, up: bool) -> str:
    """The tree as a Mermaid flowchart, from sources to results, every adapter once.

    Args:
        root: The tree.
        up: Whether branches are parents, or else what was merged from it.
    """
    names: dict[str, str] = {}
    lines = ["flowchart TD"]
    for kin in _walk(root):
        if kin.content_hash not in names:
            names[kin.content_hash] = f"a{len(names)}"
            lines.append(f'    {names[kin.content_hash]}["{_label(kin)}"]')
    for kin in _walk(root):
        for branch in kin.branches:
            ends = [names[branch.content_hash], names[kin.content_hash]]
            source, result = ends if up else reversed(ends)
            lines.append(f"    {source} -->|{branch.weight:g}| {result}")
    return "\n".join(lines) + "\n"


def _walk(kin: Kin) -> Iterator[Kin]:
    yield kin
    for branch in kin.branches:
        yield from _walk(branch)


def _label(kin: Kin) -> str:
    parts = [kin.name]
    if kin.method:
        parts.append(kin.method)
    if kin.repo_id:
        parts.append(f"{kin.repo_id}@{(kin.revision or '')[:8]}")
    elif kin.content_hash:
        parts.append(kin.content_hash[:12])
    return "<br>".join(_quoted(part) for part in parts)


def _quoted(text: str) -> str:
    """Foreign text as Mermaid shows it, whatever it holds."""
    return "".join(
        c if c.isalnum() or c in " _-./@:" else f"#{ord(c)};" for c in " ".join(text.split())
    )
