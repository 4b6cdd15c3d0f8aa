"""Full-text search: in SQLite by FTS5, in PostgreSQL by its own search, with the same words."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    RowMapping,
    func,
    select,
    text,
)

from store.models import adapter_table, text_table, word_table
from store.session import insert_new

_FIELDS = ("name", "base", "tags", "targets", "card")
# What a hit in each field counts. PostgreSQL has four classes of weights, A to D.
_WEIGHTS = (10, 4, 4, 2, 1)
_CLASSES = "ABBCD"
_CLASS_WEIGHTS = "{0.1, 0.2, 0.4, 1.0}"

# PostgreSQL holds a document of a megabyte at most.
_MOST_POSITIONS = 20_000
_LONGEST_WORD = 40

_WORD = re.compile(r"[^\W_]+")
_KEPT_LENGTHS = range(3, 31)
_COMMON = 1000


def fold(words: str) -> str:
    """Text without case and diacritics."""
    apart = unicodedata.normalize("NFKD", words.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c))


def hits(
    connection: Connection,
    words: str,
    limit: int,
    offset: int,
    among: Sequence[ColumnElement[bool]] = (),
) -> list[int]:
    """Ids of the adapters that have every word, best first; the last may be a beginning.

    ``among`` are conditions on the adapters' table.
    """
    match = _match(connection, _WORD.findall(words))
    if match is None:
        return []
    if connection.dialect.name == "sqlite":
        found = text(
            f"SELECT rowid AS id, bm25(adapters_fts, {', '.join(map(str, _WEIGHTS))}) AS score "  # noqa: S608
            "FROM adapters_fts WHERE adapters_fts MATCH :match"
        )
    else:
        found = text(
            f"SELECT id, -ts_rank('{_CLASS_WEIGHTS}', document, q, 1) AS score "  # noqa: S608
            "FROM adapters_fts, CAST(:match AS tsquery) AS q WHERE document @@ q"
        )
    hit = found.bindparams(match=match).columns(id=Integer, score=Float).subquery("hit")
    query = select(hit.c.id).order_by(hit.c.score, hit.c.id).limit(limit).offset(offset)
    if among:
        query = query.where(hit.c.id.in_(select(adapter_table.c.id).where(*among)))
    return list(connection.execute(query).scalars())


def corrected(connection: Connection, words: str) -> str:
    """The words, with each that no adapter has replaced by the most frequent of the nearest.

    Of three letters two must be right. A word that nothing is near to stays as it is.
    """
    terms = _WORD.findall(words)
    meant = list(terms)
    for i, term in enumerate(terms):
        if not _frequency(connection, term, prefix=i == len(terms) - 1):
            meant[i] = _nearest(connection, fold(term)) or term
    return words if meant == terms else " ".join(meant)


def reindex(connection: Connection, adapter_ids: Iterable[int]) -> None:
    """Make the searched text of adapters anew, within a transaction."""
    query = select(
        adapter_table.c.id,
        adapter_table.c.name,
        adapter_table.c.repo_id,
        adapter_table.c.base_model,
        adapter_table.c.base,
        adapter_table.c.tags,
        adapter_table.c.targets,
        text_table.c.card,
    ).join(text_table, text_table.c.adapter_id == adapter_table.c.id)
    for adapter_id in adapter_ids:
        row = connection.execute(query.where(adapter_table.c.id == adapter_id)).mappings().one()
        _write(connection, adapter_id, _document(row))


def unindex(connection: Connection, adapter_id: int) -> None:
    """Remove the searched text of an adapter, within a transaction."""
    key = _key(connection)
    connection.execute(
        text(f"DELETE FROM adapters_fts WHERE {key} = :id"),  # noqa: S608
        {"id": adapter_id},
    )


def unindexed(connection: Connection) -> int:
    """How many adapters the search cannot find."""
    key = _key(connection)
    query = f"SELECT count(*) FROM adapters WHERE id NOT IN (SELECT {key} FROM adapters_fts)"  # noqa: S608
    lost: int = connection.execute(text(query)).scalar_one()
    return lost


def _key(connection: Connection) -> str:
    return "rowid" if connection.dialect.name == "sqlite" else "id"


def _document(row: RowMapping) -> dict[str, str]:
    return {
        "name": f"{row['name']} {row['repo_id'] or ''}",
        "base": f"{row['base_model'] or ''} {row['base']}",
        "tags": " ".join(row["tags"]),
        "targets": " ".join(row["targets"]),
        "card": row["card"],
    }


def _write(connection: Connection, adapter_id: int, document: dict[str, str]) -> None:
    words = [_WORD.findall(fold(document[field])) for field in _FIELDS]
    if connection.dialect.name == "sqlite":
        unindex(connection, adapter_id)
        connection.execute(
            text(
                "INSERT INTO adapters_fts (rowid, name, base, tags, targets, card) "
                "VALUES (:id, :name, :base, :tags, :targets, :card)"
            ),
            {"id": adapter_id, **document},
        )
    else:
        connection.execute(
            text(
                "INSERT INTO adapters_fts (id, document) VALUES (:id, CAST(:document AS tsvector)) "
                "ON CONFLICT (id) DO UPDATE SET document = excluded.document"
            ),
            {"id": adapter_id, "document": _tsvector(words)},
        )
    kept = {w for some in words for w in some if len(w) in _KEPT_LENGTHS and not w.isdigit()}
    if kept:
        rows = [{"length": len(w), "word": w} for w in sorted(kept)]
        insert_new(connection, word_table, rows)


def _tsvector(words: Sequence[Sequence[str]]) -> str:
    """Words by field as PostgreSQL writes a document: its own parser would split them otherwise."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    position = count(1)
    for some, label in zip(words, _CLASSES, strict=True):
        for word, place in zip(some, position, strict=False):
            if place > _MOST_POSITIONS:
                break
            if len(word) <= _LONGEST_WORD and len(places[word]) < 50:
                places[word].append(f"{min(place, 16383)}{label}")
    return " ".join(f"'{word}':{','.join(at)}" for word, at in places.items() if at)


