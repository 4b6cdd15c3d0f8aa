"""PEFT LoRA adapters: inspection from headers and config, and the config of results.

The tensors are the truth about targets and ranks; the config is the truth about alpha. Every
variant whose delta is not ``scaling * B @ A`` is named as a refusal, so that a plan can turn it
down instead of merging it wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorahub.adapter import (
    DTYPE_BYTES,
    AdapterInfo,
    Module,
    ModuleKind,
    Refusal,
    lora_scaling,
)
from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import Header, TensorEntry

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 16 << 20

_FACTOR = re.compile(
    r"^(?P<name>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?P<rest>.+))?$"
)
_PLAIN_INITS = {"true", "false", "gaussian", "eva", "loftq", "orthogonal", "default"}
_OTHER_VARIANTS: tuple[tuple[str, str], ...] = (
    ("use_dora", "DoRA rescales the weights it is added to"),
    ("lora_bias", "B has a bias"),
    ("use_qalora", "QALoRA pools its inputs"),
    ("alora_invocation_tokens", "aLoRA is active on some tokens only"),
    ("layer_replication", "it replicates layers of the base model"),
    ("target_parameters", "it targets parameters, not modules"),
    ("trainable_token_indices", "it trains token rows"),
    ("use_bdlora", "BD-LoRA has block-diagonal factors"),
    ("enable_lora", "it is a 2023 MergedLinear LoRA (enable_lora)"),
)


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """``adapter_config.json`` as found and its sha256 (hex); ({}, "") where there is none.

    Raises:
        InvalidAdapterError: The file is there but is no JSON object of sane size.
    """
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        raise InvalidAdapterError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidAdapterError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes")
    if raw.startswith(b"version https://git-lfs"):
        raise InvalidAdapterError(
            f"{path}: is a git LFS pointer, not the file itself", hint="run `git lfs pull` there"
        )
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(f"{path}: is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InvalidAdapterError(f"{path}: is not a JSON object")
    return config, hashlib.sha256(raw).hexdigest()


def is_peft(header: Header, config: Mapping[str, Any]) -> bool:
    """Whether the tensors are PEFT LoRA factors and the config does not say otherwise."""
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        return False
    return any(_FACTOR.match(name) for name in header.tensors)


def inspect(weights: Path, header: Header, config: Mapping[str, Any]) -> AdapterInfo:
    """Inspect a PEFT LoRA file from its header and config.

    Raises:
        InvalidAdapterError: Factors that are no pair, or a config field of a wrong type.
    """
    pairs, extra = _pairs(weights, header)
    fields = _Fields(weights.parent / CONFIG_NAME, config)
    refusals = _variant_refusals(config, extra)
    warnings: list[str] = []
    modules = []
    for name, sides in sorted(pairs.items()):
        shapes = [header.tensors[sides[s]].shape for s in "AB" if s in sides]
        if any(len(shape) != 2 for shape in shapes):
            if not any(r.code in {"conv", "enable_lora"} for r in refusals):
                text = f"module '{name}' has factors of shape {shapes} (a convolution)"
                refusals.append(Refusal("conv", f"{text}, which is not supported"))
            continue
        module, claimed = _module(weights, name, sides, header, fields)
        if claimed != module.rank and not any(r.code == "rank_mismatch" for r in refusals):
            text = f"config says rank {claimed} for '{name}', its tensors have {module.rank}"
            refusals.append(Refusal("rank_mismatch", f"{text}, so its scaling is unknown"))
        modules.append(module)
    if not config:
        warnings.append(f"{CONFIG_NAME} is missing: alpha is taken as 8, PEFT's default")
    elif "lora_alpha" not in config:
        warnings.append("lora_alpha is missing: taken as 8, PEFT's default")
    warnings += _target_warnings(fields, modules)
    base, task = config.get("base_model_name_or_path"), config.get("task_type")
    return AdapterInfo(
        format="peft",
        peft_type="LORA",
        base_model=base if isinstance(base, str) and base else None,
        task_type=task if isinstance(task, str) else None,
        modules=tuple(modules),
        refusals=tuple(refusals),
        warnings=tuple(warnings),
        config=config,
        weights_file=weights.name,
        weights_bytes=0,
    )


def _pairs(weights: Path, header: Header) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Tensor keys by module name and side (``A``, ``B``), and the keys that are no factors."""
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    extra: list[str] = []
    for key in header.tensors:
        match = _FACTOR.match(key)
        rest = (match["rest"] or "").removesuffix("weight").removesuffix(".") if match else ""
        if match is None or "." in rest or rest == "bias":
            extra.append(key)
            continue
        name = module_name(match["name"])
        side = match["side"]
        if side in pairs[name]:
            raise InvalidAdapterError(
                f"{weights}: tensors '{pairs[name][side]}' and '{key}' are both lora_{side} of "
                f"module '{name}'",
                hint="the file holds two adapters; save one per file",
            )
        pairs[name][side] = key
    for sides in pairs.values():
        if len(sides) == 1:
            ((side, key),) = sides.items()
            missing = "B" if side == "A" else "A"
            raise InvalidAdapterError(
                f"{weights}: tensor '{key}' has no lora_{missing} beside it",
                hint="the file is incomplete; save the adapter again",
            )
    return pairs, extra


def module_name(path: str) -> str:
    """Module path inside the base model, without the wrappers training may have added."""
    path = path.removeprefix("module.")
    path = path.removeprefix("base_model.model.")
    return path.replace("_orig_mod.", "").removeprefix("module.")


