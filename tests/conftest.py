"""Fixtures and builders that more than one test file needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import typer.testing

from tests.postgres import Databases, server
from tui import heed_interrupts

pytest_plugins = ["tests.loopback_hub.fixtures"]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "adapters"

# One thread per test process, for tests run side by side, and the same bytes whatever runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes is no question of these tests, and depends on what else runs.
hypothesis.settings.register_profile(
    "lorahub",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("lorahub")

# Where a shell runs the tests in its background, the processes that they interrupt heed it too.
heed_interrupts()

# Each call of a command would build all sixty of them again, in 50 ms.
typer.testing._get_command = cache(typer.testing._get_command)


@pytest.fixture(scope="session")
def shared_adapters() -> Path:
    """Folder of real adapters trained by others; tests that need it skip without it."""
    folder = Path(os.environ.get("LORAHUB_SHARED", ROOT.parent / "shared")) / "adapters"
    if not (folder / "README.md").is_file():
        pytest.skip(f"the collection of real adapters is not at {folder} (set LORAHUB_SHARED)")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    """A PostgreSQL server of our own; tests that need it skip where none can be had."""
    with server() as url:
        yield Databases(url)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LORAHUB_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LORAHUB_HOME", str(folder))
    for name in ("LORAHUB_DATABASE_URL", "LORAHUB_ENDPOINT", "LORAHUB_TOKEN_ENV"):
        monkeypatch.delenv(name, raising=False)
    return folder


def write_adapter(
    folder: Path,
    modules: Mapping[str, tuple[int, int, int]],
    *,
    seed: int = 0,
    dtype: str = "float32",
    alpha: float = 16,
    base: str | None = "tests/base",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a PEFT adapter of seeded random factors.

    ``modules`` gives (d_out, d_in, rank) by name; ``config`` overrides config fields.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (d_out, d_in, rank) in modules.items():
        stem = f"base_model.model.{name}.lora_"
        A = torch.randn(rank, d_in, generator=generator) / d_in**0.5
        B = torch.randn(d_out, rank, generator=generator) / d_out**0.5
        tensors[f"{stem}A.weight"] = A.to(getattr(torch, dtype))
        tensors[f"{stem}B.weight"] = B.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    ranks = {name: rank for name, (_, _, rank) in modules.items()}
    largest = max(ranks.values())
    body = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": largest,
        "lora_alpha": alpha,
        "target_modules": sorted(modules),
        "rank_pattern": {n: r for n, r in ranks.items() if r != largest},
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(body | dict(config or {})))
    return folder
