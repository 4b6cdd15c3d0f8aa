"""Regular expressions in configs: read as PEFT reads them, and never able to hang an inspection."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorahub import formats
from lorahub.formats import expressions
from lorahub.formats.expressions import Allowance, Expression
from lorahub.formats.peft_config import Pattern
from tests.conftest import write_adapter

LONG = "x." + "a" * 3000 + "b"
HOSTILE = ["a?" * 40 + "a" * 40, "(a|aa){40}", ".*a" * 7, "(a|aa)+c", "((a{1,99}){1,99}){1,99}c"]
SLOW = "(a|aa){40}"  # exponential on LONG, whatever the library does to avoid it


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern", "target_modules"])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_expression_hangs_an_inspection(tmp_path: Path, text: str, field: str) -> None:
    value: object = text if field == "target_modules" else {text: 3}
    folder = write_adapter(tmp_path / "a", {LONG: (5, 6, 3), "q": (5, 6, 3)}, config={field: value})
    code = "import sys; from pathlib import Path; from lorahub import formats as f\n"
    code += "f.expressions.SECONDS = 0.5; f.inspect(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, folder], check=True, timeout=60)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_key_that_takes_too_long_is_refused_by_name(
    tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressions, "SECONDS", 0.5)
    config = {field: {SLOW: 3, "q": 3}}
    info = formats.inspect(
        write_adapter(tmp_path / "a", {LONG: (5, 6, 3), "q": (5, 6, 3)}, config=config)
    )
    (refusal,) = info.refusals
    assert refusal.code == "pattern"
    assert field in refusal.message
    assert SLOW in refusal.message
    assert "too long" in refusal.message


def test_targets_that_take_too_long_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressions, "SECONDS", 0.5)
    config = {"target_modules": rf"x\.{SLOW}c"}
    info = formats.inspect(write_adapter(tmp_path / "a", {LONG: (5, 6, 3)}, config=config))
    (warning,) = info.warnings
    assert "target_modules" in warning
    assert "too long" in warning
    assert info.refusals == ()


def test_the_expressions_of_a_field_share_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "SECONDS", 0.5)
    keys = [f"{SLOW}{i}" for i in range(20)]
    pattern = Pattern({key: float(i) for i, key in enumerate([*keys, "q"])})
    assert pattern.value("x.q", -1) == 20
    assert pattern.unusable() == ()
    assert pattern.value(LONG, -1) == -1
    assert pattern.unusable() == tuple(keys)
    # Given up for good; plain keys need no time.
    assert pattern.value("x.aaa0", -1) == -1
    assert pattern.value("x.q", -1) == 20


def test_without_time_nothing_is_even_compiled() -> None:
    allowance = Allowance()
    allowance.left = 0
    assert not Expression("q", allowance).usable


def test_ordinary_expressions_cost_next_to_none_of_the_time() -> None:
    allowance = Allowance()
    expression = Expression(r"(.*\.)?(layers\.\d+\.(self_attn|mlp)\..*_proj)$", allowance)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(1000)]
    assert all(expression.match(name) for name in names)
    assert allowance.left > 0


@pytest.mark.parametrize(
    "text",
    [
        *("(", "*", "a**", "[", r"\p{L}", "(?R)", "(?r)a", "(?|a|b)", "(*FAIL)", "x(?i)"),
        *("a{e}", "(?:abc){i<=2}", "[[:alpha:]]", "a" * 2001, "(" * 900 + ")" * 900),
        "a{99999999999999999999}",
    ],
)
def test_what_re_reads_otherwise_or_not_at_all_is_unusable(text: str) -> None:
    expression = Expression(text, Allowance())
    assert not expression.usable
    assert not expression.match("a")
    assert not expression.fullmatch("a")


PIECE = st.sampled_from(
    [
        *("a", "b", "1", ".", r"\.", r"\d", r"\w", r"\W", "[ab]", "[^a]", "[a-b1]", "^", "$"),
        *("a*", "b+", "a?", ".*", ".+?", "a{2}", "a{1,}", "a{,2}", "b{0,1}?", "{", "a{", "{}"),
        *("|", "(a|b)", "(?:ab)*", "(a)*", "(?=a)", "(?!b)", "(?<=a)", r"\b", r"\Z", r"\A"),
        *("(?P<n>a)", r"(a)\1", "(?i:A)", "a*+", "(?>a|ab)", "[]a]", "[a", "]", ")", "(", r"\_"),
    ]
)


@settings(max_examples=1000, deadline=None)
@given(
    text=st.lists(PIECE, max_size=6).map("".join),
    name=st.text(alphabet="ab1.{}_", max_size=8),
    suffix=st.booleans(),
)
def test_every_usable_expression_matches_as_in_re(text: str, name: str, suffix: bool) -> None:
    text = rf"(.*\.)?({text})$" if suffix else text
    found = Expression(text, Allowance())
    assume(found.usable)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs: Any = re.compile(text)
    assert found.match(name) == (theirs.match(name) is not None)
    assert found.fullmatch(name) == (theirs.fullmatch(name) is not None)
    assert found.usable


def test_braces_that_are_quantifiers_or_escaped_are_read() -> None:
    for text, name in ((r"a{2}\{b\}", "aa{b}"), (re.escape("a{b}.q"), "a{b}.q")):
        assert Expression(text, Allowance()).fullmatch(name)


def test_a_config_is_kept_as_it_was(tmp_path: Path) -> None:
    config = {"target_modules": "(a|aa)+c", "alpha_pattern": {"q{e}": 4}}
    folder = write_adapter(tmp_path / "a", {"q": (5, 6, 3)}, config=config)
    info = formats.inspect(folder)
    assert info.config == json.loads((folder / "adapter_config.json").read_text())
    assert [r.code for r in info.refusals] == ["pattern"]
