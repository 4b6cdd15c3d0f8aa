"""Rank allocation against literal scans, brute force, and its laws."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorahub.errors import InvalidRecipeError
from lorahub.kernels.allocation import (
    Rule,
    allocate,
    allocate_dense,
    lrc_report,
    parse_budget,
)

Spectrum = NDArray[np.float64]
GREEDY: tuple[Rule, ...] = ("welore", "energy", "relative")
RULES: tuple[Rule, ...] = (*GREEDY, "uniform")

values = st.floats(1e-6, 1e6)


def spectrum(entries: list[float]) -> Spectrum:
    return np.sort(np.asarray(entries, dtype=np.float64))[::-1]


def modules(
    entries: st.SearchStrategy[float] = values, most: int = 5, largest: int = 6
) -> st.SearchStrategy[tuple[list[Spectrum], list[int]]]:
    one = st.tuples(
        st.lists(entries, max_size=largest).map(spectrum), st.integers(1, 50), st.integers(0, 2)
    ).map(lambda m: (np.append(m[0], np.zeros(m[2])), m[1]))
    return st.lists(one, min_size=1, max_size=most).map(
        lambda found: ([s for s, _ in found], [w for _, w in found])
    )


def nonzero(spectra: list[Spectrum]) -> list[int]:
    return [int((s > 0).sum()) for s in spectra]


def cost(ranks: Any, widths: list[int]) -> int:
    return sum(r * w for r, w in zip(ranks, widths))


def lost(spectra: list[Spectrum], ranks: Any) -> float:
    return float(sum((s[r:] ** 2).sum() for s, r in zip(spectra, ranks)))


def smallest_budget(spectra: list[Spectrum], widths: list[int]) -> int:
    return cost([min(n, 1) for n in nonzero(spectra)], widths)


def kept_at(spectra: list[Spectrum], threshold: float) -> tuple[int, ...]:
    """The paper's definition, literally: how many normalised values reach the threshold."""
    return tuple(int((s / s[0] >= threshold).sum()) if len(s) and s[0] else 0 for s in spectra)


@given(modules(), st.integers(1, 200))
def test_welore_equals_the_scan_of_step_0_005(
    given_modules: tuple[list[Spectrum], list[int]], step: int
) -> None:
    spectra, widths = given_modules
    ranks = kept_at(spectra, step * 0.005)
    assert allocate(spectra, widths, cost(ranks, widths), "welore") == ranks


@given(modules(), st.integers(0, 1000))
def test_welore_is_at_least_the_scan_and_within_its_last_step(
    given_modules: tuple[list[Spectrum], list[int]], extra: int
) -> None:
    spectra, widths = given_modules
    budget = smallest_budget(spectra, widths) + extra
    ranks = allocate(spectra, widths, budget, "welore")
    scan = [kept_at(spectra, step * 0.005) for step in range(200, 0, -1)]
    fits = [found for found in scan if cost(found, widths) <= budget]
    fails = [found for found in scan if cost(found, widths) > budget]
    if fits:
        assert all(r >= s for r, s in zip(ranks, fits[-1]))
    if fails:
        assert all(r <= s for r, s in zip(ranks, fails[0]))


@given(modules(), st.integers(0, 1000), st.sampled_from(GREEDY))
def test_greedy_rules_keep_the_highest_priorities(
    given_modules: tuple[list[Spectrum], list[int]], extra: int, rule: Rule
) -> None:
    """A slow literal transcription: one rank at a time, the best first, until one does not fit."""
    spectra, widths = given_modules
    budget = smallest_budget(spectra, widths) + extra
    sizes = nonzero(spectra)
    largest = max((s[0] for s in spectra if len(s)), default=1.0)

    def priority(i: int, r: int) -> float:
        s = spectra[i]
        own = s[: sizes[i]] / s[0]
        return {
            "welore": s[r] / s[0],
            "energy": (s[r] / largest) ** 2 / widths[i],
            "relative": own[r] ** 2 / ((own**2).sum() * widths[i]),
        }[rule]

    ranks = [min(n, 1) for n in sizes]
    while any(r < n for r, n in zip(ranks, sizes)):
        open_ranks = [i for i in range(len(ranks)) if ranks[i] < sizes[i]]
        best = min(
            open_ranks,
            key=lambda i: (-priority(i, ranks[i]), ranks[i], -spectra[i][ranks[i]], i),
        )
        if cost(ranks, widths) + widths[best] > budget:
            break
        ranks[best] += 1
    assert allocate(spectra, widths, budget, rule) == tuple(ranks)


