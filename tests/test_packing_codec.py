"""The codec of packs, layer by layer: tables, trellis, entropy coder, water-filling, shards."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub.adapter import ModuleKind
from lorahub.packing import baselines, model, pools, rans, shards, trellis, waterfill
from lorahub.packing.gauge import Delta, delta_of
from lorahub.packing.tables import CLASS_OF_ONE, CLASSES, PRECISION, table


def random_delta(seed: int, d_out: int, d_in: int, rank: int, name: str = "m") -> Delta:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((rank, d_in)) / np.arange(1, rank + 1)[:, None]
    return delta_of(name, ModuleKind.LINEAR, A, rng.standard_normal((d_out, rank)))


def dense(delta: Delta) -> np.ndarray:
    return (delta.columns.T.astype(float) / delta.sigma) @ delta.rows.astype(float)


def dense_factors(factors: waterfill.Factors) -> np.ndarray:
    return (factors.columns.T * factors.scales) @ factors.rows


# --- tables ---


def test_tables_are_the_same_on_every_machine() -> None:
    whole = hashlib.sha256()
    for scale_class, quantiser in itertools.product(range(CLASSES), (0, 1)):
        whole.update(table(scale_class, quantiser).frequencies.astype("<u4").tobytes())
    assert whole.hexdigest() == "eefec3850a0edc53967de65d3a9e9ab11e40c7fd92ad8ec69f7375f4522c6d1b"


@pytest.mark.parametrize("scale_class", [0, 8, 16, 21, 27, 28, 40, 55])
@pytest.mark.parametrize("quantiser", [0, 1])
def test_a_table_is_the_gaussian_it_stands_for(scale_class: int, quantiser: int) -> None:
    found = table(scale_class, quantiser)
    assert found.frequencies.sum() == 1 << PRECISION
    assert found.frequencies.min() >= 1
    symbols = np.arange(-found.largest, found.largest + 1)
    values = trellis.reconstruct(symbols, quantiser)
    borders = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    deviation = 2 ** ((scale_class - CLASS_OF_ONE) / 4)
    above = [math.erfc(b / deviation / 2**0.5) / 2 for b in borders]
    mass = -np.diff(above)
    entropy = -sum(m * math.log2(m) for m in mass if m > 0)
    assert mass @ found.bits[:-1] - entropy < max(0.003, 2 * found.largest / (1 << PRECISION))


# --- trellis and coder ---


def slow_quantisers(symbols: list[int]) -> list[int]:
    q: list[int] = []
    for n in range(len(symbols)):
        before = [q[n - 1] if n > 0 else 0, q[n - 3] if n > 2 else 0]
        parity = symbols[n - 2] & 1 if n > 1 else 0
        q.append(before[0] ^ before[1] ^ parity)
    return q


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 7), st.sampled_from([1, 9, 40])
)
def test_coded_values_come_back(seed: int, n: int, lanes: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, n).astype(np.uint8)
    values = (rng.standard_normal(n) * spread * 2.0 ** rng.integers(-3, 9, n)).astype(np.float32)
    symbols, quantisers = trellis.quantise(values, classes, lanes, 0.3)
    for lane in range(min(lanes, n)):
        assert slow_quantisers(symbols[lane::lanes].tolist()) == quantisers[lane::lanes].tolist()
    coded = rans.encode(symbols, classes, quantisers, lanes)
    decoded = rans.decode(coded, classes)
    assert (decoded == trellis.reconstruct(symbols, quantisers)).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_the_path_is_the_cheapest(seed: int, weight: float) -> None:
    """Against all parity sequences; of each, the best nearest point or zero at every value."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(7) * 3).astype(np.float32)
    classes = np.full(7, CLASS_OF_ONE + 6, np.uint8)
    symbols, quantisers = trellis.quantise(x, classes, 1, weight)

    def cost(value: float, symbol: int, quantiser: int) -> float:
        found = table(CLASS_OF_ONE + 6, quantiser)
        error = (value - trellis.reconstruct(np.array(symbol), quantiser)) ** 2
        return float(error + weight * found.bits[symbol + found.largest])

    def nearest(value: float, quantiser: int, parity: int) -> float:
        of_parity = [k for k in range(-9, 10) if k & 1 == parity]
        near = min(of_parity, key=lambda k: cost_free(value, k, quantiser))
        tried = [near] if parity else [near, 0]
        return min(cost(value, k, quantiser) for k in tried)

    def cost_free(value: float, symbol: int, quantiser: int) -> float:
        return float((value - trellis.reconstruct(np.array(symbol), quantiser)) ** 2)

    best = math.inf
    for parities in itertools.product((0, 1), repeat=7):
        path = slow_quantisers(list(parities))
        best = min(
            best, sum(nearest(float(v), q, p) for v, q, p in zip(x, path, parities, strict=True))
        )
    found = sum(
        cost(float(v), int(k), int(q)) for v, k, q in zip(x, symbols, quantisers, strict=True)
    )
    assert found == pytest.approx(best, rel=1e-5)


