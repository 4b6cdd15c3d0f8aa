"""The catalog, on real SQLite files and with real processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from lorahub.adapter import (
    Adapter,
    AdapterInfo,
    BaseIdentity,
    Confidence,
    Module,
    ModuleKind,
    Origin,
    Refusal,
    Source,
)
from lorahub.errors import CatalogError, ConflictError, LorahubError, StorageError, UsageError
from lorahub.record import Parent
from store import AdapterFilter, AdapterSummary, Catalog, RunDraft, migrate
from store.adapters import insert_rows
from store.models import metadata
from store.session import open_engine
from tests.conftest import ROOT
from tests.postgres import Databases
from tests.waiting import PATIENCE

BASES = ("meta-llama/Llama-3-8B", "unsloth/llama-3-8b", "Qwen/Qwen2.5_7B", "mistral%7b", None)
DRAFT = RunDraft("d" * 64, "recipe: text", "svd", "target")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def module(name: str, rank: int = 8, *, kind: ModuleKind = ModuleKind.LINEAR) -> Module:
    return Module(
        name, kind, rank, 64, 32, "F32", "BF16", 16.5, 16.5 / rank, f"{name}.A", f"{name}.B",
        sha(name + "A"), sha(name + "B"),
    )  # fmt: skip


def adapter(name: str, **changes: Any) -> Adapter:
    """An adapter by name; changes go to its info, its origin or itself."""
    info = AdapterInfo(
        "peft", "LORA", "meta/base", "CAUSAL_LM", (module("m.q_proj"),), (), (), {"r": 8},
        "adapter_model.safetensors", 1000, sha(name), sha("config"),
    )  # fmt: skip
    origin = Origin(Source.FOLDER, Path("/adapters") / name)
    own = {k: changes.pop(k) for k in ("method",) if k in changes}
    of_origin = {k: changes.pop(k) for k in Origin.__slots__ if k in changes}
    return Adapter(name, replace(origin, **of_origin), replace(info, **changes), **own)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new catalog can be opened, in each kind of database."""
    if request.param == "sqlite":
        return tmp_path / "catalog.db"
    databases: Databases = request.getfixturevalue("postgres")
    return databases.new()


@pytest.fixture
def catalog(where: Path | str) -> Iterator[Catalog]:
    with Catalog.open(where) as opened:
        yield opened


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as opened:
        yield opened


def names(found: list[Adapter] | list[AdapterSummary]) -> list[str]:
    return [a.name for a in found]


# --- adapters ---


def full() -> Adapter:
    return adapter(
        "näme/with spaces",
        method="ties",
        source=Source.HUB,
        repo_id="owner/name",
        revision="a1" * 20,
        requested_revision="main",
        endpoint="http://hub.example",
        modules=(
            module("l.0.embed", 4, kind=ModuleKind.EMBEDDING),
            module("l.0.q_proj", 16),
            replace(module("l.1.ü"), hash_a="", hash_b="", alpha=0.1, scaling=1 / 3),
        ),
        refusals=(Refusal("dora", "use_dora is set"), Refusal("format", "other")),
        warnings=("odd", "odder"),
        config={"r": 8, "deep": {"list": [1, None, 0.1, "é"]}, "unknown": True, "nan?": []},
        weights_bytes=2**40 + 1,
        license="apache-2.0",
        tags=("peft", "täg"),
        card="# Card\n\nText with 'quotes', \"more\" and \N{GRINNING FACE}.\n",
        base_model="owner/base",
    )


def test_everything_of_an_adapter_comes_back(where: Path | str) -> None:
    given = full()
    with Catalog.open(where) as catalog:
        added = catalog.add(given)
        assert added.id > 0
        assert added.created_at.endswith("+00:00")
        base = BaseIdentity("owner/base", Confidence.CERTAIN, "it is named so")
        assert added == replace(given, id=added.id, created_at=added.created_at, base=base)
        (summary,) = catalog.adapters()
    assert (summary.rank_min, summary.rank_max, summary.modules) == (4, 16, 3)
    assert (summary.targets, summary.dtype) == (given.info.targets, "mixed")
    assert (summary.parameters, summary.mergeable) == (given.info.parameters, False)
    with Catalog.open(where) as catalog:
        found = catalog.by_name(given.name)
        assert found == added
        assert found is not None
        assert list(found.info.config) == list(given.info.config)
        assert catalog.by_name("another") is None


def test_an_adapter_with_nothing_comes_back(catalog: Catalog) -> None:
    bare = adapter("bare", modules=(), config={}, peft_type=None, base_model=None, task_type=None)
    added = catalog.add(bare)
    assert catalog.by_name("bare") == added
    (summary,) = catalog.adapters()
    assert (summary.rank_min, summary.rank_max, summary.targets) == (0, 0, ())
    assert (summary.dtype, summary.mergeable) == ("-", True)


def test_a_taken_name_adds_nothing(catalog: Catalog) -> None:
    catalog.add(adapter("one", card="first"))
    with pytest.raises(ConflictError, match="'one'"):
        catalog.add(adapter("one", card="second"))
    assert catalog.count() == 1
    assert catalog.search("second") == []
    assert catalog.check() == ()


def test_a_newcomer_takes_over_a_name(catalog: Catalog) -> None:
    old = catalog.add(adapter("one", weights_sha256=sha("old")))
    new = catalog.add(adapter("one", weights_sha256=sha("new")), rename_older="former")
    assert catalog.by_name("one") == new
    assert catalog.by_name("former") == replace(old, name="former")
    assert names(catalog.search("former")) == ["former"]
    assert names(catalog.search("one")) == ["one"]
    assert catalog.check() == ()