class _Fields:
    """Typed access to the config fields that decide a delta."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self.rank = int(self._number("r", 8))
        self.alpha = self._number("lora_alpha", 8)
        self.rslora = self._flag("use_rslora")
        self.rank_pattern = self._pattern("rank_pattern")
        self.alpha_pattern = self._pattern("alpha_pattern")

    def _wrong(self, field: str, wanted: str) -> InvalidAdapterError:
        return InvalidAdapterError(
            f"{self.path}, field '{field}': {self.config.get(field)!r} is not {wanted}",
            hint="correct the config, or save the adapter again",
        )

    def _number(self, field: str, default: float) -> float:
        value = self.config.get(field)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(field, "a number")
        return float(value)

    def _flag(self, field: str) -> bool:
        value = self.config.get(field) or False
        if not isinstance(value, bool):
            raise self._wrong(field, "true or false")
        return value

    def _pattern(self, field: str) -> Mapping[str, float]:
        value = self.config.get(field) or {}
        if not isinstance(value, dict) or not all(
            type(v) in (int, float) and math.isfinite(v) for v in value.values()
        ):
            raise self._wrong(field, "a map of numbers")
        return value


def pattern_value(pattern: Mapping[str, float], name: str, default: float) -> float:
    """Value of the first pattern key that matches a module name, as PEFT matches them.

    A key is a regular expression for the end of the name, at a dot; ``^`` anchors it.
    """
    for key, value in pattern.items():
        expression = rf"(.*\.)?({key.removeprefix('^')})$" if not key.startswith("^") else f"{key}$"
        try:
            if re.match(expression, name):
                return value
        except re.error:
            continue
    return default


def _module(
    weights: Path, name: str, sides: Mapping[str, str], header: Header, fields: _Fields
) -> tuple[Module, int]:
    """The module, and the rank that the config claims for it."""
    A, B = header.tensors[sides["A"]], header.tensors[sides["B"]]
    for side in "AB":
        _check_factor(weights, sides[side], header.tensors[sides[side]])
    if A.shape[0] != B.shape[1]:
        raise InvalidAdapterError(
            f"{weights}: ranks of module '{name}' disagree: '{sides['A']}' has {A.shape[0]} rows, "
            f"'{sides['B']}' has {B.shape[1]} columns",
            hint="the factors are from different adapters; save the adapter again",
        )
    rank = A.shape[0]
    alpha = pattern_value(fields.alpha_pattern, name, fields.alpha)
    claimed = int(pattern_value(fields.rank_pattern, name, fields.rank if fields.config else rank))
    embedding = "lora_embedding_" in sides["A"]
    module = Module(
        name=name,
        kind=ModuleKind.EMBEDDING if embedding else ModuleKind.LINEAR,
        rank=rank,
        d_in=A.shape[1],
        d_out=B.shape[0],
        dtype_a=A.dtype,
        dtype_b=B.dtype,
        alpha=alpha,
        scaling=lora_scaling(alpha, rank, rslora=fields.rslora),
        key_a=sides["A"],
        key_b=sides["B"],
    )
    return module, claimed


def _check_factor(weights: Path, key: str, entry: TensorEntry) -> None:
    if 0 in entry.shape:
        raise InvalidAdapterError(f"{weights}: tensor '{key}' has an empty shape {entry.shape}")
    if entry.dtype not in DTYPE_BYTES:
        raise InvalidAdapterError(
            f"{weights}: tensor '{key}' has dtype {entry.dtype}, not one of F64, F32, F16, BF16",
            hint="quantised factors cannot be merged; save the adapter in 16 or 32 bits",
        )


def _variant_refusals(config: Mapping[str, Any], extra: Sequence[str]) -> list[Refusal]:
    found: dict[str, str] = {}
    for field, why in _OTHER_VARIANTS:
        if config.get(field):
            found[field.removeprefix("use_")] = f"{why} ({field} is set)"
    init = config.get("init_lora_weights")
    if init is not None and str(init).lower() not in _PLAIN_INITS:
        found["init"] = f"init_lora_weights '{init}' changes the base model's weights"
    for key in extra:
        if "lora_magnitude_vector" in key:
            found.setdefault("dora", f"DoRA rescales the weights it is added to ('{key}')")
        elif key.endswith("lora_B.bias"):
            found.setdefault("lora_bias", f"B has a bias ('{key}')")
        elif key.endswith(".bias") and config.get("bias") in {"all", "lora_only"}:
            found.setdefault("bias", f"it trains biases (bias: {config['bias']}; '{key}')")
        else:
            whole = config.get("modules_to_save")
            named = isinstance(whole, list) and any(str(m) in key for m in whole)
            code = "modules_to_save" if named else "extra_tensors"
            found.setdefault(code, f"it also holds whole weights ('{key}')")
    return [Refusal(code, message) for code, message in found.items()]


def _target_warnings(fields: _Fields, modules: Sequence[Module]) -> list[str]:
    targets = fields.config.get("target_modules")
    names = [m.name for m in modules]
    if isinstance(targets, list):
        odd = sorted(
            str(t) for t in targets if not any(n == t or n.endswith(f".{t}") for n in names)
        )
        return [f"target_modules names {', '.join(odd)}, which no tensor has"] if odd else []
    if isinstance(targets, str) and targets != "all-linear":
        try:
            odd = [n for n in names if not re.fullmatch(targets, n)]
        except re.error as error:
            return [f"target_modules is no regular expression ({error})"]
        return [f"target_modules does not match {odd[0]}"] if odd else []
    return []


def tensor_keys(name: str, kind: ModuleKind) -> tuple[str, str]:
    """Standard keys of A and B for a module."""
    if kind is ModuleKind.EMBEDDING:
        stem = f"base_model.model.{name}.lora_embedding_"
        return f"{stem}A", f"{stem}B"
    stem = f"base_model.model.{name}.lora_"
    return f"{stem}A.weight", f"{stem}B.weight"


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
    pattern = {name: rank for name, rank in sorted(ranks.items()) if rank != largest}
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
