"""PEFT LoRA adapters: inspection from headers and config.

The tensors are the truth about targets and ranks; the config is the truth about alpha. Every
variant whose delta is not ``scaling * B @ A`` is named as a refusal, so that a plan can turn it
down instead of merging it wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from lorahub.formats.expressions import Allowance, Expression
from lorahub.formats.peft_config import (
    CONFIG_NAME,
    LoraConfig,
    config_for,
    read_config,
)
from lorahub.formats.safetensors import Header, TensorEntry
from lorahub.formats.text import printable, shown

__all__ = ["CONFIG_NAME", "config_for", "inspect", "is_peft", "read_config", "tensor_keys"]

_FACTOR = re.compile(
    r"(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:\.(?!weight\Z|bias\Z)[^.]+)?(?:\.weight)?",
)
_BASE_COPY = re.compile(r"(?P<path>.+)\.base_layer\.(?:weight|bias)")
_TRAINING_WRAPPERS = re.compile(
    r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_PIPELINE = re.compile(
    r"(?:unet|text_encoder(?:_\d)?|diffusion_model|transformer\.(?:single_)?transformer_blocks)\."
)

_TRAINED_BIASES = ("all", "lora_only")
# Inits that leave the base model's weights alone; the others are read as changing them.
_PLAIN_INITS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
_VARIANTS = (
    ("use_dora", "dora", "DoRA rescales the weights it is added to"),
    ("lora_bias", "lora_bias", "B has a bias"),
    ("use_qalora", "qalora", "QALoRA pools its inputs"),
    ("use_bdlora", "bdlora", "BD-LoRA has block-diagonal factors"),
    ("alora_invocation_tokens", "alora", "aLoRA is active on some tokens only"),
    ("arrow_config", "arrow", "Arrow routes between adapters"),
    ("kasa_config", "kasa", "KaSA changes the base model's weights"),
    ("monteclora_config", "monteclora", "MonteCLoRA samples its factors"),
    ("layer_replication", "layer_replication", "it replicates layers of the base model"),
    ("target_parameters", "target_parameters", "it targets parameters, not modules"),
    ("trainable_token_indices", "trainable_tokens", "it trains token rows"),
    ("enable_lora", "enable_lora", "it is a 2023 MergedLinear LoRA, with factors per part"),
)
_EXTRA_SUFFIXES = (
    (".bias", "lora_B", "lora_bias", "B has a bias"),
    ("", "lora_magnitude_vector", "dora", "DoRA rescales the weights it is added to"),
    ("", "trainable_tokens", "trainable_tokens", "it trains token rows"),
    ("", "lora_diag", "kasa", "KaSA scales between its factors"),
)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The tensor keys of one module's factors."""

    name: str
    kind: ModuleKind
    key_a: str
    key_b: str