@given(modules(most=3, largest=4), st.integers(0, 300))
def test_energy_is_the_optimum_of_brute_force(
    given_modules: tuple[list[Spectrum], list[int]], extra: int
) -> None:
    spectra, widths = given_modules
    budget = smallest_budget(spectra, widths) + extra
    ranks = allocate(spectra, widths, budget, "energy")
    every = itertools.product(*(range(min(n, 1), n + 1) for n in nonzero(spectra)))
    spent = cost(ranks, widths)
    best = min(lost(spectra, other) for other in every if cost(other, widths) <= spent)
    assert lost(spectra, ranks) <= best * (1 + 1e-9)


@given(modules(most=3, largest=4), st.integers(1, 9), st.integers(0, 20))
def test_energy_is_the_optimum_of_the_whole_budget_at_equal_widths(
    given_modules: tuple[list[Spectrum], list[int]], width: int, extra: int
) -> None:
    spectra, widths = given_modules[0], [width] * len(given_modules[0])
    budget = smallest_budget(spectra, widths) + extra
    every = itertools.product(*(range(min(n, 1), n + 1) for n in nonzero(spectra)))
    best = min(lost(spectra, other) for other in every if cost(other, widths) <= budget)
    assert lost(spectra, allocate(spectra, widths, budget, "energy")) <= best * (1 + 1e-9)


@given(modules(), st.integers(0, 1000), st.sampled_from(RULES), st.sampled_from([0, 1]))
def test_budgets_are_met_within_one_rank(
    given_modules: tuple[list[Spectrum], list[int]], extra: int, rule: Rule, floor: int
) -> None:
    spectra, widths = given_modules
    budget = extra + floor * smallest_budget(spectra, widths)
    ranks = allocate(spectra, widths, budget, rule, floor=floor)
    full = nonzero(spectra)
    assert cost(ranks, widths) <= budget
    assert all(min(n, floor) <= r <= n for r, n in zip(ranks, full))
    missing = [w for r, n, w in zip(ranks, full, widths) if r < n]
    if missing:
        one = sum(missing) if rule == "uniform" else max(missing)
        assert budget - cost(ranks, widths) < one
    if rule == "uniform":
        assert all(r == min(n, max(ranks)) for r, n in zip(ranks, full))


@given(
    modules(st.sampled_from([0.25, 0.5, 1.0, 2.0])), st.integers(0, 500), st.integers(0, 99),
    st.sampled_from(RULES), st.sampled_from([0, 1]),
)  # fmt: skip
def test_a_larger_budget_takes_no_rank_away(
    given_modules: tuple[list[Spectrum], list[int]], extra: int, more: int, rule: Rule, floor: int
) -> None:
    spectra, widths = given_modules
    budget = extra + floor * smallest_budget(spectra, widths)
    less = allocate(spectra, widths, budget, rule, floor=floor)
    greater = allocate(spectra, widths, budget + more, rule, floor=floor)
    assert all(a <= b for a, b in zip(less, greater))


@given(st.data(), st.sampled_from(RULES), st.sampled_from([0, 1]))
def test_the_order_of_modules_does_not_matter(data: st.DataObject, rule: Rule, floor: int) -> None:
    # Distinct values everywhere: equal modules can only be told apart by their place.
    entries = data.draw(st.lists(values, min_size=1, max_size=20, unique=True))
    count = data.draw(st.integers(1, 5))
    spectra = [spectrum(entries[i::count]) for i in range(count)]
    widths = data.draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    budget = data.draw(st.integers(0, 500)) + floor * smallest_budget(spectra, widths)
    order = data.draw(st.permutations(range(count)))
    ranks = allocate(spectra, widths, budget, rule, floor=floor)
    moved = allocate([spectra[i] for i in order], [widths[i] for i in order], budget, rule,
                     floor=floor)  # fmt: skip
    assert moved == tuple(ranks[i] for i in order)


@given(modules(), st.integers(0, 1000), st.sampled_from(["welore", "relative"]), st.data())
def test_the_norm_of_a_module_does_not_matter_to_normalised_rules(
    given_modules: tuple[list[Spectrum], list[int]], extra: int, rule: Rule, data: st.DataObject
) -> None:
    spectra, widths = [np.unique(s)[::-1] for s in given_modules[0]], given_modules[1]
    # Powers of two, so that scaling rounds nothing; the first module's ranks are compared, for
    # which no tie with another is broken by the absolute value.
    spectra, widths = spectra[:1], widths[:1]
    scale = 2.0 ** data.draw(st.integers(-40, 40))
    budget = smallest_budget(spectra, widths) + extra
    assert allocate(spectra, widths, budget, rule) == allocate(
        [s * scale for s in spectra], widths, budget, rule
    )


