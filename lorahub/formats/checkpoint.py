"""Whole models as transformers saves them: which files hold the weights, and which are linear.

Everything is decided from file names and safetensors headers; torch is not imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorahub.adapter import DTYPE_BYTES
from lorahub.errors import InvalidAdapterError, NotFoundError
from lorahub.formats.safetensors import TensorEntry

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"

_IN_A_BLOCK = re.compile(r"(?:[^.]*[^.\d][^.]*\.)*\d+\.(?P<inner>.+)\.weight")
_NOT_LINEAR = re.compile(
    r"embed|norm|(?:^|\.)ln_|relative_attention_bias|router|experts?\b|\.gate\Z"
)
_CONV1D = {"decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
_DESCRIBING = {".json", ".jinja", ".md", ".model", ".tiktoken", ".txt"}


def find_shards(folder: Path) -> tuple[Path, ...]:
    """The weights files of a model: one, or those its index names, sorted.

    Raises:
        NotFoundError: There is no such folder.
        InvalidAdapterError: No model, one without safetensors, or a broken index.
    """
    if not folder.is_dir():
        what = f"{folder}: is a file" if folder.is_file() else f"there is no folder {folder}"
        raise NotFoundError(what, hint="name a folder that save_pretrained(folder) wrote")
    if (folder / WEIGHTS_NAME).is_file():
        return (folder / WEIGHTS_NAME,)
    index = folder / INDEX_NAME
    if not index.is_file():
        raise InvalidAdapterError(
            f"{folder}: has neither {WEIGHTS_NAME} nor {INDEX_NAME}",
            hint="save the model with save_pretrained(folder), which writes safetensors",
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = tuple(folder / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidAdapterError(f"{index}: is no index of shards ({error})") from error
    for name, shard in zip(names, shards, strict=True):
        if Path(name).name != name or not shard.is_file():
            raise InvalidAdapterError(
                f"{index}: names the shard '{name}', which is not in the folder",
                hint="download the model again",
            )
    if not shards:
        raise InvalidAdapterError(f"{index}: names no shard")
    return shards


def read_config(folder: Path) -> Mapping[str, Any]:
    """The model's config.json.

    Raises:
        InvalidAdapterError: There is none, or it is no JSON object.
    """
    path = folder / CONFIG_NAME
    hint = "name a folder that transformers' save_pretrained wrote"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidAdapterError(
            f"{folder}: is not a model: it has no {CONFIG_NAME}", hint=hint
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidAdapterError(f"{path}: is not readable JSON ({error})", hint=hint) from error
    if not isinstance(body, dict):
        raise InvalidAdapterError(f"{path}: is not a JSON object", hint=hint)
    return body


def stores_transposed(config: Mapping[str, Any]) -> bool:
    """Whether the linear weights in blocks are transformers' Conv1D, stored (d_in, d_out)."""
    return config.get("model_type") in _CONV1D


def is_block_linear(name: str, entry: TensorEntry) -> bool:
    """Whether a tensor is the weight of a linear layer inside a transformer block.

    It is when it is a floating 2-D tensor named ``...N.<module>.weight``, N being the number of
    the block (the first in the name), and no part after N names an embedding, a norm, or a router
    or expert of a mixture. Embeddings, heads and poolers stand outside the numbered blocks.
    """
    match = _IN_A_BLOCK.fullmatch(name)
    return (
        match is not None
        and len(entry.shape) == 2
        and min(entry.shape) > 0
        and entry.dtype in DTYPE_BYTES
        and _NOT_LINEAR.search(match["inner"].lower()) is None
    )


def describing_files(folder: Path) -> tuple[Path, ...]:
    """Configs, tokenizer files, cards and licences: what is neither weights nor code, sorted."""
    return tuple(
        p
        for p in sorted(folder.iterdir())
        if p.is_file()
        and (p.suffix in _DESCRIBING or p.name.upper().startswith(("LICENSE", "NOTICE")))
        and not p.name.endswith(".index.json")
        and not p.name.startswith(".")
    )
