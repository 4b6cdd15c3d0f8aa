"""Catalogs as JSON lines: out, in again, into others, and damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorahub.adapter import Adapter
from lorahub.errors import ConflictError, InvalidCatalogError, LorahubError, NotFoundError
from lorahub.record import Parent
from lorahub.workspace import Workspace
from store import Catalog, Imported
from tests.postgres import Databases
from tests.test_store import DRAFT, adapter, full, names, raw


def fill(catalog: Catalog) -> None:
    """Everything a catalog can hold, with a parent that came after its child."""
    catalog.add_alias("/srv/base", "acme/base")
    one, two = catalog.add(full()), catalog.add(adapter("two", base_model="/srv/base"))
    parents = [
        (Parent("näme", one.info.content_hash, -1 / 3, "o/n", "c" * 40), one.id),
        (Parent("gone", "f" * 64, 1.0), None),
    ]
    child = catalog.finish_run(
        catalog.begin_run(DRAFT), adapter("child", method="svd"), parents, '{"the": "record"}'
    )
    catalog.add(replace(one, name="again"))
    catalog.remove(one.id)
    catalog.add(full())
    catalog.end_run(catalog.begin_run(DRAFT), "failed", "why")
    catalog.begin_run(DRAFT)
    catalog.record_export(child.id, Path("/out"), "peft")
    catalog.record_push(two.id, "o/n", None, "c" * 40, "https://hub.example/o/n")
    catalog.record_evaluation(child.id, "held-out", {"zürich": 1 / 3, "acc": -2.0})
    catalog.record_evaluation(child.id, "factors", {"drift": 0.5})


def contents(catalog: Catalog) -> list[object]:
    """All a catalog says, without the numbers of its rows."""
    said: list[object] = []
    for summary in catalog.adapters(sort="created", limit=100):
        one = catalog.by_name(summary.name)
        assert one is not None
        links = [replace(p, parent_id=p.parent_id and 1) for p in catalog.parents(one.id)]
        said += [replace(one, id=0), links, catalog.exports(one.id), catalog.pushes(one.id)]
        said += catalog.evaluations([one.id]).get(one.id, ())
    runs = [replace(r, id=0, adapter_id=r.adapter_id and 1) for r in catalog.runs()]
    return [*said, [r for r in runs if r.state != "running"], catalog.aliases()]


def test_runs_that_began_in_one_moment_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.runs.now", lambda: "2026-01-02T03:04:05.678+00:00")
    with Catalog.open(tmp_path / "first.db") as first, Catalog.open(tmp_path / "b.db") as second:
        for target, state in (("a", "failed"), ("b", "failed"), ("b", "interrupted")):
            first.end_run(first.begin_run(replace(DRAFT, target=target)), state, "why")
        lines = list(first.export_lines())
        assert [second.import_lines(lines, "lines").runs for _ in range(2)] == [3, 0]


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    with Catalog.open(tmp_path / "first.db") as catalog:
        fill(catalog)
        return list(catalog.export_lines())


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_out_and_in_again(
    kind: str, tmp_path: Path, lines: list[str], request: pytest.FixtureRequest
) -> None:
    where: Path | str = tmp_path / "second.db"
    if kind == "postgresql":
        databases: Databases = request.getfixturevalue("postgres")
        where = databases.new()
    with Catalog.open(tmp_path / "first.db") as first, Catalog.open(where) as second:
        found = second.import_lines(lines, "lines")
        assert found == Imported(adapters=4, known=0, aliases=1, runs=2)
        assert contents(second) == contents(first)
        assert list(second.export_lines()) == lines
        assert second.check() == ()
        # Once more brings nothing.
        found = second.import_lines(lines, "lines")
        assert found == Imported(adapters=0, known=4, aliases=0, runs=0)
        assert contents(second) == contents(first)
        assert names(second.search("acme")) == ["two"]


def test_lines_of_before_there_were_evaluations(tmp_path: Path, lines: list[str]) -> None:
    def former(line: str) -> str:
        body = json.loads(line)
        body.pop("evaluations", None)
        return json.dumps(body)

    with Catalog.open(tmp_path / "second.db") as catalog:
        assert catalog.import_lines(map(former, lines), "lines").adapters == 4


def test_into_a_catalog_that_has_others(tmp_path: Path, lines: list[str]) -> None:
    with Catalog.open(tmp_path / "second.db") as catalog:
        kept = catalog.add(adapter("kept"))
        known = catalog.add(adapter("two", base_model="/srv/base"))
        catalog.import_lines(lines, "lines")
        assert catalog.by_name("kept") == kept
        assert catalog.by_name("two") == known
        assert catalog.count() == 5


def test_a_name_of_another_adapter_is_a_conflict(tmp_path: Path, lines: list[str]) -> None:
    with Catalog.open(tmp_path / "second.db") as catalog:
        kept = catalog.add(adapter("child", weights_sha256="0" * 64))
        with pytest.raises(ConflictError, match=r"lines, line 4: 'child' is another adapter"):
            catalog.import_lines(lines, "lines")
        assert (catalog.by_name("child"), catalog.count()) == (kept, 1)
        assert catalog.aliases() == ()


def test_an_alias_of_another_base_is_a_conflict(tmp_path: Path, lines: list[str]) -> None:
    with Catalog.open(tmp_path / "second.db") as catalog:
        catalog.add_alias("/SRV/base", "other/base")
        with pytest.raises(ConflictError, match="line 2: '/srv/base' means acme/base there"):
            catalog.import_lines(lines, "lines")
        assert catalog.count() == 0


def changed(line: str, path: str, value: object) -> str:
    body = json.loads(line)
    *steps, last = path.split(".")
    inner = body
    for step in steps:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(body)


@pytest.mark.parametrize(
    ("number", "path", "value", "word"),
    [
        (1, "kind", "adapter", "beginning"),
        (1, "version", 2, "version 2"),
        (3, "kind", "song", "'song'"),
        (3, "kind", ..., "not a line"),
        (3, "adapter.name", ..., "'adapter.name': field required"),
        (3, "adapter.info.modules.0.rank", "8", "'adapter.info.modules.0.rank'"),
        (3, "adapter.info.modules.0.hash_a", "xyz", "no sha256"),
        (3, "adapter.origin.source", "moon", "'adapter.origin.source'"),
        (4, "parents.0.weight", None, "'parents.0.weight'"),
        (7, "state", 3, "'state'"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_taken(
    tmp_path: Path, lines: list[str], number: int, path: str, value: object, word: str
) -> None:
    lines[number - 1] = changed(lines[number - 1], path, value)
    with Catalog.open(tmp_path / "second.db") as catalog:
        with pytest.raises(InvalidCatalogError) as caught:
            catalog.import_lines(lines, "file")
        assert f"file, line {number}: " in caught.value.message
        assert word in caught.value.message
        assert (catalog.count(), catalog.runs(), catalog.aliases()) == (0, [], ())


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff\xfe", b"[" * 100_000, b"3\n", b'"kind"\n'])
def test_what_is_no_catalog(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "file.jsonl"
    file.write_bytes(text)
    with Workspace.open(tmp_path / "home") as workspace:
        with pytest.raises(InvalidCatalogError, match=r"file\.jsonl"):
            workspace.import_catalog(file)
        with pytest.raises(NotFoundError):
            workspace.import_catalog(tmp_path / "none")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_cut_or_changed_file_is_taken_whole_or_not_at_all(
    tmp_path: Path, lines: list[str], data: st.DataObject
) -> None:
    text = "".join(lines).encode()
    at = data.draw(st.integers(0, len(text)))
    text = data.draw(
        st.sampled_from(
            [text[:at], text[:at] + b"\x00" + text[at + 1 :], text[:at] + text[at + 9 :]]
        )
    )
    path = tmp_path / "target.db"
    with Catalog.open(path) as catalog:
        for one in catalog.adapters():
            catalog.remove(one.id)
        for alias in catalog.aliases():
            catalog.remove_alias(alias.alias)
        try:
            found = catalog.import_lines(text.splitlines(keepends=True), "text")
        except LorahubError:
            assert (catalog.count(), catalog.aliases()) == (0, ())
        else:
            assert catalog.count() == found.adapters
        assert catalog.check() == ()
    with raw(path) as db:
        db.execute("DELETE FROM runs")


def test_export_is_one_moment_and_leaves_no_half(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with Workspace.open(tmp_path / "home") as workspace:
        for i in range(3):
            workspace.catalog.add(adapter(f"a{i}"))
        exported = workspace.catalog.export_lines()
        begun = [next(exported), next(exported)]
        workspace.catalog.add(adapter("later"))
        assert len([*begun, *exported]) == 4
        file.write_text("before")
        (tmp_path / "sub").mkdir()
        with pytest.raises(ConflictError):
            workspace.export_catalog(tmp_path / "sub")
        assert file.read_text() == "before"
        assert workspace.export_catalog(file) == 5
        assert file.read_text().count("\n") == 5
        assert {p.name for p in tmp_path.iterdir()} == {"home", "out.jsonl", "sub"}


def test_hashes_of_what_was_never_read(tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "first.db") as first, Catalog.open(tmp_path / "b.db") as second:
        bare: Adapter = adapter("bare", modules=(), config={"nan": float("nan")})
        first.add(bare)
        second.import_lines(first.export_lines(), "lines")
        assert names(second.adapters()) == ["bare"]