def test_a_taken_new_name_changes_nothing(catalog: Catalog) -> None:
    before = [catalog.add(adapter(name)) for name in ("one", "former")]
    with pytest.raises(ConflictError, match="'former'"):
        catalog.add(adapter("one"), rename_older="former")
    assert [catalog.by_name(a.name) for a in before] == before
    assert catalog.count() == 2


def test_rename_older_without_an_older_one(catalog: Catalog) -> None:
    catalog.add(adapter("one"), rename_older="former")
    assert names(catalog.adapters()) == ["one"]


def test_by_hash(catalog: Catalog) -> None:
    added = [catalog.add(adapter(f"a{i}")) for i in range(40)]
    twin = catalog.add(replace(added[3], name="twin"))
    hashes = {a.name: a.info.content_hash for a in [*added, twin]}
    for length in (1, 2, 7, 64):
        prefix = twin.info.content_hash[:length]
        expected = [n for n in reversed(hashes) if hashes[n].startswith(prefix)]
        assert names(catalog.by_hash(prefix)) == expected
    assert names(catalog.by_hash(twin.info.content_hash)) == ["twin", "a3"]
    assert catalog.by_hash("x") == []
    assert len(catalog.by_hash("")) == 41


def test_by_repo(catalog: Catalog) -> None:
    for name, repo, commit, branch in (
        ("first", "o/n", "a" * 40, "main"),
        ("second", "o/n", "ab" + "c" * 38, "v_1"),
        ("third", "o/n", "d" * 40, None),
        ("other", "o/other", "a" * 40, "main"),
    ):
        catalog.add(
            adapter(
                name, source=Source.HUB, repo_id=repo, revision=commit, requested_revision=branch
            )
        )
    assert names(catalog.by_repo("o/n")) == ["third", "second", "first"]
    assert names(catalog.by_repo("o/n", "a" * 40)) == ["first"]
    assert names(catalog.by_repo("o/n", "ab")) == ["second"]
    assert names(catalog.by_repo("o/n", "a")) == ["second", "first"]
    assert names(catalog.by_repo("o/n", "main")) == ["first"]
    assert names(catalog.by_repo("o/n", "v_1")) == ["second"]
    for nothing in ("e", "%", "_", "v%", "vx1"):
        assert catalog.by_repo("o/n", nothing) == []
    assert catalog.by_repo("o/none") == []


def test_by_folder(catalog: Catalog) -> None:
    folder = Path("/adapters/shared")
    catalog.add(adapter("old", folder=folder))
    newer = catalog.add(adapter("new", folder=folder))
    assert catalog.by_folder(folder) == newer
    assert catalog.by_folder(folder.parent) is None


def test_names_like(catalog: Catalog) -> None:
    for name in ("python-code", "python-docs", "cooking"):
        catalog.add(adapter(name))
    assert catalog.names_like("pyton-code")[0] == "python-code"
    assert catalog.names_like("zzz") == []


# --- listing, against plain Python ---


class Many:
    """A catalog and what was added to it; a class, for its repr is short."""

    def __init__(self, catalog: Catalog, added: list[Adapter]) -> None:
        self.catalog, self.added = catalog, added


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Many]:
    rng = random.Random(0)
    where: Path | str = tmp_path_factory.mktemp("many") / "catalog.db"
    if request.param == "postgresql":
        where = request.getfixturevalue("postgres").new()
    with Catalog.open(where) as catalog:
        added = []
        for i in range(300):
            ranks = rng.sample((2, 4, 8, 16, 64), rng.randint(0, 3))
            targets = rng.sample(("q_proj", "k_proj", "Q_proj", "up"), len(ranks))
            alpha = rng.choice((1.0, 16.0, 16.5, 32.0))
            dtype = rng.choice(("F32", "BF16"))
            made = adapter(
                f"{rng.choice('abAZü')}{rng.randint(0, 99)}-{i}",
                modules=tuple(
                    replace(module(f"m.{t}", r), alpha=alpha + n, dtype_a=dtype)
                    for n, (t, r) in enumerate(zip(targets, ranks))
                ),
                base_model=rng.choice(BASES),
                weights_bytes=rng.randint(1, 50),
                source=rng.choice(list(Source)),
                method=rng.choice((None, "svd", "ties")),
                license=rng.choice((None, "mit", "apache-2.0")),
                task_type=rng.choice((None, "CAUSAL_LM", "FEATURE_EXTRACTION")),
                tags=tuple(rng.sample(("peft", "täg", "a b", "%"), rng.randint(0, 2))),
                refusals=(Refusal("dora", "x"),) if rng.random() < 0.2 else (),
            )
            added.append(catalog.add(made))
        parents = [(Parent(a.name, a.info.content_hash, 1.0), a.id) for a in added[:7]]
        run = catalog.begin_run(DRAFT)
        added.append(catalog.finish_run(run, adapter("child", license="mit"), parents, ""))
        yield Many(catalog, added)


SAME_BASE = {
    "meta-llama/meta-llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "unsloth/llama-3-8b-bnb-4bit": "meta-llama/Meta-Llama-3-8B",
    "Qwen/Qwen2.5_7B": "Qwen/Qwen2.5_7B",
}


def meets(span: tuple[float | None, float | None] | None, least: float, most: float) -> bool:
    low, high = span or (None, None)
    return (low is None or most >= low) and (high is None or least <= high)


def matches(a: Adapter, where: AdapterFilter) -> bool:
    info = a.info
    ranks, alphas = info.ranks or (0,), [m.alpha for m in info.modules] or [0]
    base = SAME_BASE.get(where.base or "")
    names = f"{info.base_model or ''}\n{(a.base and a.base.name) or ''}".lower()
    return (
        (where.base is None or base is not None or where.base.lower() in names)
        and (base is None or (a.base is not None and a.base.name == base))
        and (where.method is None or a.method == where.method)
        and (where.source is None or a.origin.source == where.source)
        and (where.license is None or info.license == where.license)
        and (where.task is None or info.task_type == where.task.upper())
        and (where.dtype is None or info.dtype in {where.dtype, where.dtype.upper()})
        and (where.since is None or a.created_at >= where.since)
        and (where.until is None or a.created_at[: len(where.until)] <= where.until)
        and (where.used_in is None or (where.used_in == "child" and a.id <= 7))
        and set(where.targets) <= set(info.targets)
        and set(where.tags) <= set(info.tags)
        and meets(where.rank, ranks[0], ranks[-1])
        and meets(where.alpha, min(alphas), max(alphas))
        and meets(where.size, info.weights_bytes, info.weights_bytes)
    )


KEYS: dict[str, Callable[[Adapter], Any]] = {
    "name": lambda a: a.name,
    "created": lambda a: a.created_at,
    "rank": lambda a: max(a.info.ranks, default=0),
    "size": lambda a: a.info.weights_bytes,
    "base": lambda a: ((a.base and a.base.name) or "", a.name),
}


def spans(*values: float) -> st.SearchStrategy[Any]:
    end = st.none() | st.sampled_from(values)
    return st.none() | st.tuples(end, end)


def maybe(*values: str) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values)


def some(*values: str) -> st.SearchStrategy[Any]:
    return st.just(()) | st.lists(st.sampled_from(values), max_size=2).map(tuple)


