"""PEFT LoRA for readers that know no patterns: one rank for all modules, and scaling 1.

llama.cpp scales each module by the one ``lora_alpha`` over the module's own rank, vLLM all modules
alike, whatever the config's patterns say. Rows of zeros bring every A, and columns of zeros every
B, to the largest rank; the deltas stay what they are.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from lorahub.adapter import DTYPE_BYTES, AdapterInfo, Module, canonical_base
from lorahub.errors import UnsupportedAdapterError
from lorahub.formats import peft
from lorahub.formats.safetensors import (
    TensorFile,
    Writer,
    encode,
    encode_header,
    header_entry,
)

WEIGHTS_NAME = "adapter_model.safetensors"


def write_equal_ranks(info: AdapterInfo, weights: Path, folder: Path) -> None:
    """Write weights and config of the adapter at ``weights`` into ``folder``.

    Dtypes are kept, float64 becomes float32; scalings are multiplied into B, in float32.

    Raises:
        UnsupportedAdapterError: Its deltas are not ``s * B @ A``; the message says why.
        InvalidAdapterError: The file cannot be read.
    """
    import torch

    if info.refusals:
        raise UnsupportedAdapterError(
            f"{weights}: {info.refusals[0].message}", hint="only plain LoRA can be written so"
        )
    rank = max(info.ranks)
    source = TensorFile(weights)
    try:
        with Writer(folder / WEIGHTS_NAME, _header_room(info, rank)) as writer:
            for m in info.modules:
                A, B = torch.zeros(rank, m.d_in), torch.zeros(m.d_out, rank)
                source.read_into(m.key_a, A[: m.rank])
                source.read_into(m.key_b, B[:, : m.rank])
                B *= m.scaling
                for key, dtype, factor in zip(_keys(m), _dtypes(m), (A, B), strict=True):
                    encoded = encode(factor, dtype)
                    if not encoded.finite:
                        raise UnsupportedAdapterError(
                            f"{weights}: with its scaling, module '{m.name}' does not fit {dtype}",
                            hint="save the adapter in 32 bits",
                        )
                    writer.write(key, encoded)
    finally:
        source.close()
    config = peft.config_for(
        {m.name: rank for m in info.modules},
        base_model=canonical_base(info.base_model),
        task_type=info.task_type,
        fan_in_fan_out=bool(info.config.get("fan_in_fan_out")),
        auto_mapping=info.config.get("auto_mapping"),
    )
    (folder / peft.CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def _keys(module: Module) -> tuple[str, str]:
    return peft.tensor_keys(module.name, module.kind)


def _dtypes(module: Module) -> tuple[str, str]:
    a, b = ("F32" if dtype == "F64" else dtype for dtype in (module.dtype_a, module.dtype_b))
    return a, b


def _header_room(info: AdapterInfo, rank: int) -> int:
    entries, end = {}, 0
    for m in info.modules:
        shapes = ([rank, m.d_in], [m.d_out, rank])
        for key, dtype, shape in zip(_keys(m), _dtypes(m), shapes, strict=True):
            size = math.prod(shape) * DTYPE_BYTES[dtype]
            entries[key] = header_entry(dtype, shape, end, size)
            end += size
    return len(encode_header(entries))
