"""Packing: the fewest bytes for an error, or the least error for a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorahub.adapter import AdapterInfo
from lorahub.errors import UnsupportedAdapterError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.packing import baselines, shards, waterfill
from lorahub.packing.container import Section, assemble, write_file
from lorahub.packing.gauge import read_deltas
from lorahub.packing.info import PackInfo
from lorahub.packing.joint import (
    Member,
    choose,
    decode_public,
    encode_next,
    encode_public,
    used,
)
from lorahub.packing.members import plain_fields, public_fields, waterfill_fields
from lorahub.packing.model import smallest_step
from lorahub.packing.pools import PUBLIC, Pool
from lorahub.packing.read import read_info
from lorahub.packing.search import search
from lorahub.packing.source import BYTES_SLOPE, ERROR_SLOPE, EXACT, Source, relative

BF16_BYTES = 2
"""Ratios count an adapter as its parameters in bfloat16, whatever it is stored in."""

_USELESS = 0.999
"""An error this near to 1 means that nothing of the adapter is left."""

_GAP = 0.03  # logarithm of a budget's unused part that is worth a second search
_EXPECTED = 5  # encodings until the step is found


@dataclass(frozen=True, slots=True)
class PackInput:
    """An adapter to pack.

    Attributes:
        name: Its name in the pack, unique there.
        folder: Where its files are.
        info: What inspection told of them.
    """

    name: str
    folder: Path
    info: AdapterInfo


def pack(
    adapters: Sequence[PackInput],
    out: Path,
    *,
    ratio: float | None = None,
    bytes_budget: int | None = None,
    error: float | None = None,
    protect: bool = False,
    replace: bool = False,
    listener: Listener = ignore,
) -> PackInfo:
    """Write adapters into one pack file.

    Without a target nothing is lost: equal tensors and shards are stored once, all else as it
    is. With one, what loses nothing is still taken where it meets the target.

    Args:
        adapters: What to pack, in the order that predictions follow (oldest first is best).
        out: The file to write.
        ratio: How many times smaller than the adapters' parameters in bfloat16 the file must be.
        bytes_budget: Bytes that the file may have.
        error: Largest relative Frobenius error of any member, over all its modules.
        protect: Spread the error over modules of unequal norm.
        replace: Whether an existing file is replaced.
        listener: Receives the ``pack`` phase, one step per encoding tried.

    Raises:
        UsageError: No adapter, a name twice, more than one target, or one that cannot be met.
        UnsupportedAdapterError: An adapter that is not plain LoRA factors.
        InvalidAdapterError: A file that cannot be read, or values that are not finite.
        ConflictError: The file exists and may not be replaced.
        StorageError: The disk is full, read-only or failing.
    """
    _check(adapters, ratio, bytes_budget, error)
    parameters = sum(a.info.parameters for a in adapters)
    if ratio is not None:
        bytes_budget = max(1, int(parameters * BF16_BYTES / ratio))
    lossless = _lossless(adapters)
    enough = len(lossless) <= bytes_budget if bytes_budget is not None else error is None
    if enough:
        body = lossless
    else:
        coder = _Coder(adapters, protect, listener)
        lossy = coder.within(bytes_budget, error)
        if lossy is None and error is None:
            raise UsageError(
                f"{len(adapters)} adapters of {parameters} parameters do not fit into "
                f"{bytes_budget} bytes: nothing would be left of them",
                hint=f"without any values it takes {coder.least()} bytes",
            )
        body = lossless if lossy is None or len(lossless) <= len(lossy) else lossy
    write_file(out, body, replace=replace)
    return read_info(out)


def _check(
    adapters: Sequence[PackInput],
    ratio: float | None,
    bytes_budget: int | None,
    error: float | None,
) -> None:
    if not adapters:
        raise UsageError("there is nothing to pack", hint="name at least one adapter")
    names = [a.name for a in adapters]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two adapters are named '{name}'", hint="rename one of them")
    if sum(target is not None for target in (ratio, bytes_budget, error)) > 1:
        raise UsageError("ratio, bytes and error exclude each other", hint="give one of them")
    if ratio is not None and not 0 < ratio < math.inf:
        raise UsageError(
            f"ratio {ratio} is not a positive number",
            hint="give how many times smaller than in bfloat16: 8",
        )
    if bytes_budget is not None and bytes_budget < 1:
        raise UsageError(f"{bytes_budget} is no number of bytes", hint="give 1 or more: 40MB")
    if error is not None and not 0 < error < 1:
        raise UsageError(
            f"error {error} is not between 0 and 1", hint="give a relative error: 0.05"
        )
    for adapter in adapters:
        if adapter.info.refusals or not adapter.info.modules:
            reasons = "; ".join(r.message for r in adapter.info.refusals) or "it has no factors"
            raise UnsupportedAdapterError(
                f"'{adapter.name}' cannot be packed: {reasons}", hint="leave it out of the pack"
            )


def _describe(adapter: PackInput, layouts: list[list[list[Any]]]) -> dict[str, Any]:
    """Index fields that all members have; the layout is added to ``layouts`` where it is new."""
    info = adapter.info
    layout = [[m.name, m.kind.value, m.d_in, m.d_out] for m in info.modules]
    if layout not in layouts:
        layouts.append(layout)
    fields = {
        "name": adapter.name,
        "layout": layouts.index(layout),
        "parameters": info.parameters,
        "base_model": info.base_model,
        "task_type": info.task_type,
        "license": info.license,
        "fan_in_fan_out": bool(info.config.get("fan_in_fan_out")),
        "auto_mapping": info.config.get("auto_mapping"),
    }
    return {key: value for key, value in fields.items() if value is not None and value is not False}


def _lossless(adapters: Sequence[PackInput]) -> bytes:
    members = []
    for adapter in adapters:
        weights = adapter.folder / adapter.info.weights_file
        keys = [key for m in adapter.info.modules for key in (m.key_a, m.key_b)]
        members.append((adapter.info.modules, shards.read_tensors(weights, keys)))
    entries, sections = shards.store(members)
    layouts: list[list[list[Any]]] = []
    described = [
        _describe(a, layouts)
        | {
            "codec": "exact",
            "config": dict(a.info.config),
            "scalings": [m.scaling for m in a.info.modules],
            "tensors": e,
        }
        for a, e in zip(adapters, entries, strict=True)
    ]
    return assemble({"layouts": layouts, "members": described}, sections)


_Outcome = tuple[bytes, float] | None
"""A pack and the largest error in it; None where nothing was left of an adapter."""


class _Coder:
    """Codes a collection with loss, at any quantisation step."""

    def __init__(self, adapters: Sequence[PackInput], protect: bool, listener: Listener) -> None:
        self._adapters = adapters
        self._listener = listener
        self._tried = 0
        self._chosen = False
        self._first: dict[str, int] = {}
        self._sources: dict[int, Source] = {}
        for i, adapter in enumerate(adapters):
            info = adapter.info
            if self._first.setdefault(info.content_hash, i) == i:
                deltas = read_deltas(adapter.folder / info.weights_file, info.modules)
                self._sources[i] = Source(deltas, info.parameters, protect)

    def within(self, bytes_budget: int | None, error: float | None) -> bytes | None:
        """The best pack within the budget or error; None where no step keeps it.

        Every adapter first gets the step that it would have alone, for its share of the budget;
        then one factor on all steps is found, with what predictions save.
        """
        live = [s for s in self._sources.values() if s.energy > 0]
        if not live:
            return self._encode(1.0)[0]
        self._listener(PhaseStarted("pack", _EXPECTED, "encodings"))
        whole = sum(s.parameters for s in live)
        for source in live:
            share = bytes_budget and bytes_budget * source.parameters / whole
            source.settle(share, error, exactly=len(live) > 1)
        if len(live) > 1:
            self._encode(1.0)
            for source in live:
                source.rebalance()
        floor = max(smallest_step(s.deltas) / s.step for s in live)
        slope = BYTES_SLOPE if bytes_budget is not None else ERROR_SLOPE

        def measure(factor: float, share: float = 1.0) -> tuple[float, _Outcome]:
            body, worst = self._encode(factor, share)
            outcome = (body, worst) if worst < _USELESS else None
            if bytes_budget is not None:
                return math.log(len(body) / bytes_budget), outcome
            return math.log(max(worst, EXACT) / (error or 1.0)), outcome

        found = search(measure, slope=slope, floor=floor)
        outcomes = [found.best] if found.best else []
        generous = found.outside if bytes_budget is not None else found.inside
        if found.slack > _GAP and generous is not None:
            # Ranks of one size go under the water together. Between all and none of them the step
            # stays, and only a share of the ranks is kept.
            sign = math.copysign(1.0, slope)
            fewer = search(lambda f: measure(generous, 1 / f), slope=sign, floor=1.0)
            outcomes += [fewer.best] if fewer.best else []
        if bytes_budget is not None:
            if found.slack > _GAP and found.best and found.outside is None:
                outcomes += self._finer(found.inside or floor, bytes_budget, len(found.best[0]))
            return min(outcomes, key=lambda o: o[1])[0] if outcomes else None
        return min((body for body, _ in outcomes), key=len, default=None)

    def _finer(self, factor: float, budget: int, spent: int) -> list[tuple[bytes, float]]:
        """A pack that spends, on fine integers, what the finest tables leave of a budget."""
        spare = budget - spent
        for _ in range(_EXPECTED):
            body, worst = self._encode(factor, spare=spare)
            if len(body) <= budget:
                return [(body, worst)]
            spare -= len(body) - budget
        return []

    def least(self) -> int:
        """Bytes of a pack that keeps nothing."""
        return len(self._encode(1e9)[0])

    def _public_keys(self) -> list[tuple[str, int, int]]:
        return sorted({
            (d.name, d.rows.shape[1], d.columns.shape[1])
            for source in self._sources.values()
            for d, flag in zip(source.deltas, source.flags, strict=True)
            if flag & PUBLIC
        })  # fmt: skip

    def _encode(self, factor: float, share: float = 1.0, spare: int = 0) -> tuple[bytes, float]:
        """The pack with all steps times ``factor``, and the largest error of its members.

        Of the ranks that are worth their bits, ``share`` are kept; ``spare`` bytes are there for
        fine integers where these do better.
        """
        whole = sum(source.parameters for source in self._sources.values())
        members = {i: source.at(factor) for i, source in self._sources.items()}
        if not self._chosen:
            flags = choose(list(members.values()))
            for source, each in zip(self._sources.values(), flags, strict=True):
                source.flags = each
            self._chosen = True
        layouts: list[list[list[Any]]] = []
        described: list[dict[str, Any]] = []
        sections: list[Section] = []
        index: dict[str, Any] = {"layouts": layouts, "members": described}
        pool, charge = Pool(), 0
        public = self._public_keys()
        if public:
            rows, _ = encode_public(list(members.values()), public)
            index["public"], data = public_fields(rows)
            sections.append(Section("public", "U8", (len(data),), data))
            pool, charge = Pool(decode_public(rows)), len(data) // len(members)
        worst = 0.0
        for i, adapter in enumerate(self._adapters):
            fields = _describe(adapter, layouts)
            first = self._first[adapter.info.content_hash]
            if first != i:
                described.append(fields | {"codec": "same", "as": first})
                continue
            source = self._sources[i]
            part = spare * source.parameters // whole
            more, data = _member(source, members[i], share, pool, charge, part)
            sections.append(Section(f"member.{i}", "U8", (len(data),), data))
            described.append(fields | more)
            source.reached = more["error"]
            worst = max(worst, more["error"])
        body = assemble(index, sections)
        self._tried += 1
        self._listener(Advanced("pack", self._tried, f"{len(body)} bytes, error {worst:.4f}"))
        return body, worst


def _member(
    source: Source, member: Member, share: float, pool: Pool, charge: int, spare: int
) -> tuple[dict[str, Any], bytes]:
    """Index fields and data of one adapter: water-filled, unless a baseline does better.

    The baselines get the bytes that water-filling took, ``charge`` for its part of the public
    rows included; the table of all is kept. Fine integers get ``spare`` more, if there are any.
    """
    deltas = source.deltas
    encoding = encode_next(pool, member, source.flags, share)
    fields, data = waterfill_fields(encoding.coded, used(pool, member.keys, source.flags))
    budget = len(data) + charge
    errors = encoding.errors
    best = relative(errors.sum(), source.energy)
    table = [["waterfill", budget, best]]
    choices = [(name, bits, budget) for name, bits in baselines.CHOICES.items()]
    if spare > 0:
        choices.append(("fine integers", baselines.FINE, budget + spare))
    for name, bits, most in choices:
        plain, factors = baselines.encode(deltas, bits, most)
        left = np.array(
            [waterfill.squared_error(d, f) for d, f in zip(deltas, factors, strict=True)]
        )
        found = relative(left.sum(), source.energy)
        other, numbers = plain_fields(plain, name)
        table.append([name, len(numbers), found])
        if found < best:
            best, errors, fields, data = found, left, other, numbers
    if fields["codec"] == "waterfill":
        pool.add(member.keys, encoding.factors)
    each = [relative(e, d.energy) for e, d in zip(errors, deltas, strict=True)]
    at = max(range(len(each)), key=each.__getitem__)
    return fields | {"error": best, "worst": [at, each[at]], "table": table}, data