# Mostly of a few conditions, so that something matches.
FILTERS = st.builds(
    lambda chosen, keys: AdapterFilter(**{k: v for k, v in chosen.items() if k in keys}),
    st.fixed_dictionaries(
        {
            "base": maybe("llama", "QWEN", "%", "_", "7b", "\\", "", "none", *SAME_BASE),
            "rank": spans(0, 1, 2, 4, 5, 8, 16, 64, 65),
            "alpha": spans(0, 1, 16, 16.2, 16.5, 18, 40),
            "size": spans(0, 1, 20, 21, 60),
            "targets": some("q_proj", "k_proj", "up", "none"),
            "tags": some("peft", "täg", "a b", "%", "none"),
            "dtype": maybe("F32", "f32", "mixed", "BF16", "-", "none"),
            "license": maybe("mit", "apache-2.0", "none"),
            "task": maybe("CAUSAL_LM", "feature_extraction", "none"),
            "method": maybe("svd", "ties", "none"),
            "source": maybe("hub", "folder", "merge"),
            "since": maybe("2020-01-01", "2999"),
            "until": maybe("2020-01-01", "2999-12"),
            "used_in": maybe("child", "none"),
        }
    ),
    st.sets(st.sampled_from([f.name for f in fields(AdapterFilter)]), min_size=0, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    FILTERS, st.sampled_from(sorted(KEYS)), st.booleans(), st.integers(0, 80), st.integers(0, 320)
)
def test_listing_is_what_plain_python_says(
    many: Many,
    where: AdapterFilter,
    sort: str,
    descending: bool,
    limit: int,
    offset: int,
) -> None:
    catalog, added = many.catalog, many.added
    expected = sorted((a for a in added if matches(a, where)), key=KEYS[sort])  # ties by id
    if descending:
        expected.reverse()
    assert catalog.count(where) == len(expected)
    page = catalog.adapters(where, sort=sort, descending=descending, limit=limit, offset=offset)
    assert [s.id for s in page] == [a.id for a in expected[offset : offset + limit]]
    by_id = {a.id: a for a in added}
    for s in page:
        a = by_id[s.id]
        assert (s.name, s.base_model, s.method) == (a.name, a.info.base_model, a.method)
        assert (s.modules, s.mergeable) == (len(a.info.modules), not a.info.refusals)
        assert (s.content_hash, s.created_at) == (a.info.content_hash, a.created_at)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(FILTERS)
def test_facets_count_what_matches(many: Many, where: AdapterFilter) -> None:
    catalog, added = many.catalog, many.added
    found = catalog.facets(where)
    expected: dict[str, Counter[str]] = {name: Counter() for name in found}
    for a in (a for a in added if matches(a, where)):
        for name, value in (
            ("base", a.base and a.base.name),
            ("rank", str(max(a.info.ranks, default=0))),
            ("task", a.info.task_type),
            ("license", a.info.license),
            ("source", a.origin.source.value),
            ("method", a.method),
            ("dtype", a.info.dtype),
        ):
            expected[name][value or ""] += 1
        expected["target"].update(a.info.targets)
        expected["tag"].update(a.info.tags)
    assert found == expected
    for counts in found.values():
        assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_rank_between_an_adapters_own_ranks(catalog: Catalog) -> None:
    catalog.add(adapter("mixed", modules=(module("a.x", 4), module("a.y", 64))))
    for rank, found in (
        ((4, 4), 1),
        ((8, 16), 1),
        ((64, None), 1),
        ((None, 3), 0),
        ((65, None), 0),
    ):
        assert catalog.count(AdapterFilter(rank=rank)) == found


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", sorted(KEYS))
def test_a_listing_reads_an_index_in_its_order(tmp_path: Path, sort: str, descending: bool) -> None:
    path = tmp_path / "catalog.db"
    said: list[tuple[str, Any]] = []
    with Catalog.open(path) as catalog:
        event.listen(catalog._engine, "before_cursor_execute", lambda *call: said.append(call[2:4]))
        catalog.adapters(sort=sort, descending=descending)
        catalog.count()
    with raw(path) as db:
        listing, count = (
            [step[3] for step in db.execute(f"EXPLAIN QUERY PLAN {text}", values)]
            for text, values in said
            if text.startswith("SELECT")
        )
    assert len(listing) == len(count) == 1  # a second step would be a sort
    assert "USING INDEX" in listing[0]
    assert "USING COVERING INDEX" in count[0]


# By which index a filter is served; the listing itself may rather read in its own order.
INDEXES = {
    "ix_adapters_base_name": AdapterFilter(base="Qwen/Qwen2.5_7B"),
    "ix_adapters_rank_max": AdapterFilter(rank=(128, None)),
    "ix_adapters_weights_bytes": AdapterFilter(size=(5, 5)),
    "ix_adapters_dtype": AdapterFilter(dtype="F32"),
    "ix_adapters_license": AdapterFilter(license="mit"),
    "ix_adapters_task_type": AdapterFilter(task="CAUSAL_LM"),
    "ix_adapters_source": AdapterFilter(source="merge"),
    "ix_adapters_method": AdapterFilter(method="svd"),
    "ix_adapters_created_at": AdapterFilter(since="2026"),
    "ix_lineage_adapter_id": AdapterFilter(used_in="x"),
    # Looked up for every adapter in the listing's order; a rare label costs a scan.
    "PRIMARY KEY (kind=? AND value=? AND adapter_id=?)": AdapterFilter(targets=("q_proj",)),
}


@pytest.mark.parametrize("index", INDEXES)
def test_a_filter_reads_its_index(tmp_path: Path, index: str) -> None:
    path = tmp_path / "catalog.db"
    said: list[tuple[str, Any]] = []
    with Catalog.open(path) as catalog:
        catalog.add(adapter("one", base_model="Qwen/Qwen2.5_7B"))
        event.listen(catalog._engine, "before_cursor_execute", lambda *call: said.append(call[2:4]))
        catalog.count(INDEXES[index])
        counting = len(said)
        for sort in KEYS:
            catalog.adapters(INDEXES[index], sort=sort)
        catalog.facets(INDEXES[index])
    with raw(path) as db:
        plans = [
            [step[3] for step in db.execute(f"EXPLAIN QUERY PLAN {text}", values)]
            for text, values in said
            if text.startswith("SELECT")
        ]
    assert any(index in step for plan in plans[:counting] for step in plan), plans[:counting]
    if not INDEXES[index].targets:
        assert [step for plan in plans for step in plan if re.match(r"SCAN \w+$", step)] == []


def test_an_unknown_sort_key(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="'colour'"):
        catalog.adapters(sort="colour")


def test_a_figure_of_a_suite_orders_a_listing(catalog: Catalog) -> None:
    scores = {"one": 0.5, "two": -1.0, "three": None, "four": 12.0, "five": 0.5}
    for name, score in scores.items():
        added = catalog.add(adapter(name))
        if score is not None:
            catalog.record_evaluation(added.id, "held.out", {"arc/acc,none": score, "loss": 1})
            catalog.record_evaluation(added.id, "factors", {"arc/acc,none": -score})
    assert catalog.figures() == (
        "factors.arc/acc,none", "held.out.arc/acc,none", "held.out.loss",
    )  # fmt: skip

    def ordered(sort: str, *, descending: bool = False, **page: int) -> list[str]:
        return names(catalog.adapters(sort=sort, descending=descending, **page))

    best = ["four", "five", "one", "two", "three"]
    assert ordered("held.out.arc/acc,none", descending=True) == best
    assert ordered("held.out.arc/acc,none") == ["two", "one", "five", "four", "three"]
    assert ordered("factors.arc/acc,none") == ["four", "one", "five", "two", "three"]
    pages = [
        ordered("held.out.arc/acc,none", descending=True, limit=2, offset=at) for at in (0, 2, 4)
    ]
    assert pages == [best[:2], best[2:4], best[4:]]
    where = AdapterFilter(source="folder")
    assert len(catalog.adapters(where, sort="held.out.loss")) == catalog.count(where)
    ids = {a.name: a.id for a in catalog.adapters()}
    known = {ids[name]: score for name, score in scores.items() if score is not None}
    assert catalog.figure("held.out.arc/acc,none", [*ids.values()]) == known
    assert catalog.figure("held.out.loss", [ids["one"], ids["three"]]) == {ids["one"]: 1.0}
    assert catalog.figure("held.out.acc", [*ids.values()]) == {}
    for unknown in ("held.out", "held.out.acc", "arc/acc,none", 'held.out."', "."):
        with pytest.raises(UsageError) as caught:
            catalog.adapters(sort=unknown)
        assert "size" in str(caught.value.hint)
        assert "held.out.loss" in str(caught.value.hint)


# --- search ---


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=40) | st.text(alphabet="\"'*()^:-_+{}NEAR OT AND abü\0", max_size=20))
def test_no_text_breaks_search(many: Many, words: str) -> None:
    assert len(many.catalog.search(words)) <= 50


def test_long_searches(catalog: Catalog) -> None:
    catalog.add(adapter("one", card="word " * 5))
    assert names(catalog.search("word " * 2000)) == ["one"]
    assert catalog.search("x" * 100_000) == []


def test_search_wants_every_word(catalog: Catalog) -> None:
    catalog.add(adapter("sql", card="writes queries for Postgres", tags=("code",)))
    catalog.add(adapter("poet", card="writes verses", base_model="Qwen/Qwen2.5", repo_id="own/rep"))
    assert set(names(catalog.search("writes"))) == {"sql", "poet"}
    assert names(catalog.search("writes queries")) == ["sql"]
    assert names(catalog.search("code POSTGRES")) == ["sql"]
    assert names(catalog.search("Qwen2.5 verses")) == ["poet"]
    assert names(catalog.search("own/rep")) == ["poet"]
    assert catalog.search("queries verses") == []
    assert catalog.search("") == catalog.search(' -*" ') == []


def test_search_takes_the_beginning_of_the_last_word_only(catalog: Catalog) -> None:
    catalog.add(adapter("one", card="Überraschend gute Geschichten"))
    assert names(catalog.search("gute gesch")) == ["one"]
    assert names(catalog.search("uberr")) == ["one"]
    assert catalog.search("gesch gute") == []
    assert catalog.search("ichten") == []


def test_search_finds_names_with_their_signs(catalog: Catalog) -> None:
    catalog.add(adapter("q_proj-only", modules=(module("m.up_proj"),)))
    for words in ("q_proj-only", "q_pr", "only", "up_proj", "_", "q _"):
        assert names(catalog.search(words)) == ([] if words == "_" else ["q_proj-only"]), words


def test_a_name_ranks_above_a_card(catalog: Catalog) -> None:
    for i in range(5):
        catalog.add(adapter(f"other{i}", card="about medicine and medicine"))
    catalog.add(adapter("medicine", card="nothing to say"))
    found = names(catalog.search("medicine"))
    assert found[0] == "medicine"
    assert len(found) == 6
    pages = [names(catalog.search("medicine", limit=2, offset=o)) for o in (0, 2, 4)]
    assert [n for page in pages for n in page] == found


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("limericsk", "limericks"),
        ("limerick", "limerick"),  # the beginning of a word
        ("wirtes limmericks", "writes limericks"),
        ("qewn", "qwen"),
        ("posgtres writes", "postgres writes"),
        ("uberaschend", "uberraschend"),
        ("ab", "ab"),
        ("zzzzzzzz", "zzzzzzzz"),
        ("own/rep", "own/rep"),
    ],
)
def test_a_mistyped_word_finds_the_nearest(catalog: Catalog, typed: str, meant: str) -> None:
    catalog.add(adapter("poet", card="Writes limericks. Überraschend!", base_model="Qwen/Qwen2.5"))
    catalog.add(adapter("sql", card="Writes for Postgres", repo_id="own/rep"))
    for i in range(3):
        catalog.add(adapter(f"a{i}", card="limerickz"))
    assert catalog.corrected(typed) == meant
    if typed != meant:
        assert catalog.search(typed) == catalog.search(meant)
        assert catalog.search(typed, offset=99) == []


def test_the_more_frequent_of_equally_near_words(catalog: Catalog) -> None:
    for i, word in enumerate(("planet", "planed", "planet", "planes")):
        catalog.add(adapter(f"a{i}", card=word))
    assert catalog.corrected("planex") == "planet"
    for i in (0, 2):
        found = catalog.by_name(f"a{i}")
        assert found is not None
        catalog.remove(found.id)
    assert catalog.corrected("planex") == "planed"  # nothing has the other any more


def test_a_search_whose_words_no_adapter_joins_stays_empty(catalog: Catalog) -> None:
    catalog.add(adapter("one", card="apples"))
    catalog.add(adapter("two", card="pears"))
    assert catalog.search("apples pears") == []


def test_long_documents(catalog: Catalog) -> None:
    card = " ".join(f"w{i}" for i in range(25_000)) + " " + "x" * 200_000
    catalog.add(adapter("long", card=card, tags=("last",)))
    assert names(catalog.search("w19000 last")) == ["long"]
    catalog.add(adapter("same", card="again " * 21_000))
    assert names(catalog.search("again")) == ["same"]


def test_a_removed_adapter_is_gone(catalog: Catalog) -> None:
    kept, lost = (catalog.add(adapter(n, card="same words")) for n in ("kept", "lost"))
    catalog.remove(lost.id)
    assert catalog.by_name("lost") is None
    assert names(catalog.search("same words")) == ["kept"]
    assert catalog.by_name("kept") == kept
    catalog.add(adapter("next"))  # may get the id of the lost one
    assert names(catalog.search("same words")) == ["kept"]
    assert catalog.check() == ()


# --- runs and lineage ---


def test_a_run_that_finishes(catalog: Catalog) -> None:
    run_id = catalog.begin_run(DRAFT)
    (run,) = catalog.runs()
    assert (run.state, run.digest, run.recipe) == ("running", DRAFT.digest, DRAFT.recipe)
    assert (run.ended_at, run.error, run.record, run.adapter_id) == (None, None, None, None)
    assert catalog.sweep_dead_runs() == 0
    added = catalog.finish_run(run_id, adapter("result", method="svd"), [], "the record")
    (run,) = catalog.runs()
    assert (run.state, run.record, run.adapter_id) == ("finished", "the record", added.id)
    assert run.ended_at is not None
    assert catalog.by_name("result") == added


def test_a_run_that_ends(catalog: Catalog) -> None:
    first, second = catalog.begin_run(DRAFT), catalog.begin_run(DRAFT)
    catalog.end_run(first, "failed", "why")
    assert [(r.id, r.state, r.error) for r in catalog.runs()] == [
        (second, "running", None),
        (first, "failed", "why"),
    ]
    assert [r.id for r in catalog.runs(limit=1, offset=1)] == [first]


def test_a_finished_run_stays_finished(catalog: Catalog) -> None:
    run_id = catalog.begin_run(DRAFT)
    catalog.finish_run(run_id, adapter("result"), [], "the record")
    (before,) = catalog.runs()
    catalog.end_run(run_id, "interrupted", "too late")
    assert catalog.runs() == [before]