class _Refusals:
    """Reasons not to merge, one per code: the first says where to look."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def add(self, code: str, message: str) -> None:
        self._found.setdefault(code, message)

    def list(self) -> tuple[Refusal, ...]:
        return tuple(Refusal(code, message) for code, message in self._found.items())


def is_peft(header: Header, config: Mapping[str, Any]) -> bool:
    """Whether the tensors are PEFT LoRA factors and the config does not say otherwise."""
    if str(config.get("peft_type") or "LORA").upper() != "LORA":
        return False
    if not config and any(_PIPELINE.match(key) for key in header.tensors):
        return False  # diffusers writes the same leaf names, but alpha elsewhere
    return any(_FACTOR.fullmatch(key) for key in header.tensors)


def inspect(weights: Path, header: Header, config: Mapping[str, Any]) -> AdapterInfo:
    """Inspect a PEFT LoRA file from its header and config.

    Raises:
        InvalidAdapterError: Factors that are no pair, or a config field of a wrong type.
    """
    pairs, extra = _pairs(weights, header)
    fields = LoraConfig(weights.parent / CONFIG_NAME, config)
    refusals = _Refusals()
    warnings: list[str] = []
    _refuse_variants(config, refusals)
    modules = []
    for pair in pairs:
        shapes = header.tensors[pair.key_a].shape, header.tensors[pair.key_b].shape
        _check_factors(weights, pair, header)
        if max(len(shape) for shape in shapes) > 2:
            _refuse_shapes(pair, shapes, refusals)
            continue
        module = _module(weights, pair, header, fields)
        claimed = fields.rank_pattern.value(pair.name, fields.rank)
        if config and claimed != module.rank:
            where = "the config says" if "r" in config else "without r the config means"
            refusals.add(
                "rank_mismatch",
                f"{where} rank {claimed:g} for '{pair.name}', whose tensors have {module.rank}, "
                "so its scaling is unknown",
            )
        modules.append(module)
    _refuse_patterns(fields, refusals)
    if config.get("ensure_weight_tying") and any(m.kind is ModuleKind.EMBEDDING for m in modules):
        refusals.add("weight_tying", "its embedding delta also applies to the tied output layer")
    trained = config.get("bias") in _TRAINED_BIASES
    frozen = [key for key in extra if not (trained and key.endswith(".bias"))]
    copies = _base_copies(frozen, modules, header)
    _refuse_extra(config, [key for key in extra if key not in copies], refusals)
    warnings += _config_warnings(config, extra, [pair.name for pair in pairs])
    if copies:
        warnings.append(
            f"it carries frozen copies of base weights, which a merge leaves out ('{copies[0]}')"
        )
    return AdapterInfo(
        format="peft",
        peft_type="LORA",
        base_model=printable(config.get("base_model_name_or_path")),
        task_type=printable(config.get("task_type")),
        modules=tuple(sorted(modules, key=lambda m: m.name)),
        refusals=refusals.list(),
        warnings=tuple(warnings),
        config=config,
        weights_file=weights.name,
        weights_bytes=0,
    )


def tensor_keys(name: str, kind: ModuleKind) -> tuple[str, str]:
    """Standard keys of A and B for a module."""
    if kind is ModuleKind.EMBEDDING:
        stem = f"base_model.model.{name}.lora_embedding_"
        return f"{stem}A", f"{stem}B"
    stem = f"base_model.model.{name}.lora_"
    return f"{stem}A.weight", f"{stem}B.weight"


def module_name(path: str) -> str:
    """Module path inside the base model, without the wrappers training may have added."""
    path = _TRAINING_WRAPPERS.sub("", path)
    return path.removeprefix("module.").removeprefix("base_model.model.")


def _pairs(weights: Path, header: Header) -> tuple[list[_Pair], list[str]]:
    """The factors by module, and the keys that are no factors."""
    found: dict[tuple[str, ModuleKind], dict[str, str]] = defaultdict(dict)
    extra: list[str] = []
    for key in header.tensors:
        match = _FACTOR.fullmatch(key)
        if match is None:
            extra.append(key)
            continue
        name = module_name(match["path"])
        kind = ModuleKind.EMBEDDING if match["embedding"] else ModuleKind.LINEAR
        sides = found[name, kind]
        if match["side"] in sides:
            raise _twice(weights, name, sides[match["side"]], key)
        sides[match["side"]] = key
    pairs: dict[str, _Pair] = {}
    for (name, kind), sides in found.items():
        if len(sides) == 1:
            ((side, key),) = sides.items()
            raise InvalidAdapterError(
                f"{weights}: tensor '{key}' has no lora_{'B' if side == 'A' else 'A'} beside it",
                hint="the file is incomplete; save the adapter again",
            )
        if name in pairs:
            raise _twice(weights, name, pairs[name].key_a, sides["A"])
        pairs[name] = _Pair(name, kind, sides["A"], sides["B"])
    return list(pairs.values()), extra


def _twice(weights: Path, name: str, one: str, other: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"{weights}: tensors '{one}' and '{other}' are both for module '{name}'",
        hint="the file holds two adapters; save one per file",
    )


def _check_factors(weights: Path, pair: _Pair, header: Header) -> None:
    for key in (pair.key_a, pair.key_b):
        entry = header.tensors[key]
        if len(entry.shape) < 2 or 0 in entry.shape:
            raise InvalidAdapterError(
                f"{weights}: tensor '{key}' has shape {list(entry.shape)}, which is no factor",
                hint="it may have been saved from one shard of a ZeRO-3 or FSDP run; gather the "
                "weights and save the adapter again",
            )
        if entry.dtype not in DTYPE_BYTES:
            raise InvalidAdapterError(
                f"{weights}: tensor '{key}' has dtype {entry.dtype}, not one of "
                f"{', '.join(DTYPE_BYTES)}",
                hint="quantised factors cannot be merged; save the adapter in 16 or 32 bits",
            )


def _refuse_shapes(pair: _Pair, shapes: tuple[tuple[int, ...], ...], refusals: _Refusals) -> None:
    a, b = shapes
    text = f"module '{pair.name}' has factors of shapes {list(a)} and {list(b)}"
    if len(a) == 2:
        refusals.add("enable_lora", f"{text}: a 2023 MergedLinear LoRA, with factors per part")
    else:
        refusals.add("conv", f"{text}: a convolution")


def _module(weights: Path, pair: _Pair, header: Header, fields: LoraConfig) -> Module:
    A, B = header.tensors[pair.key_a], header.tensors[pair.key_b]
    _check_ranks(weights, pair, A, B)
    rank = A.shape[0]
    alpha = fields.alpha_pattern.value(pair.name, fields.alpha)
    return Module(
        name=pair.name,
        kind=pair.kind,
        rank=rank,
        d_in=A.shape[1],
        d_out=B.shape[0],
        dtype_a=A.dtype,
        dtype_b=B.dtype,
        alpha=alpha,
        scaling=lora_scaling(alpha, rank, rslora=fields.rslora),
        key_a=pair.key_a,
        key_b=pair.key_b,
    )


def _check_ranks(weights: Path, pair: _Pair, A: TensorEntry, B: TensorEntry) -> None:
    if A.shape[0] != B.shape[1]:
        raise InvalidAdapterError(
            f"{weights}: ranks of module '{pair.name}' disagree: '{pair.key_a}' has "
            f"{A.shape[0]} rows, '{pair.key_b}' has {B.shape[1]} columns",
            hint="the factors are from different adapters; save the adapter again",
        )


def _refuse_variants(config: Mapping[str, Any], refusals: _Refusals) -> None:
    if not config:
        refusals.add("no_config", f"{CONFIG_NAME} is missing, so alpha and scaling are unknown")
    for field, code, why in _VARIANTS:
        if config.get(field):
            refusals.add(code, f"{why} ({field} is set)")
    init = config.get("init_lora_weights")
    if init is not None and str(init).lower() not in _PLAIN_INITS:
        refusals.add("init", f"init_lora_weights '{shown(init)}' changes the base model's weights")


def _refuse_patterns(fields: LoraConfig, refusals: _Refusals) -> None:
    """Name a pattern key without which scalings were found, now that all have been."""
    for field, pattern in (
        ("rank_pattern", fields.rank_pattern),
        ("alpha_pattern", fields.alpha_pattern),
    ):
        for key in pattern.unusable():
            refusals.add(
                "pattern",
                f"{field} key '{shown(key)}' is no regular expression, or takes too long to match",
            )


def _refuse_extra(config: Mapping[str, Any], extra: Sequence[str], refusals: _Refusals) -> None:
    """Name what else is in the file; a factor-space merge would silently lose it."""
    whole: dict[str, list[str]] = defaultdict(list)
    for key in extra:
        for suffix, part, code, why in _EXTRA_SUFFIXES:
            if key.endswith(suffix) and f".{part}" in key:
                refusals.add(code, f"{why} ('{key}')")
                break
        else:
            if any(_has_part(key, name) for name in _names(config.get("modules_to_save"))):
                whole["modules_to_save"].append(key)
            elif key.endswith(".bias") and config.get("bias") in _TRAINED_BIASES:
                refusals.add("bias", f"it trains biases (bias: {config['bias']}; '{key}')")
            else:
                whole["extra_tensors"].append(key)
    for code, keys in whole.items():
        shown = ", ".join(f"'{key}'" for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
        refusals.add(code, f"it also holds weights that are no factors ({shown})")


def _base_copies(extra: Iterable[str], modules: Sequence[Module], header: Header) -> list[str]:
    """Frozen base weights that PEFT saves beside the factors of embeddings and output layers.

    A copy whose shape is not its module's is something else, and is left to be refused.
    """
    shapes = {
        m.name: (m.d_in, m.d_out) if m.kind is ModuleKind.EMBEDDING else (m.d_out, m.d_in)
        for m in modules
    }
    copies = []
    for key in extra:
        match = _BASE_COPY.fullmatch(key)
        expected = shapes.get(module_name(match["path"])) if match else None
        shape = header.tensors[key].shape
        if expected and shape in (expected, expected[:1]):
            copies.append(key)
    return copies


def _config_warnings(
    config: Mapping[str, Any], extra: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Where the config claims what the tensors do not show."""
    if not config:
        return []
    warnings = []
    if config.get("lora_alpha") is None:
        warnings.append("lora_alpha is missing: taken as 8, PEFT's default")
    saved = _names(config.get("modules_to_save"))
    if saved and not any(_has_part(key, name) for key in extra for name in saved):
        warnings.append(f"modules_to_save names {shown(', '.join(saved))}, which no tensor has")
    biases = any(key.endswith(".bias") for key in extra)
    if config.get("bias") in _TRAINED_BIASES and not biases:
        warnings.append(f"bias is '{config['bias']}', but there are no bias tensors")
    return warnings + _target_warnings(config.get("target_modules"), names)


def _target_warnings(targets: object, names: Sequence[str]) -> list[str]:
    if isinstance(targets, list):
        wanted = {str(target) for target in targets}
        suffixes = {name: _suffixes(name) for name in names}
        idle = sorted(wanted - set().union(*suffixes.values()))
        other = [name for name in names if not suffixes[name] & wanted]
        warnings = []
        if idle:
            warnings.append(f"target_modules names {shown(', '.join(idle))}, which no tensor has")
        if other:
            warnings.append(f"target_modules does not name '{other[0]}', which has tensors")
        return warnings
    if isinstance(targets, str) and targets != "all-linear":
        expression = Expression(targets, Allowance())
        odd = next((name for name in names if not expression.fullmatch(name)), None)
        if not expression.usable:
            return ["target_modules is no regular expression, or takes too long to match"]
        return [f"target_modules does not match '{odd}', which has tensors"] if odd else []
    return []


def _suffixes(name: str) -> set[str]:
    """The name and its ends behind each dot: all that a plain target can match."""
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def _names(value: object) -> list[str]:
    return [v for v in value if isinstance(v, str) and v] if isinstance(value, list) else []


def _has_part(key: str, name: str) -> bool:
    return f".{name}." in f".{key}."
