"""Adapters on disk: recognising, inspecting, converting and describing them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from lorahub.adapter import AdapterInfo, Module, Outline, canonical_base
from lorahub.errors import InvalidAdapterError, UnsupportedAdapterError
from lorahub.formats import card, foreign, peft
from lorahub.formats.card import read_card
from lorahub.formats.pickled import convert_pickle, find_pickle
from lorahub.formats.safetensors import Header, TensorEntry, read_header

__all__ = [
    "convert_pickle",
    "described",
    "find_pickle",
    "find_weights",
    "has_weights",
    "inspect",
    "outline",
    "peft",
    "read_card",
]

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_LARGEST_SIDE = (1 << 31) - 1
_LARGEST_FILE = (1 << 63) - 1


def inspect(folder: Path) -> AdapterInfo:
    """What the adapter in ``folder`` is: structure from headers, identity from hashed bytes.

    torch is not imported and nothing is unpickled.

    Raises:
        InvalidAdapterError: No adapter, or a damaged or hostile one.
        UnsupportedAdapterError: Weights that only unpickling could read.
    """
    try:
        weights = find_weights(folder)
    except OSError as error:
        raise InvalidAdapterError(f"{folder}: cannot be read ({error.strerror})") from error
    header = read_header(weights)
    config, config_sha256 = peft.read_config(folder)
    if peft.is_peft(header, config):
        info = peft.inspect(weights, header, config)
    else:
        info = foreign.inspect(weights, header, config)
    file_hash, factor_hashes, silent = _hash(weights, header)
    modules = tuple(
        replace(m, hash_a=factor_hashes[m.key_a], hash_b=factor_hashes[m.key_b])
        for m in info.modules
    )
    info = replace(
        info,
        modules=modules,
        warnings=info.warnings + _untrained(modules, silent),
        weights_bytes=weights.stat().st_size,
        weights_sha256=file_hash,
        config_sha256=config_sha256,
    )
    return described(info, folder)


def described(info: AdapterInfo, folder: Path) -> AdapterInfo:
    """What was inspected, with what the card in ``folder`` says now."""
    metadata = card.read_card(folder)
    return replace(
        info,
        base_model=_base_model(info.base_model, metadata.base_model),
        license=metadata.license,
        tags=metadata.tags,
        card=metadata.text,
    )


def outline(where: Path, tensors: Mapping[str, TensorEntry], *, configured: bool) -> Outline:
    """What the tensors of a file somewhere else are; ``where`` only names it in errors.

    ``configured`` is whether an adapter_config.json lies beside it.

    Raises:
        InvalidAdapterError: No adapter, or a damaged or hostile one.
    """
    for name, entry in tensors.items():
        if not (name + entry.dtype).isprintable():
            raise InvalidAdapterError(f"{where}: has control characters in its header, {name!r}")
        if min(entry.shape, default=0) < 0 or max(entry.shape, default=0) > _LARGEST_SIDE:
            raise InvalidAdapterError(f"{where}: tensor {name!r} has an impossible shape")
        if not 0 <= entry.start <= entry.stop <= _LARGEST_FILE:
            raise InvalidAdapterError(f"{where}: tensor {name!r} has impossible data_offsets")
    header = Header(tensors, {})
    config = {"peft_type": "LORA"} if configured else {}
    info = (peft if peft.is_peft(header, config) else foreign).inspect(where, header, config)
    ranks = info.ranks or (0,)
    return Outline(
        format=info.format,
        rank_min=ranks[0],
        rank_max=ranks[-1],
        targets=info.targets,
        dtype=info.dtype,
        modules=len(info.modules),
        weights_bytes=max((entry.stop for entry in tensors.values()), default=0),
    )


def find_weights(folder: Path) -> Path:
    """The one weights file of an adapter folder.

    Raises:
        InvalidAdapterError: There is none, or several that could be it.
        UnsupportedAdapterError: There are only files that need unpickling.
    """
    if not folder.is_dir():
        raise InvalidAdapterError(f"{folder}: is not a folder")
    usual = folder / "adapter_model.safetensors"
    if usual.is_file():
        return usual
    found = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidAdapterError(
            f"{folder}: has no adapter_model.safetensors but {len(found)} other weights files "
            f"({found[0].name}, {found[1].name} ...)",
            hint="keep one adapter per folder",
        )
    pickled = find_pickle(folder)
    if pickled:
        raise UnsupportedAdapterError(
            f"{pickled}: is a pickle, which can run code when it is loaded",
            hint="if you trust its author: `lorahub pull --allow-pickle`, which reads plain "
            "tensors only and converts them to safetensors",
        )
    if any(folder.glob("*.npz")):
        raise UnsupportedAdapterError(
            f"{folder}: holds an MLX adapter in .npz, which is not supported",
            hint="save it as safetensors in PEFT's format",
        )
    raise InvalidAdapterError(
        f"{folder}: is not an adapter: it has no adapter_model.safetensors",
        hint="name the folder that holds adapter_config.json and adapter_model.safetensors",
    )


def has_weights(folder: Path) -> bool:
    """Whether any file of a folder may hold weights, readable or not."""
    return find_pickle(folder) is not None or any(
        any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.npz")
    )


def _hash(path: Path, header: Header) -> tuple[str, dict[str, str], set[str]]:
    """sha256 of the file and of every tensor, and the names of tensors that are all zero."""
    hashes: dict[str, str] = {}
    silent: set[str] = set()
    whole = hashlib.sha256()
    try:
        with path.open("rb") as file:
            data_start = min((e.start for e in header.tensors.values()), default=None)
            for chunk in _chunks(path, file, data_start):
                whole.update(chunk)
            for name, entry in header.tensors.items():
                part, zero = hashlib.sha256(), True
                for chunk in _chunks(path, file, entry.stop - entry.start):
                    whole.update(chunk)
                    part.update(chunk)
                    zero = zero and chunk == _ZEROS[: len(chunk)]
                hashes[name] = part.hexdigest()
                if zero:
                    silent.add(name)
    except OSError as error:
        raise InvalidAdapterError(f"{path}: cannot be read ({error.strerror})") from error
    return whole.hexdigest(), hashes, silent


def _chunks(path: Path, file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The next ``size`` bytes of ``file``, or all that are left, in pieces that fit a cache."""
    left = sys.maxsize if size is None else size
    while left > 0:
        chunk = file.read(min(left, _CHUNK))
        if not chunk and size is None:
            return
        if not chunk:
            raise InvalidAdapterError(f"{path}: changed while it was read", hint="try again")
        left -= len(chunk)
        yield chunk


def _untrained(modules: tuple[Module, ...], silent: set[str]) -> tuple[str, ...]:
    zero = [m.name for m in modules if m.key_b in silent or m.key_a in silent]
    if not zero:
        return ()
    if len(zero) == len(modules):
        return ("all deltas are zero: it changes nothing, as before any training",)
    return (f"{len(zero)} of {len(modules)} modules have a zero delta (first: {zero[0]})",)


def _base_model(config: str | None, card: str | None) -> str | None:
    """The base model's name: the config's, unless only the card's means something elsewhere."""
    return card if card and canonical_base(config) is None else config