def test_a_name_taken_at_the_end_leaves_the_run_running(catalog: Catalog) -> None:
    run_id = catalog.begin_run(DRAFT)
    catalog.add(adapter("result"))
    with pytest.raises(ConflictError):
        catalog.finish_run(run_id, adapter("result"), [(Parent("p", "h", 1.0), None)], "record")
    (run,) = catalog.runs()
    assert (run.state, run.record) == ("running", None)
    assert catalog.count() == 1


def test_runs_of_dead_processes_are_swept(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        own = catalog.begin_run(DRAFT)
        child = start(
            "catalog.begin_run(RunDraft('d', 'r', 'svd', 't')); say('begun'); sys.stdin.read()",
            path,
        )
        line(child)
        assert catalog.sweep_dead_runs() == 0
        child.kill()
        if Path("/proc/self/stat").exists():  # there it is seen before anybody has asked for it
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        else:
            child.wait()
        assert catalog.sweep_dead_runs() == 1
        child.communicate()
        theirs, mine = catalog.runs()
        assert (theirs.state, theirs.ended_at is not None) == ("interrupted", True)
        assert theirs.error
        assert (mine.id, mine.state) == (own, "running")
        assert catalog.sweep_dead_runs() == 0


def test_lineage_outlives_a_parent(catalog: Catalog) -> None:
    one, two = (catalog.add(adapter(n)) for n in ("one", "two"))
    parents = [
        (Parent("two", two.info.content_hash, -0.5), two.id),
        (Parent("one", one.info.content_hash, 1 / 3, "o/n", "c" * 40), one.id),
        (Parent("gone", "f" * 64, 1.0), None),
    ]
    for name in ("b", "a"):
        catalog.finish_run(catalog.begin_run(DRAFT), adapter(name), parents, "")
    merged = catalog.by_name("a")
    assert merged is not None
    links = catalog.parents(merged.id)
    assert [
        (p.reference, p.content_hash, p.weight, p.repo_id, p.revision, p.parent_id) for p in links
    ] == [(p.reference, p.content_hash, p.weight, p.repo_id, p.revision, i) for p, i in parents]
    assert catalog.children(one.id) == ("a", "b")
    assert catalog.children(merged.id) == catalog.parents(one.id) == ()
    catalog.remove(one.id)
    assert catalog.parents(merged.id) == (links[0], replace(links[1], parent_id=None), links[2])
    catalog.remove(merged.id)
    assert catalog.parents(merged.id) == ()
    assert catalog.children(two.id) == ("b",)
    assert catalog.runs()[0].adapter_id is None
    assert catalog.check() == ()


def test_exports_and_pushes(catalog: Catalog) -> None:
    one, two = (catalog.add(adapter(n)) for n in ("one", "two"))
    catalog.record_export(one.id, Path("/out"), "diffusers")
    catalog.record_push(one.id, "o/n", None, "c" * 40, "https://hub.example/o/n")
    catalog.record_push(one.id, "o/m", "http://hub.example", "d" * 40, "url")
    assert [(p.repo_id, p.endpoint, p.revision, p.url) for p in catalog.pushes(one.id)] == [
        ("o/n", None, "c" * 40, "https://hub.example/o/n"),
        ("o/m", "http://hub.example", "d" * 40, "url"),
    ]
    assert [(e.folder, e.format) for e in catalog.exports(one.id)] == [("/out", "diffusers")]
    assert catalog.pushes(two.id) == catalog.exports(two.id) == ()
    catalog.remove(one.id)
    assert catalog.pushes(one.id) == catalog.exports(one.id) == ()


# --- health ---


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        yield db


def test_check_finds_what_the_index_lacks(on_sqlite: Catalog, tmp_path: Path) -> None:
    catalog = on_sqlite
    added = [catalog.add(adapter(f"a{i}")) for i in range(3)]
    assert catalog.check() == ()
    with raw(tmp_path / "catalog.db") as db:
        db.execute("DELETE FROM adapters_fts WHERE rowid = ?", (added[1].id,))
    assert catalog.check() == ("1 adapters are missing from the search index",)


def test_check_finds_a_missing_parent_row(on_sqlite: Catalog, tmp_path: Path) -> None:
    catalog = on_sqlite
    catalog.add(adapter("one"))
    with raw(tmp_path / "catalog.db") as db:  # foreign keys are off by default
        db.execute("DELETE FROM adapters")
    assert any("table modules" in p and "adapters" in p for p in catalog.check())


def test_check_finds_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        for i in range(50):
            catalog.add(adapter(f"a{i}", modules=tuple(module(f"m.{n}") for n in range(20))))
    with raw(path) as db:
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_adapters_content_hash'"
        ).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(random.Random(0).randbytes(size))
    with Catalog.open(path) as catalog:
        assert catalog.check() != ()


# --- opening ---


