"""Adapters as Mixture of Shards publishes them: trained in pools, saved expanded as plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_mos(
    folder: Path,
    types: Mapping[str, tuple[int, int]],
    *,
    layers: int,
    rank: int,
    equivalent: int,
    shards: int,
    private: int,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write an adapter whose vectors are made of shards (arXiv 2410.00938, section 3).

    Args:
        folder: Where.
        types: (d_in, d_out) by module type.
        layers: Layers that share the pools.
        rank: Active rank r.
        equivalent: Equivalent rank e: the pools have e * layers * shards shards.
        shards: Shards l per vector.
        private: Ranks p of each layer whose shards no other layer uses.
        tied: Whether A and B use the same index table (no pair dissociation).
        dtype: Of the factors.
        seed: Of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    public = (equivalent - private) * layers * shards
    assert public >= (rank - private) * shards, "too few to draw without replacement"
    tensors = {}
    for name, dims in types.items():
        pools = [
            torch.randn(equivalent * layers * shards, d // shards, generator=generator).to(dtype)
            for d in dims
        ]
        for layer in range(layers):
            own = public + layer * private * shards + torch.arange(private * shards)
            chosen = (rank - private) * shards
            tables = [
                torch.cat([torch.randperm(public, generator=generator)[:chosen], own])
                for _ in range(2)
            ]
            if tied:
                tables[1] = tables[0]
            A, B = (
                pool[table].reshape(rank, -1) for pool, table in zip(pools, tables, strict=True)
            )
            stem = f"base_model.model.layers.{layer}.{name}.lora_"
            tensors[f"{stem}A.weight"] = A.contiguous()
            tensors[f"{stem}B.weight"] = B.T.contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tests/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(types),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