def test_it_beats_rounding_by_most_of_what_a_lattice_can() -> None:
    x = np.random.default_rng(0).standard_normal(40_000)
    deviation, scale_class = 8.0, CLASS_OF_ONE + 12
    classes = np.full(len(x), scale_class, np.uint8)
    symbols, quantisers = trellis.quantise((x * deviation).astype(np.float32), classes, 64, 0.33)
    bits = trellis.bits(symbols, classes, quantisers).mean()
    error = np.square(x - trellis.reconstruct(symbols, quantisers) / deviation).mean()
    # Distance from the rate-distortion curve; entropy-coded rounding has 1.53 dB at high rates.
    assert 10 * math.log10(error) + 20 * math.log10(2) * bits < 0.7


def test_damaged_streams_are_named() -> None:
    classes = np.full(500, 24, np.uint8)
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32) * 4
    symbols, quantisers = trellis.quantise(values, classes, 4, 0.3)
    coded = rans.encode(symbols, classes, quantisers, 4)
    short = rans.Coded(coded.states, coded.words[:-3], coded.escapes)
    with pytest.raises(rans.StreamError, match="too early"):
        rans.decode(short, classes)
    more = rans.Coded(coded.states, np.append(coded.words, np.uint16(7)), coded.escapes)
    with pytest.raises(rans.StreamError, match="does not end"):
        rans.decode(more, classes)
    escapes = rans.Coded(coded.states, coded.words, np.array([5], np.int32))
    with pytest.raises(rans.StreamError, match="escapes"):
        rans.decode(escapes, classes)


# --- the gauge and water-filling ---


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(7, 5, 3), (3, 9, 6), (40, 31, 1)])
def test_the_gauge_is_the_dense_svd(d_out: int, d_in: int, rank: int) -> None:
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((rank, d_in)), rng.standard_normal((d_out, rank))
    delta = delta_of("m", ModuleKind.LINEAR, A, B)
    kept = min(d_out, d_in, rank)
    assert np.allclose(delta.sigma, np.linalg.svd(B @ A)[1][:kept])
    assert np.abs(dense(delta) - B @ A).max() < 1e-6 * np.abs(B @ A).max()
    assert delta.energy == pytest.approx(np.square(B @ A).sum())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.02, 2.0), st.booleans())
def test_what_is_encoded_decodes_and_its_error_is_true(
    seed: int, rank: int, step: float, predicted: bool
) -> None:
    deltas = [random_delta(seed, 24, 17, rank), random_delta(seed + 1, 9, 30, rank)]
    bases: list[waterfill.Basis | None] = [None, None]
    if predicted:
        other = np.random.default_rng(seed)
        bases[0] = waterfill.Basis(pools.orthonormal(deltas[0].rows[:2].astype(float)), None)
        bases[1] = waterfill.Basis(None, pools.orthonormal(other.standard_normal((3, 9))))
    encoding = waterfill.encode(deltas, [step, step], bases)
    shapes = [(17, 24), (30, 9)]
    decoded = waterfill.decode(encoding.coded, shapes, bases)
    for delta, one, other_, error in zip(
        deltas, decoded, encoding.factors, encoding.errors, strict=True
    ):
        for a, b in (
            (one.rows, other_.rows),
            (one.columns, other_.columns),
            (one.scales, other_.scales),
        ):
            assert a.tobytes() == b.tobytes()
        true = np.square(dense(delta) - dense_factors(one)).sum()
        assert error == pytest.approx(true, rel=1e-4, abs=1e-9 * delta.energy)


def test_scales_are_the_least_squares_ones() -> None:
    delta = random_delta(3, 60, 50, 4)
    encoding = waterfill.encode([delta], [0.5], [None])
    module = encoding.factors[0]
    terms = np.stack(
        [np.outer(u, v).ravel() for u, v in zip(module.columns, module.rows, strict=True)]
    )
    exact = np.linalg.lstsq(terms.T, dense(delta).ravel(), rcond=None)[0]
    assert np.allclose(module.scales, exact, rtol=1e-3)  # stored in float16


def test_an_odd_symbol_never_becomes_an_escape() -> None:
    """A smaller class, chosen afterwards for fewer bits, must still have the odd symbols."""
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(60):  # one value of each row lies far out
        deviation = 2 ** rng.uniform(-2, 0)
        rows.append(deviation * np.append(rng.standard_normal(895), rng.uniform(5, 9)))
    stream, decoded, _ = waterfill.code_rows(rows)
    again = waterfill.read_rows(stream, [896] * 60)
    assert all((a == b).all() for a, b in zip(again, decoded, strict=True))


def test_rows_may_span_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(n) * 3 for n in (700, 5, 2100, 1)]
    monkeypatch.setattr(waterfill, "BLOCK", 1000)
    stream, decoded, bits = waterfill.code_rows(rows)
    assert len(stream.blocks) == 3
    again = waterfill.read_rows(stream, [len(r) for r in rows])
    assert all((a == b).all() for a, b in zip(again, decoded, strict=True))
    stored = sum(16 * len(b.words) + 32 * len(b.states) for b in stream.blocks)
    assert 0 < stored - bits.sum() < 3 * 16 * 32  # the states of three blocks
    with pytest.raises(rans.StreamError, match="3 blocks are stored, 1 are needed"):
        waterfill.read_rows(stream, [700, 5, 2, 1])


def test_a_smaller_step_costs_more_and_errs_less() -> None:
    deltas = [random_delta(i, 64, 96, 8) for i in range(4)]
    found = [waterfill.encode(deltas, [s] * 4, [None] * 4) for s in (0.1, 0.3, 1.0, 3.0)]
    sizes = [e.bits.sum() for e in found]
    errors = [e.errors.sum() for e in found]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_models_of_rate_and_error_are_near() -> None:
    deltas = [random_delta(i, 128, 192, 8) for i in range(4)]
    energy = sum(d.energy for d in deltas)
    step = model.step_for_error(deltas, 0.1)
    found = waterfill.encode(deltas, [step] * 4, [None] * 4)
    assert math.sqrt(found.errors.sum() / energy) == pytest.approx(0.1, rel=0.1)
    step = model.step_for_bits(deltas, 20_000)
    found = waterfill.encode(deltas, [step] * 4, [None] * 4)
    assert found.bits.sum() == pytest.approx(20_000, rel=0.15)


# --- baselines ---


@pytest.mark.parametrize("name", list(baselines.CHOICES))
@pytest.mark.parametrize("budget", [0, 300, 2000, 100_000])
def test_baselines_keep_the_budget_and_decode(name: str, budget: int) -> None:
    deltas = [random_delta(i, 30, 41, 4) for i in range(3)]
    plain, factors = baselines.encode(deltas, baselines.CHOICES[name], budget)
    assert len(plain.payload) + plain.scales.nbytes <= budget
    again = baselines.decode(plain, [(41, 30)] * 3)
    assert all(
        dense_factors(a).tobytes() == dense_factors(b).tobytes()
        for a, b in zip(again, factors, strict=True)
    )
    if budget == 100_000:
        left = sum(
            np.square(dense(d) - dense_factors(f)).sum()
            for d, f in zip(deltas, factors, strict=True)
        )
        floor = {"truncation": 1e-2, "mixed bits": 1e-2, "int8": 2e-2, "truncation+int4": 0.3}
        assert math.sqrt(left / sum(d.energy for d in deltas)) < floor[name]


# --- pools ---


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 12))
def test_gram_schmidt_spans_what_qr_spans(seed: int, rows: int, length: int) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, length))
    values[-1] = values[0]  # dependent where there are two or more
    basis = pools.orthonormal(values)
    assert len(basis) == np.linalg.matrix_rank(values)
    assert np.allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-9)
    assert np.allclose(values @ basis.T @ basis, values, atol=1e-9)


def test_the_paper_s_pools() -> None:
    """LLaMA-2-7B, all linear layers: 2,498,560 parameters per unit of e; 19.99 M at e = 8."""
    types = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    assert shards.pool_parameters(types, layers=32, equivalent_rank=1) == 2_498_560
    assert shards.pool_parameters(types, layers=32, equivalent_rank=8) == 19_988_480