def revision(path: Path) -> str:
    with raw(path) as db:
        return str(db.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def backups(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.backup-*"))


def test_a_new_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "catalog.db"
    with Catalog.open(path) as catalog:
        assert (catalog.count(), catalog.check()) == (0, ())
    assert revision(path) == migrate.HEAD
    assert backups(path.parent) == []


def test_a_url(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(f"sqlite:///{path}") as catalog:
        catalog.add(adapter("one"))
    with Catalog.open(path) as catalog:
        assert names(catalog.adapters()) == ["one"]
    with pytest.raises(CatalogError):
        Catalog.open("no url at all")


def test_reopening_imports_neither_alembic_nor_torch_nor_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Catalog.open(path).close()
    body = "catalog.check(); say(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    loaded = set(json.loads(finish(start(body, path))[0]))
    assert "sqlalchemy" in loaded
    assert not loaded & {"alembic", "filelock", "torch", "huggingface_hub"}
    body = "say('sqlalchemy.dialects.postgresql' in sys.modules)"
    assert finish(start(body, path)) == ["False"]


def test_making_a_catalog_imports_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    body = "say(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    loaded = set(json.loads(finish(start(body, tmp_path / "catalog.db"))[0]))
    assert "alembic" in loaded
    assert not loaded & {"torch", "huggingface_hub"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_schema_is_that_of_the_models(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    where: Path | str = tmp_path / "catalog.db"
    if kind == "postgresql":
        where = request.getfixturevalue("postgres").new(empty=True)
    Catalog.open(where).close()
    engine = open_engine(where)

    def ours(_object: object, name: str | None, kind: str, *_: object) -> bool:
        return not (kind == "table" and str(name).startswith("adapters_fts"))

    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_object": ours, "compare_type": True, "compare_server_default": True},
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_a_newer_catalog_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        catalog.add(adapter("one"))
    with raw(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CatalogError, match="9999"):
        Catalog.open(path)
    assert revision(path) == "9999"
    assert backups(tmp_path) == []


def test_a_foreign_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with raw(path) as db:
        db.execute("CREATE TABLE songs (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(CatalogError, match="songs"):
        Catalog.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("body", [b"no database, just text\n" * 100, b"SQLite format 3\0" * 50])
def test_what_is_no_database_is_refused_and_kept(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(body)
    with pytest.raises(CatalogError):
        Catalog.open(path)
    assert path.read_bytes() == body


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").mkdir()
    with pytest.raises(LorahubError):
        Catalog.open(tmp_path / "catalog.db")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Catalog.open(tmp_path / "file" / "catalog.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError):
            Catalog.open(tmp_path / "catalog.db")
    finally:
        tmp_path.chmod(0o700)


NEXT = "9000"
LATER = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "{this}", "{before}", None, None

def upgrade() -> None:
    op.add_column("adapters", sa.Column("later", sa.Text()))
    {then}
"""


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds a migration after the real ones, in a copy of them."""
    folder = tmp_path / "migrations"

    def add(then: str) -> None:
        shutil.copytree(
            migrate.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__")
        )
        (folder / "versions" / f"{NEXT}_later.py").write_text(
            LATER.format(then=then, this=NEXT, before=migrate.HEAD)
        )
        monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
        monkeypatch.setattr(migrate, "HEAD", NEXT)

    return add


def test_an_older_catalog_is_upgraded_after_a_backup(
    tmp_path: Path, later: Callable[[str], None]
) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        added = catalog.add(full())
    before = migrate.HEAD
    later("pass")
    with Catalog.open(path) as catalog:
        assert catalog.by_name(added.name) == added
        assert catalog.check() == ()
    assert revision(path) == NEXT
    (backup,) = backups(tmp_path)
    assert f"backup-{before}-" in backup.name
    assert revision(backup) == before
    with raw(backup) as db:
        assert db.execute("SELECT name FROM adapters").fetchall() == [(added.name,)]
    Catalog.open(path).close()
    assert backups(tmp_path) == [backup]


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, later: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        added = catalog.add(full())
    with monkeypatch.context():
        later('op.execute("SELECT nonsense FROM nowhere")')
        with pytest.raises(LorahubError):
            Catalog.open(path)
    monkeypatch.undo()
    assert revision(path) == migrate.HEAD
    with raw(path) as db:
        assert "later" not in [row[1] for row in db.execute("PRAGMA table_info(adapters)")]
    with Catalog.open(path) as catalog:
        assert catalog.by_name(added.name) == added


# --- PostgreSQL ---


def test_processes_that_make_one_catalog_on_a_server(postgres: Databases) -> None:
    url = postgres.new(empty=True)
    body = "say('ready'); sys.stdin.readline(); say(Catalog.open(sys.argv[2]).count())"
    both = [
        start("import alembic.command\n" + body, Path("unused"), url, opened=False)
        for _ in range(3)
    ]
    for process in both:
        assert line(process) == "ready"
    for process in both:
        go(process)
    assert [finish(process) for process in both] == [["0"]] * 3


def test_processes_that_write_to_a_server_at_once(postgres: Databases) -> None:
    url = postgres.new()
    opening = "catalog = Catalog.open(sys.argv[4])\n"
    both = [start(opening + WRITER, Path("unused"), who, 20, url, opened=False) for who in "ab"]
    for process in both:
        assert line(process) == "ready"
    for process in both:
        go(process)
    for process in both:
        assert len(finish(process)) == 20
    with Catalog.open(url) as catalog:
        expected = {f"{who}-{i}" for who in "ab" for i in range(20)}
        assert set(names(catalog.adapters(limit=1000))) == expected
        assert catalog.check() == ()


def test_a_reader_of_a_server_sees_one_moment(postgres: Databases) -> None:
    url = postgres.new()
    with Catalog.open(url) as catalog, Catalog.open(url) as other:
        added = catalog.add(adapter("one"))
        with catalog._read() as connection:
            query = "SELECT count(*) FROM adapters"
            assert connection.exec_driver_sql(query).scalar_one() == 1
            other.remove(added.id)
            assert connection.exec_driver_sql(query).scalar_one() == 1
        assert catalog.count() == 0


def test_a_lock_on_a_server_is_not_waited_for_for_ever(
    postgres: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new()
    monkeypatch.setattr("store.session.BUSY_SECONDS", 1)
    with Catalog.open(url) as catalog, Catalog.open(url) as other:
        catalog.add(adapter("one"))
        with catalog._write() as connection:
            connection.exec_driver_sql("LOCK TABLE adapters")
            with pytest.raises(CatalogError, match="locked by another process"):
                other.add(adapter("two"))
        other.add(adapter("two"))
        assert other.count() == 2


def test_servers_that_cannot_be_had(
    postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"postgresql://me:secret@/catalog?host={tmp_path}"
    with pytest.raises(CatalogError, match="catalog") as caught:
        Catalog.open(nowhere)
    assert "secret" not in caught.value.message
    assert "LORAHUB_DATABASE_URL" in str(caught.value.hint)
    with pytest.raises(CatalogError, match="does not exist"):
        Catalog.open(postgres.new().replace("/catalog_", "/none_"))
    with pytest.raises(CatalogError, match="mysql"):
        Catalog.open("mysql://me@host/catalog")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(CatalogError, match="driver") as caught:
        Catalog.open("postgres://me@host/catalog")
    assert "lorahub-kit[postgres]" in str(caught.value.hint)


def test_a_database_of_others_on_a_server_is_refused(postgres: Databases) -> None:
    url = postgres.new(empty=True)
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE songs (id integer)")
    engine.dispose()
    with pytest.raises(CatalogError, match="songs"):
        Catalog.open(url)


# --- several processes ---

PRELUDE = """
import json, resource, signal, sys
from pathlib import Path
from store import Catalog, RunDraft

def say(text):
    print(text, flush=True)

where = Path(sys.argv[1])
"""


def start(body: str, path: Path, *words: object, opened: bool = True) -> subprocess.Popen[str]:
    """Run a body in a new process, with the catalog open unless it opens it itself."""
    code = PRELUDE + ("catalog = Catalog.open(where)\n" if opened else "") + body
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    assert text, process.communicate()[1]
    return text


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out.splitlines()


@pytest.mark.parametrize("_round", range(2))
def test_processes_that_make_one_catalog_at_once(tmp_path: Path, _round: int) -> None:
    path = tmp_path / "new" / "catalog.db"
    body = "say('ready'); sys.stdin.readline(); say(Catalog.open(where).count())"
    both = [start("import alembic.command\n" + body, path, opened=False) for _ in range(3)]
    for process in both:
        assert line(process) == "ready"
    for process in both:
        go(process)
    assert [finish(process) for process in both] == [["0"]] * 3
    assert revision(path) == migrate.HEAD
    with Catalog.open(path) as catalog:
        assert catalog.check() == ()


WRITER = """
from dataclasses import replace
from tests.test_store import adapter, module
say('ready'); sys.stdin.readline()
for i in range(int(sys.argv[3])):
    modules = tuple(module(f"m.{n}") for n in range(12))
    catalog.add(adapter(f"{sys.argv[2]}-{i}", modules=modules))
    say(i)
"""


def test_processes_that_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    both = [start(WRITER, path, who, 50) for who in "ab"]
    for process in both:
        assert line(process) == "ready"
    for process in both:
        go(process)
    for process in both:
        assert len(finish(process)) == 50
    with Catalog.open(path) as catalog:
        expected = {f"{who}-{i}" for who in "ab" for i in range(50)}
        assert set(names(catalog.adapters(limit=1000))) == expected
        assert catalog.check() == ()


def test_a_killed_writer_leaves_whole_adapters(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    rng = random.Random(0)
    said: set[str] = set()
    for who in range(3):
        process = start(WRITER, path, who, 10_000)
        assert line(process) == "ready"
        go(process)
        said |= {f"{who}-{line(process)}" for _ in range(rng.randint(1, 30))}
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        with Catalog.open(path) as catalog:
            assert catalog.check() == ()
            rows = catalog.adapters(limit=100_000)
            assert said <= set(names(rows))
            for row in rows:
                found = catalog.by_name(row.name)
                assert found is not None
                assert len(found.info.modules) == row.modules == 12


def test_a_writer_does_not_wait_for_ever_and_a_reader_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.session.BUSY_SECONDS", 0.2)
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog, Catalog.open(path) as other:
        one = catalog.add(adapter("one"))
        with catalog._write() as connection:
            insert_rows(connection, adapter("two"))
            assert other.by_name("one") == one
            assert names(other.adapters()) == ["one"]
            with pytest.raises(CatalogError, match="locked by another process"):
                other.add(adapter("three"))
        assert names(other.adapters()) == ["one", "two"]
        other.add(adapter("three"))


FULL = """
from lorahub.errors import StorageError
from tests.test_store import adapter, module
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    for i in range(10_000):
        modules = tuple(module(f"m.{n}") for n in range(200))
        catalog.add(adapter(f"a-{i}", modules=modules))
        say(i)
except StorageError as error:
    assert error.hint
    say("full")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Catalog.open(path).close()
    limit = path.stat().st_size + 300_000
    *added, last = finish(start(FULL, path, limit))
    assert last == "full"
    assert added
    with Catalog.open(path) as catalog:
        assert catalog.check() == ()
        assert sorted(names(catalog.adapters(limit=1000))) == sorted(f"a-{i}" for i in added)
        catalog.add(adapter("room again"))


def test_no_room_for_a_new_catalog(tmp_path: Path) -> None:
    body = """
from lorahub.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    Catalog.open(where)
except StorageError:
    say("full")
"""
    path = tmp_path / "catalog.db"
    assert finish(start("import sqlite3, alembic.command\n" + body, path, opened=False)) == ["full"]
    with Catalog.open(path) as catalog:
        assert (catalog.count(), catalog.check()) == (0, ())