def test_relative_protects_a_module_of_small_norm() -> None:
    spectra = [spectrum([100, 90, 80, 70]), spectrum([0.1, 0.09, 0.08, 0.07])]
    assert allocate(spectra, [1, 1], 4, "energy") == (3, 1)
    assert allocate(spectra, [1, 1], 4, "relative") == (2, 2)
    assert allocate(spectra, [1, 1], 4, "energy", floor=0) == (4, 0)


@pytest.mark.parametrize("rule", RULES)
def test_zero_spectra_get_no_rank_and_cost_nothing(rule: Rule) -> None:
    zero, empty = np.zeros(4), np.zeros(0)
    assert allocate([zero, empty], [10, 10], 0, rule) == (0, 0)
    assert allocate([zero, spectrum([2, 1]), empty], [10, 3, 10], 6, rule) == (0, 2, 0)
    assert allocate([], [], 5, rule) == ()


@pytest.mark.parametrize("rule", RULES)
def test_a_floor_that_does_not_fit_says_the_smallest_budget(rule: Rule) -> None:
    spectra = [spectrum([2, 1]), np.zeros(2), spectrum([1])]
    with pytest.raises(InvalidRecipeError, match=r"budget of 29 parameters.*takes 30") as caught:
        allocate(spectra, [10, 99, 20], 29, rule)
    assert "at least 30" in str(caught.value.hint)
    assert allocate(spectra, [10, 99, 20], 30, rule) == (1, 0, 1)
    with pytest.raises(InvalidRecipeError):
        allocate(spectra, [10, 99, 20], -1, rule, floor=0)


def test_without_a_floor_the_stronger_module_comes_first() -> None:
    # Both have a normalised first value of 1; only the norm tells them apart.
    spectra = [spectrum([1, 0.5]), spectrum([8, 0.1])]
    assert allocate(spectra, [5, 5], 5, "welore", floor=0) == (0, 1)
    assert allocate(spectra, [5, 5], 4, "welore", floor=0) == (0, 0)


def test_ties_go_to_lower_ranks_then_to_earlier_modules() -> None:
    flat = [spectrum([1, 1, 1])] * 3
    for rule in GREEDY:
        assert allocate(flat, [2, 2, 2], 10, rule) == (2, 2, 1)
    # Both offer 0.5 of their largest next: the lower rank goes before the larger value.
    spectra = [spectrum([8, 6, 4]), spectrum([1, 0.5])]
    assert allocate(spectra, [1, 1], 4, "welore") == (2, 2)


@pytest.mark.parametrize("rule", RULES)
def test_extreme_magnitudes_do_not_overflow(rule: Rule) -> None:
    spectra = [spectrum([1e200, 1e199]), spectrum([1e-200, 1e-201])]
    assert allocate(spectra, [1, 1], 4, rule) == (2, 2)
    assert allocate(spectra, [1, 1], 10**60, rule) == (2, 2)
    assert sum(allocate(spectra, [1, 1], 3, rule)) == (2 if rule == "uniform" else 3)


def test_a_module_that_is_not_of_low_rank_keeps_all_its_ranks() -> None:
    # 4 x 4: break-even at rank 2. The flat one reaches it before the steep one's second rank.
    spectra = [spectrum([1, 0.9, 0.8, 0.7]), spectrum([1, 0.1, 0.1, 0.1])]
    widths, areas = [8, 8], [16, 16]
    assert allocate(spectra, widths, 24, "welore") == (2, 1)
    assert allocate(spectra, widths, 40, "welore", areas=areas) == (4, 1)
    # Whole or not at all: all four ranks of the first do not fit.
    assert allocate(spectra, widths, 39, "welore", areas=areas) == (1, 1)
    assert allocate(spectra, widths, 64, "welore", areas=areas) == (4, 4)


