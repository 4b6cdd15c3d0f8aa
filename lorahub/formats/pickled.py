"""Adapters saved as pickles: read with consent, as plain tensors only, and converted."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import Writer, encode_header

_NAMES = ("adapter_model.bin",)
_COMPANIONS = ("adapter_config.json", "README.md", "LICENSE")
_SPELLING = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


def find_pickle(folder: Path) -> Path | None:
    """PEFT's pickled weights in a folder that has no safetensors, or None."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((folder / n for n in _NAMES if (folder / n).is_file()), None)


def convert_pickle(folder: Path, target: Path) -> None:
    """Write the adapter of ``folder`` into the existing folder ``target`` as safetensors.

    Only call this with the user's consent. ``torch.load`` runs with ``weights_only``, which
    admits tensors and plain containers and nothing that could run code.

    Raises:
        InvalidAdapterError: The pickle holds anything but a flat map of float tensors.
    """
    import torch

    source = find_pickle(folder)
    if source is None:
        raise InvalidAdapterError(f"{folder}: has no adapter_model.bin to convert")
    try:
        body = torch.load(source, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines()[0]
        raise InvalidAdapterError(
            f"{source}: cannot be read as plain tensors ({reason})",
            hint="it is damaged or holds code; ask its author for safetensors",
        ) from error
    if not isinstance(body, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) and str(v.dtype) in _SPELLING
        for k, v in body.items()
    ):
        raise InvalidAdapterError(
            f"{source}: is not a flat map of names to float tensors",
            hint="ask its author for safetensors",
        )
    entries = {
        name: {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [2**40, 2**40]}
        for name, t in body.items()
    }
    with Writer(target / "adapter_model.safetensors", len(encode_header(entries))) as writer:
        for name, tensor in body.items():
            writer.write(name, tensor, _SPELLING[str(tensor.dtype)])
    for name in _COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
