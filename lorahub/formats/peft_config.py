"""adapter_config.json of PEFT: reading it warily, what it says of scaling, and writing it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorahub.errors import InvalidAdapterError
from lorahub.formats.expressions import Allowance, Expression
from lorahub.formats.text import shown

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 16 << 20

_PLAIN_KEY = re.compile(r"[\w.-]+")


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """``adapter_config.json`` as found and its sha256 (hex); ({}, "") where there is none.

    Raises:
        InvalidAdapterError: The file is there but is no JSON object of sane size.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        return {}, ""
    try:
        if not path.is_file():  # a named pipe would block for ever
            raise InvalidAdapterError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidAdapterError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidAdapterError(
            f"{path}: is larger than {MAX_CONFIG_BYTES >> 20} MiB",
            hint="this is no adapter config; get a fresh copy",
        )
    if raw.startswith(b"version https://git-lfs"):
        raise InvalidAdapterError(
            f"{path}: is a git LFS pointer, not the file itself", hint="run `git lfs pull` there"
        )
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(
            f"{path}: is not JSON ({error})", hint="get a fresh copy, or save the adapter again"
        ) from error
    if not isinstance(config, dict):
        raise InvalidAdapterError(
            f"{path}: is not a JSON object", hint="get a fresh copy, or save the adapter again"
        )
    return config, hashlib.sha256(raw).hexdigest()


class LoraConfig:
    """The fields of a config that decide ranks and scalings, checked for their types.

    Attributes:
        rank: ``r``, PEFT's default where it is missing.
        alpha: ``lora_alpha``, PEFT's default where it is missing.
        rslora: Whether scaling is alpha / sqrt(rank).
        rank_pattern: Ranks of modules that differ.
        alpha_pattern: Alphas of modules that differ.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Read ``config``, which came from ``path``.

        Raises:
            InvalidAdapterError: A field has a type or value that PEFT could not load.
        """
        self._path = path
        self._config = config
        self.rank = self._number("r", 8)
        if self.rank < 1 or self.rank % 1:
            raise self._wrong("r", "a positive whole number")
        self.alpha = self._number("lora_alpha", 8)
        self.rslora = self._flag("use_rslora")
        self._flag("fan_in_fan_out")
        self.rank_pattern = Pattern(self._numbers("rank_pattern"))
        self.alpha_pattern = Pattern(self._numbers("alpha_pattern"))

    def _wrong(self, field: str, wanted: str) -> InvalidAdapterError:
        return InvalidAdapterError(
            f"{self._path}, field '{field}': {shown(repr(self._config[field]))} is not {wanted}",
            hint="correct the config, or save the adapter again",
        )

    def _number(self, field: str, default: float) -> float:
        value = self._config.get(field)
        if value is None:
            return default
        if not _is_number(value):
            raise self._wrong(field, "a number")
        return float(value)

    def _flag(self, field: str) -> bool:
        value = self._config.get(field)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(field, "true or false")
        return bool(value)

    def _numbers(self, field: str) -> dict[str, float]:
        value = self._config.get(field)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(_is_number(v) for v in value.values()):
            raise self._wrong(field, "a map of names to numbers")
        return {key: float(number) for key, number in value.items()}


def _is_number(value: object) -> bool:
    # Compared, not math.isfinite: that overflows on the long integers JSON allows.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # narrowed by type()


class Pattern:
    """A ``rank_pattern`` or ``alpha_pattern``, matched as PEFT matches them.

    A key is a regular expression for the end of a module name, from its start or behind a dot;
    the first key that matches counts, then a key equal to the name.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values
        allowance = Allowance()
        self._rules = [
            (
                key,
                key.rpartition(".")[2],
                None if _PLAIN_KEY.fullmatch(key) else _suffix(key, allowance),
            )
            for key in values
        ]

    def value(self, name: str, default: float) -> float:
        """What the pattern says of module ``name``, or ``default``."""
        for key, tail, expression in self._rules:
            # Results carry one plain key per module, so these must not cost a regex each.
            if expression.match(name) if expression else name.endswith(tail) and _ends(name, key):
                return self._values[key]
        return self._values.get(name, default)

    def unusable(self) -> tuple[str, ...]:
        """Keys that are no regular expression, or took too long; `value` did without them."""
        return tuple(key for key, _, rule in self._rules if rule is not None and not rule.usable)


def _ends(name: str, key: str) -> bool:
    """Whether ``name`` ends with the plain expression ``key``, whose dots match anything."""
    start = len(name) - len(key)
    if start < 0 or (start and name[start - 1] != "."):
        return False
    return all(k in (c, ".") for k, c in zip(key, name[start:], strict=True))


def _suffix(key: str, allowance: Allowance) -> Expression:
    return Expression(rf"(.*\.)?({key})$", allowance)


def config_for(
    ranks: Mapping[str, int],
    *,
    base_model: str | None,
    task_type: str | None,
    fan_in_fan_out: bool,
    auto_mapping: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """adapter_config.json of a result: scaling 1 everywhere, fields every PEFT >= 0.10 knows.

    Args:
        ranks: Rank by full module name.
        base_model: Hub id of the base model, or None.
        task_type: PEFT task type, or None.
        fan_in_fan_out: Whether base weights are stored transposed.
        auto_mapping: PEFT auto_mapping, or None.

    ``r`` is the largest rank, so that servers allocate enough; modules of another rank stand in
    both patterns, so that readers which ignore the patterns still find alpha = r.
    """
    largest = max(ranks.values())
    pattern = _pattern_for(ranks, largest)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "auto_mapping": dict(auto_mapping) if auto_mapping else None,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(ranks),
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }


def _pattern_for(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """Keys and ranks of the modules that differ from ``usual``.

    A full name also matches longer names that end with it, and names that differ where it has
    dots. Longer names and those with fewer dots therefore come first, and modules of the usual
    rank that a key would catch get a key of their own.
    """
    ordered = sorted(ranks, key=lambda name: (-len(name), name.count("."), name))
    named = {name for name in ordered if ranks[name] != usual}
    while True:
        pattern = {_key(name): ranks[name] for name in ordered if name in named}
        found = Pattern({key: float(rank) for key, rank in pattern.items()})
        caught = {n for n in ordered if n not in named and found.value(n, usual) != usual}
        if not caught:
            return pattern
        named |= caught


def _key(name: str) -> str:
    return name if _PLAIN_KEY.fullmatch(name) else re.escape(name)
