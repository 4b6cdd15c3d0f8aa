"""What the catalog keeps of Hubs."""

from __future__ import annotations

from dataclasses import replace

from lorahub.adapter import Outline
from store import Catalog
from tests.test_store import catalog, where

__all__ = ["catalog", "where"]

ONE = Outline("peft", 4, 16, ("k_proj", "q_proj"), "BF16", 64, 3 << 32)
SHA = "a" * 40


def test_outlines_come_back_by_hub_repository_and_commit(catalog: Catalog) -> None:
    other = replace(ONE, rank_max=32)
    catalog.remember_outlines(None, {("ann/x", SHA): ONE, ("ann/y", SHA): other})
    catalog.remember_outlines("https://h", {("ann/x", SHA): other})
    asked = [("ann/x", SHA), ("ann/x", "b" * 40), ("ann/z", SHA)]
    assert catalog.outlines(None, asked) == {("ann/x", SHA): ONE}
    assert catalog.outlines("https://h", asked) == {("ann/x", SHA): other}
    assert catalog.outlines("https://i", asked) == {}
    assert catalog.outlines(None, []) == {}


def test_an_outline_that_is_known_stays(catalog: Catalog) -> None:
    catalog.remember_outlines(None, {("ann/x", SHA): ONE})
    catalog.remember_outlines(None, {("ann/x", SHA): replace(ONE, modules=1)})
    catalog.remember_outlines(None, {})
    assert catalog.outlines(None, [("ann/x", SHA)]) == {("ann/x", SHA): ONE}


def test_more_outlines_than_a_statement_takes(catalog: Catalog) -> None:
    many = {(f"ann/x{n}", f"{n:040x}"): replace(ONE, modules=n) for n in range(1234)}
    catalog.remember_outlines(None, many)
    assert catalog.outlines(None, list(many)) == many