def _match(connection: Connection, terms: Sequence[str], *, prefix: bool = True) -> str | None:
    """The terms as a query in the database's own language; None without any."""
    if not terms:
        return None
    if connection.dialect.name == "sqlite":
        return " ".join(f'"{term}"' for term in terms) + ("*" if prefix else "")
    folded = [f"'{word}'" for term in terms for word in _WORD.findall(fold(term)[:_LONGEST_WORD])]
    return " & ".join(folded) + (":*" if prefix else "") if folded else None


def _frequency(connection: Connection, term: str, *, prefix: bool) -> int:
    """How many adapters have a word, up to a number that tells it is common."""
    match = _match(connection, [term], prefix=prefix)
    where = (
        "adapters_fts MATCH :match"
        if connection.dialect.name == "sqlite"
        else "document @@ CAST(:match AS tsquery)"
    )
    some = f"SELECT 1 FROM adapters_fts WHERE {where} LIMIT {_COMMON}"  # noqa: S608
    query = f"SELECT count(*) FROM ({some}) AS hit"  # noqa: S608
    count: int = connection.execute(text(query), {"match": match}).scalar_one()
    return count


def _nearest(connection: Connection, term: str) -> str | None:
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    wrong = min(len(term) // 3, 2)
    lengths = word_table.c.length.between(len(term) - wrong, len(term) + wrong)
    # As one text: tens of thousands of rows would take longer than all the rest.
    joined = select(func.aggregate_strings(word_table.c.word, " ")).where(lengths)
    words = (connection.execute(joined).scalar() or "").split()
    near = process.extract(term, words, scorer=OSA.distance, score_cutoff=wrong, limit=5)
    rated = [(d, -_frequency(connection, word, prefix=False), word) for word, d, _ in near]
    return min((r for r in rated if r[1]), default=(0, 0, None))[2]
