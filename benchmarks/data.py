"""Seeded synthetic adapters with decaying spectra, written as PEFT would."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LLAMA_2_7B = (32, 4096, 11008)


def llama_modules(layers: int, hidden: int, mlp: int) -> list[tuple[str, int, int]]:
    """(name, d_out, d_in) of the seven target modules of every layer."""
    found = []
    for i in range(layers):
        stem = f"model.layers.{i}"
        found += [(f"{stem}.self_attn.{p}_proj", hidden, hidden) for p in "qkvo"]
        found += [(f"{stem}.mlp.{p}_proj", mlp, hidden) for p in ("gate", "up")]
        found.append((f"{stem}.mlp.down_proj", hidden, mlp))
    return found


def factors(seed: int, d_out: int, d_in: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 factors B, A whose delta has a power-law spectrum above a noise floor."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, rank + 1).float().reciprocal()
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
    B = torch.randn(d_out, rank, generator=generator) / d_out**0.5 * spectrum @ turn
    A = torch.randn(rank, d_in, generator=generator) / d_in**0.5
    A = A + turn.T @ (spectrum[:, None] * torch.randn(rank, d_in, generator=generator)) / d_in**0.5
    return B.bfloat16(), A.bfloat16()


def write_adapter(folder: Path, modules: list[tuple[str, int, int]], rank: int, seed: int) -> Path:
    """Write an adapter unless it is there already."""
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for j, (name, d_out, d_in) in enumerate(modules):
        B, A = factors(seed * 100_003 + j, d_out, d_in, rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.contiguous()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "synthetic/llama-2-7b",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name, _, _ in modules}),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder
