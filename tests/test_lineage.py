"""Family trees, against closures of random graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lorahub.adapter import Adapter
from lorahub.cli.main import app
from lorahub.cli.sink import plain
from lorahub.lineage import Kin, ancestors, descendants, drawn, mermaid
from lorahub.record import Parent
from lorahub.sketching import KINDS
from store import AdapterFilter, Catalog
from tests.conftest import EXAMPLES
from tests.test_store import adapter


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    sqlite = request.param == "sqlite"
    where = tmp_path / "catalog.db" if sqlite else request.getfixturevalue("postgres").new()
    with Catalog.open(where) as opened:
        yield opened


def parent(of: Adapter, weight: float = 1.0) -> Parent:
    return Parent(of.name, of.info.content_hash, weight)


def add(catalog: Catalog, name: str, *parents: Adapter) -> Adapter:
    added = catalog.add(adapter(name, method="svd" if parents else None))
    catalog.add_lineage(added.id, [parent(p, i + 0.5) for i, p in enumerate(parents)])
    return added


def everyone(kin: Kin) -> Iterator[Kin]:
    yield kin
    for branch in kin.branches:
        yield from everyone(branch)


def links(root: Kin) -> list[tuple[str, str, float | None]]:
    return [(k.name, b.name, b.weight) for k in everyone(root) for b in k.branches]


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_trees_are_the_closures_of_the_graph(catalog: Catalog, seed: int, count: int) -> None:
    for row in catalog.adapters():
        catalog.remove(row.id)
    rng = np.random.default_rng(seed)
    edges = np.triu(rng.random((count, count)) < 0.4, 1)  # [i, j]: i is a parent of j
    added: list[Adapter] = []
    for j in range(count):
        added.append(add(catalog, f"n{j}", *(added[i] for i in np.flatnonzero(edges[:j, j]))))
    reach = np.linalg.matrix_power(np.eye(count, dtype=int) + edges, count) > 0
    weights = np.cumsum(edges, 0) - 0.5
    for j in range(count):
        for root, around, up in (
            (ancestors(catalog, added[j].id), reach[:, j], True),
            (descendants(catalog, added[j].id), reach[j], False),
        ):
            assert {k.name for k in everyone(root)} == {f"n{i}" for i in np.flatnonzero(around)}
            expected = [
                (f"n{b}", f"n{a}", weights[a, b]) if up else (f"n{a}", f"n{b}", weights[a, b])
                for a, b in zip(*np.nonzero(edges))
                if around[a] and around[b]
            ]
            assert sorted(links(root)) == sorted(expected)
            assert len(drawn(root)) == len(expected) + 1
            arrows = [line for line in mermaid(root, up=up).splitlines() if "-->" in line]
            assert len(arrows) == len(expected)


def test_who_left_and_came_back_is_known_by_content(catalog: Catalog) -> None:
    law = add(catalog, "law")
    both = add(catalog, "both", law)
    catalog.remove(law.id)
    (gone,) = ancestors(catalog, both.id).branches
    assert (gone.name, gone.catalogued) == ("law", False)
    assert "(not in the catalog)" in drawn(ancestors(catalog, both.id))[1]
    again = catalog.add(adapter("law"))
    renamed = catalog.add(adapter("law"), rename_older="law@old")
    (back,) = ancestors(catalog, both.id).branches
    assert (back.name, back.catalogued) == ("law", True)
    for twin in (again, renamed):
        assert [k.name for k in descendants(catalog, twin.id).branches] == ["both"]
    assert catalog.parents(both.id)[0].parent_id is None
    assert catalog.link_parents() == 1
    assert catalog.parents(both.id)[0].parent_id == renamed.id
    assert catalog.link_parents() == 0


def test_lineage_is_given_once(catalog: Catalog) -> None:
    law, both = add(catalog, "law"), add(catalog, "both")
    catalog.add_lineage(both.id, [parent(law)])
    catalog.add_lineage(both.id, [parent(law), parent(law)])
    assert [p.parent_id for p in catalog.parents(both.id)] == [law.id]


def test_a_circle_ends(catalog: Catalog) -> None:
    """No merge can make one, but a catalog may have been written by anything."""
    one = catalog.add(adapter("one"))
    other = add(catalog, "other", one)
    catalog.add_lineage(one.id, [parent(other)])
    for root in (ancestors(catalog, one.id), descendants(catalog, one.id)):
        assert [k.name for k in everyone(root)] == ["one", "other", "one"]
        assert [k.omitted for k in everyone(root)] == [None, None, "as above"]
        assert drawn(root)[-1].endswith("(as above)")


def test_a_long_line_of_merges_is_cut(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahub.lineage.MOST_GENERATIONS", 10)
    first = last = add(catalog, "n0")
    for i in range(1, 15):
        last = add(catalog, f"n{i}", last)
    for root in (ancestors(catalog, last.id), descendants(catalog, first.id)):
        assert len(list(everyone(root))) == 11
        assert drawn(root)[-1].endswith("(and more)")
        assert plain(root)["branches"]


def test_hostile_names_stay_inside_their_boxes(catalog: Catalog) -> None:
    name = 'x"] --> y\n    click a0 "javascript:alert(1)" <b>&#35;'
    root = ancestors(catalog, add(catalog, "m", catalog.add(adapter(name))).id)
    first, box, other, arrow = mermaid(root, up=True).splitlines()
    assert (first, arrow) == ("flowchart TD", "    a1 -->|0.5| a0")
    for line in (box, other):
        assert line.count('"') == 2
        assert "<b>" not in line
    assert "#34;#93; --#62; y click" in other


def test_the_commands(home: Path) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(w) for w in words])
        assert done.exit_code == 0, done.output
        return done.stdout

    run("pull", EXAMPLES / "languages", EXAMPLES / "packages")
    run("merge", "languages:0.5", "packages", "--method", "cat", "--name", "both")
    tree = json.loads(run("lineage", "both", "--json"))
    assert [(b["name"], b["weight"]) for b in tree["branches"]] == [
        ("languages", 0.5),
        ("packages", 1.0),
    ]
    assert run("impact", "languages").splitlines()[1].startswith("└─ both  weight 0.5  cat")
    assert run("lineage", "both", "--mermaid").startswith("flowchart TD\n")
    assert CliRunner().invoke(app, ["impact", "nothing"]).exit_code == 3


def test_sketches_in_the_catalog(catalog: Catalog) -> None:
    added = [catalog.add(adapter(name, base_model=f"lab/{name}")) for name in "abc"]
    bare = catalog.add(adapter("bare", modules=()))
    columns = {"version": 1, "norm": 2.5, "structure": b"s", "factors": b"f"}
    for one in (*added[:2], bare):
        vectors = {kind: f"{kind} of {one.name}".encode() for kind in KINDS}
        catalog.add_sketch(one.id, **columns, **vectors)
    assert catalog.unsketched(1) == ["c"]
    assert catalog.unsketched(2) == ["a", "b", "c"]
    assert catalog.unsketched(2, AdapterFilter(base="lab/b")) == ["b"]
    ids, body = catalog.sketch_vectors("delta", 1)
    assert ids == [added[0].id, added[1].id, bare.id]
    assert body == b"delta of adelta of bdelta of bare"
    known = catalog.by_name("b")
    assert known is not None and known.base is not None
    assert catalog.unsketched(2, base=known.base.name) == ["b"]
    assert catalog.sketch_vectors("delta", 1, base="lab/none")[0] == []
    (row,) = catalog.sketches("spectrum", 1, AdapterFilter(base="lab/b"))
    assert (row.id, row.name, row.vector) == (added[1].id, "b", b"spectrum of b")
    (row,) = catalog.sketches("subspace", 1, ids=[added[0].id, added[2].id])
    assert row.vector == b"subspace of a"
    catalog.add_sketch(added[0].id, **{**columns, "version": 2}, **vectors)
    assert catalog.sketch_vectors("delta", 1)[0] == [added[1].id, bare.id]
    assert [k.name for k in catalog.sketch_keys(2)] == ["a"]
    catalog.remove_all([added[0].id, added[1].id])
    catalog.add_sketch(added[0].id, **columns, **vectors)  # it left meanwhile
    assert catalog.sketch_vectors("delta", 1)[0] == [bare.id]
    assert [p.name for p in catalog.placed()] == ["c", "bare"]