@given(
    modules(), st.lists(st.integers(1, 200), min_size=5, max_size=5), st.integers(0, 1000),
    st.integers(0, 99),
)  # fmt: skip
def test_modules_that_are_not_of_low_rank_are_whole_and_counted(
    given_modules: tuple[list[Spectrum], list[int]], areas: list[int], extra: int, more: int
) -> None:
    spectra, widths = given_modules
    areas = areas[: len(spectra)]
    whole = allocate(spectra, widths, 10**9, "welore", areas=areas)
    assert list(whole) == nonzero(spectra)
    budget = cost(whole, widths) - extra
    try:
        ranks = allocate(spectra, widths, budget, "welore", areas=areas)
    except InvalidRecipeError:
        return
    assert cost(ranks, widths) <= budget
    for r, n, w, area in zip(ranks, whole, widths, areas):
        assert r == n or r * w < area
    greater = allocate(spectra, widths, budget + more, "welore", areas=areas)
    assert all(a <= b for a, b in zip(ranks, greater))


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
            lambda shape: st.tuples(
                st.just(shape),
                st.lists(values, min_size=min(shape), max_size=min(shape)).map(spectrum),
            )
        ),
        min_size=1, max_size=5,
    ),
    st.floats(0, 1),
)  # fmt: skip
def test_whole_weights_meet_the_reduction_within_one_rank(
    weights: list[tuple[tuple[int, int], Spectrum]], share: float
) -> None:
    shapes, spectra = [shape for shape, _ in weights], [s for _, s in weights]
    budget = int(share * sum(a * b for a, b in shapes))

    def stored(ranks: Any) -> int:
        return sum(min(r * (a + b), a * b) for r, (a, b) in zip(ranks, shapes))

    smallest = stored([1] * len(shapes))
    if budget < smallest:
        with pytest.raises(InvalidRecipeError, match=f"takes {smallest}"):
            allocate_dense(spectra, shapes, budget)
        return
    ranks = allocate_dense(spectra, shapes, budget)
    assert stored(ranks) <= budget
    report = lrc_report([str(i) for i in range(len(shapes))], spectra, shapes, ranks)
    lrc = [m for m in report if m.lrc]
    assert all(m.rank == m.full_rank for m in report if not m.lrc)
    if lrc and any(m.rank < m.full_rank for m in lrc):
        assert budget - stored(ranks) < max(a + b for a, b in shapes)
    # The paper's search, literally: every threshold of its grid whose cost is the budget agrees.
    for step in range(1, 201):
        thresholded = kept_at(spectra, step * 0.005)
        if stored(thresholded) >= smallest:
            found = allocate_dense(spectra, shapes, stored(thresholded))
            for f, t, (a, b), s in zip(found, thresholded, shapes, spectra):
                assert f == (t if t * (a + b) < a * b else len(s))


def test_report_says_rank_error_and_kind() -> None:
    spectra = [spectrum([4, 3, 0, 0]), spectrum([2, 1]), np.zeros(3)]
    (even,) = lrc_report(["even"], [spectrum([2, 1])], [(2, 2)], [1])
    assert not even.lrc
    report = lrc_report(["a", "b", "c"], spectra, [(4, 5), (2, 2), (3, 3)], [1, 2, 0])
    assert [(m.name, m.rank, m.full_rank, m.lrc) for m in report] == [
        ("a", 1, 4, True), ("b", 2, 2, False), ("c", 0, 3, True)
    ]  # fmt: skip
    assert [m.error for m in report] == [pytest.approx(0.6), 0.0, 0.0]


BUDGETS = {
    "2000000": 2_000_000, "2_000_000": 2_000_000, "2e6": 2_000_000, "2M params": 2_000_000,
    "2 m parameters": 2_000_000, "1.5k params": 1500, "7B params": 7 * 10**9, "9 params": 9,
    "40MB": 20_000_000, "40 mb": 20_000_000, "512KiB": 262_144, "1.5 GiB": 805_306_368,
    "9 bytes": 4, "rank 8": 8 * 3000, "Rank 7.5": 22_500, "rank8": 24_000,
    "30%": 70_000, "12.5 %": 87_500, "0%": 100_000, 2_000_000: 2_000_000, 1e6: 1_000_000,
    "9e60": 9 * 10**60,
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BUDGETS.items())
def test_budgets_as_users_write_them(text: str | float, expected: int) -> None:
    found = parse_budget(text, parameters_full=100_000, bytes_per_value=2, width_total=3000)
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    "text",
    ["", "much", "-5", "2M", "5B", "40 MB extra", "rank", "rank -1", "rank 8%", "rank 8 MB",
     "1.5", 0.3, float("nan"), float("inf"), True, "8 rank", "1,5 MB", "2 000", "MB",
     "30% params", "9" * 50, "1e999", None],
)  # fmt: skip
def test_a_budget_that_cannot_be_read_is_quoted(text: Any) -> None:
    with pytest.raises(InvalidRecipeError, match=r"cannot be read") as caught:
        parse_budget(text, parameters_full=100_000, bytes_per_value=2, width_total=3000)
    assert f"'{text}'" in caught.value.message


@pytest.mark.parametrize("text", ["0", "1 bytes", "rank 0", "0 MB", "99.9999999%", "100%", "130%"])
def test_a_budget_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidRecipeError, match=f"'{text}' leaves no parameter"):
        parse_budget(text, parameters_full=100_000, bytes_per_value=2, width_total=3000)


def test_allocation_needs_no_torch() -> None:
    code = "import lorahub.kernels.allocation, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
