"""Licences of results: hand-checked cases, laws of the table, and where they are stated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorahub.errors import LicenseError
from lorahub.licenses import allows, combine, find, forbidding, known
from lorahub.recipe import make_recipe
from lorahub.record import Record
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.loopback_hub import LoopbackHub

MODULES = {"m.q": (12, 10, 2)}


def of(*licenses: str | None) -> list[tuple[str, str | None]]:
    return [(f"p{i}", text) for i, text in enumerate(licenses)]


# The licence of the whole, and words that say why or what else.
CASES = [
    (["mit"], "mit", []),
    (["MIT License", "mit"], "mit", []),
    (["mit", "apache-2.0"], "apache-2.0", ["keep the notices of mit"]),
    (["cc0-1.0", "mit"], "mit", []),
    (["mit", "bsd-3-clause"], "bsd-3-clause", ["keep the notices of mit"]),
    (["cc-by-4.0", "mit"], "cc-by-4.0", ["notices of mit"]),
    (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0", ["'p1' (cc-by-nc-4.0): no commercial use"]),
    (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0", []),
    (["cc-by-sa-4.0", "mit"], "cc-by-sa-4.0", []),
    (["cc-by-sa-4.0", "gpl-3.0"], "gpl-3.0", []),
    (["gpl-3.0", "apache-2.0"], "gpl-3.0", []),
    (["gpl-3.0-only", "agpl-3.0-or-later"], "agpl-3.0", []),
    (["mpl-2.0", "cc-by-sa-4.0", "gpl-3.0"], "gpl-3.0", []),
    (["llama3", "apache-2.0"], "llama3", ["terms of use of llama3"]),
    (["gemma", "gemma"], "gemma", ["terms of use of gemma"]),
    # No one licence, but nothing forbids the whole.
    (["llama3", "gemma"], None, ["no one licence covers llama3, gemma"]),
    (["llama3", "cc-by-nc-4.0"], None, ["no one licence covers", "no commercial use"]),
    # Conflicts.
    (["gpl-2.0", "apache-2.0"], None, ["'p0' (gpl-2.0) and 'p1' (apache-2.0) cannot"]),
    (["gpl-2.0", "gpl-3.0"], None, ["cannot be handed on together"]),
    (["gpl-3.0", "llama3"], None, ["cannot be handed on together"]),
    (["cc-by-sa-4.0", "cc-by-nc-4.0"], None, ["cc-by-sa-4.0 allows no other terms"]),
    (["cc-by-nd-4.0"], None, ["'p0' is cc-by-nd-4.0, which lets no changed version"]),
    (["mit", "cc-by-nc-nd-4.0"], None, ["'p1' is cc-by-nc-nd-4.0"]),
    # What nobody knows.
    (["mit", None], None, ["no licence is stated by 'p1'"]),
    ([None] * 7, None, ["'p0', 'p1', 'p2', 'p3', 'p4' and 2 more"]),
    (["other", "other"], None, ["'p0' (other), 'p1' (other)"]),
    (["my-own-1.0", "my-own-1.0"], "my-own-1.0", []),
    (["my-own-1.0", "mit"], None, ["'p0' (my-own-1.0)"]),
    ([None, "cc-by-nc-nd-4.0"], None, ["no licence is stated", "'p1' is cc-by-nc-nd-4.0"]),
    ([None, "cc-by-nc-4.0"], None, ["no licence is stated", "'p1' (cc-by-nc-4.0): no commercial"]),
]


@pytest.mark.parametrize(("parents", "whole", "said"), CASES)
def test_combined_licences(parents: list[str | None], whole: str | None, said: list[str]) -> None:
    found = combine(of(*parents))
    assert found.license == whole
    text = "\n".join(found.conflicts + found.notices)
    for words in said:
        assert words in text
    if not said:
        assert text == "" or whole in text
    assert bool(found.conflicts) == ("cannot" in text or "no changed version" in text)


@given(st.lists(st.sampled_from([*known(), None, "other", "strange"]), min_size=1, max_size=4))
def test_what_is_combined_is_allowed(parents: list[str | None]) -> None:
    found = combine(of(*parents))
    if found.license is not None:
        assert forbidding(found.license, of(*parents)) == ()
        assert found.conflicts == ()
    if len(parents) <= 3:
        for order in permutations(parents):
            assert combine(of(*order)).license == found.license


def test_the_table_is_whole() -> None:
    for one in known().values():
        assert one.asks <= {"notice", "changes", "noncommercial"}
        assert one.own in {None, "share-alike", "terms"}
        assert one.into | one.refuses <= set(known())
        assert find(one.id.upper()) == one
        assert allows(one, one) is not one.unchanged
    # The Hub's own names; https://huggingface.co/docs/hub/repositories-licenses
    for name in ("openrail", "creativeml-openrail-m", "llama2", "llama3.3", "gemma", "wtfpl"):
        assert find(name)


FORBIDDEN = [
    ("mit", ["cc-by-nc-4.0"], "'p0' is cc-by-nc-4.0, which allows no commercial use"),
    ("mit", ["apache-2.0"], "which asks for more than mit"),
    ("apache-2.0", ["gpl-3.0", "mit"], "'p0' is gpl-3.0, which results must keep"),
    ("apache-2.0", ["llama3"], "whose terms of use results must pass on"),
    ("gpl-2.0", ["apache-2.0"], "which gpl-2.0 refuses"),
    ("mit", ["cc-by-nd-4.0"], "lets no changed version"),
]


@pytest.mark.parametrize(("stated", "parents", "why"), FORBIDDEN)
def test_forbidden_statements(stated: str, parents: list[str], why: str) -> None:
    (reason,) = forbidding(stated, of(*parents))
    assert why in reason


def test_nobody_forbids_what_is_not_known() -> None:
    assert forbidding("other", of("gpl-3.0")) == ()
    assert forbidding("mit", of(None, "strange")) == ()


# --- where they are stated ---


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        for i, text in enumerate(("mit", "apache-2.0", "cc-by-nc-4.0", "gpl-3.0", None)):
            folder = write_adapter(tmp_path / str(text), MODULES, seed=i)
            if text:
                (folder / "README.md").write_text(f"---\nlicense: {text}\n---\n")
            (pulled,) = opened.pull([str(folder)])
            assert pulled.error is None
        yield opened


def merge(workspace: Workspace, *names: str) -> Path:
    sources = [{"adapter": n} for n in names]
    body = {"method": "cat", "sources": sources, "output": {"name": "both"}}
    return workspace.merge(make_recipe(body)).adapter.origin.folder


def test_plan_record_and_card_state_it(workspace: Workspace) -> None:
    folder = merge(workspace, "mit", "apache-2.0")
    record = Record.read(folder)
    assert record is not None
    assert record.license == "apache-2.0"
    assert json.loads((folder / "lorahub.json").read_text())["license"] == "apache-2.0"
    assert any("notices of mit" in note for note in record.notes)
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0\n" in card
    assert "keep the notices of mit" in card


def test_a_conflict_is_named_by_the_plan(workspace: Workspace) -> None:
    sources = [{"adapter": "gpl-3.0"}, {"adapter": "cc-by-nc-4.0"}]
    plan = workspace.plan(make_recipe({"method": "cat", "sources": sources}))
    assert plan.license is None
    assert any("'gpl-3.0' (gpl-3.0) and 'cc-by-nc-4.0'" in w for w in plan.warnings)
    assert "license:" not in (merge(workspace, "gpl-3.0", "cc-by-nc-4.0") / "README.md").read_text()


def test_a_silent_parent_is_said(workspace: Workspace) -> None:
    sources = [{"adapter": "mit"}, {"adapter": "None"}]
    plan = workspace.plan(make_recipe({"method": "cat", "sources": sources}))
    assert plan.license is None
    assert plan.warnings == ("no licence is stated by 'None': nobody knows what it allows",)


def test_a_push_that_states_what_parents_forbid_stops(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    card = merge(workspace, "mit", "cc-by-nc-4.0") / "README.md"
    good = card.read_text()
    card.write_text(good.replace("license: cc-by-nc-4.0", "license: mit"))
    with pytest.raises(LicenseError, match="which allows no commercial use") as found:
        workspace.push("both", "ann/both")
    assert "state cc-by-nc-4.0" in str(found.value.hint)
    assert list(hub.log) == []
    card.write_text(good)
    assert workspace.push("both", "ann/both").changed
