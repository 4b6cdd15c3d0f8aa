"""Adapter formats that are recognised and catalogued, but not merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorahub.adapter import AdapterInfo, Refusal
from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import Header
from lorahub.formats.text import printable, shown

# Label, what it is, and a tensor name that only it has. The first that matches counts.
_FORMATS: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    ("lycoris", "a LyCORIS LoKr or LoHa", re.compile(r"\.(lokr_w|hada_w)\d")),
    ("kohya", "a kohya LoRA", re.compile(r"^lora_(unet|te\d?|transformer)_.*\.lora_(down|up)\.")),
    ("diffusers", "a diffusers LoRA", re.compile(r"processor\.|_lora\.(down|up)\.|\.lora\.up")),
    ("diffusers", "a diffusers LoRA", re.compile(r"\.lora_[AB]\.")),
    ("cloneofsimo", "a cloneofsimo LoRA", re.compile(r"^(unet|text_encoder):\d+:(up|down)$")),
    ("mlx", "an MLX LoRA", re.compile(r"\.lora_[ab]$")),
    ("raw", "a LoRA with private tensor names (w_a, w_b)", re.compile(r"^w_[ab]_\d+$")),
    ("bottleneck", "a bottleneck adapter, no LoRA", re.compile(r"\badapter_(down|up)\.")),
    ("prompt", "a trained prompt or prefix, no LoRA", re.compile(r"^prompt_(encoder|embedding)")),
)


def inspect(weights: Path, header: Header, config: Mapping[str, Any]) -> AdapterInfo:
    """Name the format of weights that are not PEFT LoRA factors.

    Raises:
        InvalidAdapterError: No known kind of adapter.
    """
    peft_type = config.get("peft_type")
    if isinstance(peft_type, str) and peft_type.upper() not in ("", "LORA"):
        reason = Refusal("peft_type", f"it is a PEFT {shown(peft_type)} adapter, not a LoRA")
        return _info(weights, "peft", shown(peft_type.upper()), config, reason)
    for label, what, pattern in _FORMATS:
        if any(pattern.search(name) for name in header.tensors):
            text = f"it is {what}; only PEFT LoRA adapters can be merged"
            return _info(weights, label, None, config, Refusal("format", text))
    raise InvalidAdapterError(
        f"{weights}: is not a LoRA adapter: no lora_A/lora_B tensors among its "
        f"{len(header.tensors)} (first: {next(iter(header.tensors), 'none')})",
        hint="name the folder that PEFT's save_pretrained wrote",
    )


def _info(
    weights: Path,
    label: str,
    peft_type: str | None,
    config: Mapping[str, Any],
    refusal: Refusal,
) -> AdapterInfo:
    return AdapterInfo(
        format=label,
        peft_type=peft_type,
        base_model=printable(config.get("base_model_name_or_path") or config.get("model")),
        task_type=printable(config.get("task_type")),
        modules=(),
        refusals=(refusal,),
        warnings=(),
        config=config,
        weights_file=weights.name,
        weights_bytes=0,
    )
