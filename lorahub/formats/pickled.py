"""Adapters saved as pickles: read with consent, as plain tensors only, and converted."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import InvalidAdapterError
from lorahub.formats.safetensors import Writer, encode, encode_header
from lorahub.formats.text import shown

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_USUAL = "adapter_model.bin"
_TRAINER_STATE = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state")
_COMPANIONS = ("adapter_config.json", "README.md", "LICENSE")
_SPELLING = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}


def find_pickle(folder: Path) -> Path | None:
    """The one pickle with weights in a folder that has no safetensors, or None."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    found = [
        path
        for path in folder.iterdir()
        if path.suffix in _SUFFIXES and path.is_file() and not _TRAINER_STATE.match(path.name)
    ]
    usual = [path for path in found if path.name == _USUAL]
    return usual[0] if usual else found[0] if len(found) == 1 else None


def convert_pickle(folder: Path, target: Path) -> None:
    """Write the adapter of ``folder`` into the existing folder ``target`` as safetensors.

    Only call this with the user's consent. ``torch.load`` runs with ``weights_only``, which
    admits tensors and plain containers and nothing that could run code.

    Raises:
        InvalidAdapterError: The pickle holds anything but a flat map of float tensors.
    """
    source = find_pickle(folder)
    if source is None:
        raise InvalidAdapterError(
            f"{folder}: has no {_USUAL} to convert",
            hint="name the folder that holds adapter_config.json and its weights",
        )
    tensors = _load(source)
    entries = {
        name: {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [2**40, 2**40]}
        for name, t in tensors.items()
    }
    with Writer(target / "adapter_model.safetensors", len(encode_header(entries))) as writer:
        for name, tensor in tensors.items():
            writer.write(name, encode(tensor, _SPELLING[str(tensor.dtype)]))
    for name in _COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def _load(source: Path) -> dict[str, Tensor]:
    import torch

    try:
        zipped = zipfile.is_zipfile(source)
        if zipped:
            _check_stored(source)
        body = torch.load(source, map_location="cpu", weights_only=True, mmap=zipped)
    except InvalidAdapterError:
        raise
    except Exception as error:  # hostile bytes can make the unpickler raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise InvalidAdapterError(
            f"{source}: cannot be read as plain tensors "
            f"({f'it names {shown(named[1])}' if named else shown(reason)})",
            hint="it is damaged or holds code; ask its author for safetensors",
        ) from error
    if not isinstance(body, dict) or not body:
        raise _not_flat(source, f"it is a {type(body).__name__} of {_length(body)}")
    for name, tensor in body.items():
        plain = (
            isinstance(name, str)
            and name.isprintable()
            and type(tensor) in (torch.Tensor, torch.nn.Parameter)
            and tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and str(tensor.dtype) in _SPELLING
        )
        if not plain:
            raise _not_flat(source, f"see '{shown(name)}'")
    # Strides of zero can make a few bytes claim terabytes.
    if sum(t.numel() * t.element_size() for t in body.values()) > source.stat().st_size:
        raise _not_flat(source, "its tensors claim more values than the file holds")
    return body


def _check_stored(source: Path) -> None:
    with zipfile.ZipFile(source) as archive:
        if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
            raise _not_flat(source, "it is compressed, which torch.save never does")


def _not_flat(source: Path, why: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"{source}: is not a flat map of names to float tensors ({why})",
        hint="ask its author for safetensors",
    )


def _length(body: object) -> int:
    return len(body) if isinstance(body, (dict, list, tuple)) else 1
