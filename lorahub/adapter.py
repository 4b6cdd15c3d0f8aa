"""The values everything else speaks of: references, modules, adapters and their scaling.

Notation follows the LoRA paper (Hu et al., arXiv 2106.09685): a target module has factors
``A`` (rank x d_in) and ``B`` (d_out x rank) and a scaling ``s``; its delta is ``s * B @ A``.
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lorahub.urls import is_url

DTYPE_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Floating dtypes factors may have, by their safetensors name, with bytes per value."""


class Source(StrEnum):
    """Where an adapter came from."""

    HUB = "hub"
    FOLDER = "folder"
    MERGE = "merge"
    STORE = "store"
    EXTRACT = "extract"


class ModuleKind(StrEnum):
    """How a delta meets its base weight; the factor algebra is the same for all kinds.

    ``linear`` covers ``nn.Linear`` and transformers' ``Conv1D`` (``fan_in_fan_out``);
    ``embedding`` has d_in = vocabulary and d_out = width, and its delta applies transposed.
    """

    LINEAR = "linear"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Module:
    """One target module of an adapter, as its tensors say (never as the config claims).

    Attributes:
        name: Path inside the base model, e.g. ``model.layers.0.self_attn.q_proj``.
        kind: How the delta meets the base weight.
        rank: Rows of A = columns of B.
        d_in: Columns of A.
        d_out: Rows of B.
        dtype_a: safetensors dtype name of A.
        dtype_b: safetensors dtype name of B.
        alpha: LoRA alpha that applies to this module.
        scaling: Factor ``s`` of the delta: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        key_a: Tensor key of A in the weights file.
        key_b: Tensor key of B in the weights file.
        hash_a: sha256 (hex) of A's bytes; empty until the bytes were read.
        hash_b: sha256 (hex) of B's bytes; empty until the bytes were read.
    """

    name: str
    kind: ModuleKind
    rank: int
    d_in: int
    d_out: int
    dtype_a: str
    dtype_b: str
    alpha: float
    scaling: float
    key_a: str
    key_b: str
    hash_a: str = ""
    hash_b: str = ""

    @property
    def parameters(self) -> int:
        """Number of values in A and B."""
        return self.rank * (self.d_in + self.d_out)

    @property
    def target(self) -> str:
        """Last part of the name, the module type: ``q_proj``."""
        return self.name.rsplit(".", 1)[-1]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an adapter can be catalogued but not merged.

    Attributes:
        code: Stable identifier, e.g. ``dora``, ``modules_to_save``, ``format``.
        message: The reason in one sentence, naming the field or tensor.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What inspecting an adapter's files tells, from headers and config alone.

    Attributes:
        format: File format by name: ``peft``, or another that is only recognised.
        peft_type: PEFT's type name (``LORA``, ``LOHA`` ...), or None where there is none.
        base_model: Base model as the adapter names it, or None.
        task_type: PEFT task type, or None.
        modules: Target modules sorted by name.
        refusals: Reasons not to merge it; empty when the plan may accept it.
        warnings: Oddities worth showing that do not prevent a merge.
        config: adapter_config.json exactly as found (unknown fields included).
        weights_file: Name of the weights file inside the adapter's folder.
        weights_bytes: Size of that file in bytes.
        weights_sha256: sha256 (hex) of that file; empty until the bytes were read.
        config_sha256: sha256 (hex) of adapter_config.json; empty when there is none.
        license: Licence the card states, or None.
        tags: Tags the card states.
        card: README.md text without its metadata block; empty when there is none.
    """

    format: str
    peft_type: str | None
    base_model: str | None
    task_type: str | None
    modules: tuple[Module, ...]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    config: Mapping[str, Any]
    weights_file: str
    weights_bytes: int
    weights_sha256: str = ""
    config_sha256: str = ""
    license: str | None = None
    tags: tuple[str, ...] = ()
    card: str = ""

    @property
    def content_hash(self) -> str:
        """Identity of the adapter: sha256 (hex) over the hashes of its config and weights."""
        return content_hash_of(self.config_sha256, self.weights_sha256)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Distinct ranks, ascending."""
        return tuple(sorted({m.rank for m in self.modules}))

    @property
    def targets(self) -> tuple[str, ...]:
        """Distinct module types (last name parts), sorted."""
        return tuple(sorted({m.target for m in self.modules}))

    @property
    def dtype(self) -> str:
        """The one dtype of all factors, ``mixed``, or ``-`` without factors."""
        return common_dtype(self.modules, mixed="mixed")

    @property
    def parameters(self) -> int:
        """Number of values in all factors."""
        return sum(m.parameters for m in self.modules)


def content_hash_of(config_sha256: str, weights_sha256: str) -> str:
    """`AdapterInfo.content_hash` from the sha256 (hex) of its two files; empty where none is."""
    text = f"adapter_config.json {config_sha256}\nweights {weights_sha256}\n"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outline:
    """What the header of a weights file tells of an adapter that nobody downloaded.

    Attributes:
        format: File format by name, as in `AdapterInfo`.
        rank_min: Smallest rank, 0 where no factors were recognised.
        rank_max: Largest rank, 0 where no factors were recognised.
        targets: Distinct module types, sorted.
        dtype: The one dtype of all factors, ``mixed``, or ``-`` without factors.
        modules: Number of target modules.
        weights_bytes: Bytes of all tensors.
    """

    format: str
    rank_min: int
    rank_max: int
    targets: tuple[str, ...]
    dtype: str
    modules: int
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the bytes of an adapter are and how to get them again.

    Attributes:
        source: Hub, folder, merge, a storage URL, or extracted from two models.
        folder: Absolute local folder that holds the files now.
        repo_id: ``owner/name`` for the Hub, else None.
        revision: Commit (40 hex) for the Hub, else None.
        requested_revision: The branch or tag that was asked for, or None for the default.
        endpoint: Address of the Hub; for a storage URL that URL; or None.
    """

    source: Source
    folder: Path
    repo_id: str | None = None
    revision: str | None = None
    requested_revision: str | None = None
    endpoint: str | None = None

    @property
    def url(self) -> str | None:
        """The storage URL that it was downloaded from, or None."""
        return self.endpoint if self.source is Source.STORE else None


class Confidence(StrEnum):
    """How well the base model of an adapter is known; the first two are enough to merge."""

    CERTAIN = "certain"
    LIKELY = "likely"
    GUESS = "guess"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """The canonical base model behind the name that an adapter states.

    Attributes:
        name: Its Hub id, or None where nobody knows it.
        confidence: How well it is known.
        reason: Why it is taken to be that, in words.
    """

    name: str | None
    confidence: Confidence
    reason: str

    @property
    def sure(self) -> bool:
        """Whether a merge may rely on it."""
        return self.confidence in (Confidence.CERTAIN, Confidence.LIKELY)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A catalogued adapter: a unique name, where it is, and what it is.

    Attributes:
        name: Unique name in the catalog.
        origin: Where the bytes are.
        info: What inspection told.
        id: Catalog row id, 0 when not catalogued.
        method: Merge method that made it, or None.
        created_at: ISO 8601 UTC time it was catalogued; empty when it is not.
        base: Its base model as the catalog knows it; None when not catalogued.
    """

    name: str
    origin: Origin
    info: AdapterInfo
    id: int = 0
    method: str | None = None
    created_at: str = ""
    base: BaseIdentity | None = None

    @property
    def weights_path(self) -> Path:
        """Absolute path of the weights file."""
        return self.origin.folder / self.info.weights_file


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as a user types it, parsed but not resolved.

    ``owner/name[@revision]`` and ``hf://owner/name[@revision]`` mean the Hub,
    ``https://HOST/owner/name[@revision]`` another one, any other address with ``://`` a folder at
    a storage URL (``s3://BUCKET/FOLDER``), a path that starts with ``.``, ``/`` or ``~`` a
    folder, ``FILE.mos#NAME`` a member of a pack, everything else a catalog name or id.
    ``owner/name`` may also be a catalog name or an existing folder; resolving decides.

    Attributes:
        text: Exactly what was typed.
        repo_id: ``owner/name`` when it can mean a Hub repository, else None.
        revision: What stood behind ``@``, else None.
        is_path: Whether it can only be a folder.
        is_hub: Whether it can only be a Hub repository (``hf://``, ``https://``).
        endpoint: Address of the Hub, where it is named (``https://HOST``), else None.
        pack: Path of a pack file, for a member of one (``FILE.mos#NAME``), else None.
        member: Name of that member, else None.
        is_url: Whether it is a storage URL.
    """

    text: str
    repo_id: str | None = None
    revision: str | None = None
    is_path: bool = False
    is_hub: bool = False
    endpoint: str | None = None
    pack: str | None = None
    member: str | None = None
    is_url: bool = False

    _PACK = re.compile(r"(?P<file>.+\.mos)(?:#(?P<member>.+))?\Z", re.DOTALL)
    _HUB = re.compile(
        r"(?:hf://|(?P<endpoint>https?://[^\s@]+?)/)?"
        r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:(?:@|/tree/)(?P<rev>[\w./-]+))?\Z",
        re.ASCII,
    )

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse one reference; never fails, since any other text may be a catalog name."""
        if is_url(text):
            return cls(text, is_url=True)
        packed = cls._PACK.match(text)
        if packed is not None:
            return cls(text, pack=packed["file"], member=packed["member"])
        if text.startswith(("/", "./", "../", "~")) or text in {".", ".."}:
            return cls(text, is_path=True)
        match = cls._HUB.match(text)
        if match is None:
            return cls(text)
        is_hub = text.startswith(("hf://", "http://", "https://"))
        return cls(text, match["repo"], match["rev"], is_hub=is_hub, endpoint=match["endpoint"])


_LOCAL_PATH = re.compile(r"^(?:[A-Za-z]:[\\/]|[/\\~.])|\\|/.*/")


def canonical_base(name: object) -> str | None:
    """Hub id of a base model as a config names it, or None for what cannot be one.

    Empty values, placeholders, absolute, relative, home and Windows paths name no model that
    another machine can find, and so never count as a known base.
    """
    if not isinstance(name, str):
        return None
    text = name.strip()
    if not text or text.lower() in {"none", "null", "base_model", "unknown"}:
        return None
    if _LOCAL_PATH.search(text) or not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", text, re.ASCII):
        return None
    return text


def lora_scaling(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """Scaling ``s`` of a delta: alpha / rank, or alpha / sqrt(rank) for rsLoRA (2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def common_dtype(modules: Iterable[Module], *, mixed: str = "F32") -> str:
    """The dtype all factors share, ``mixed`` where they differ, ``-`` where there are none."""
    dtypes = {d for m in modules for d in (m.dtype_a, m.dtype_b)}
    return dtypes.pop() if len(dtypes) == 1 else mixed if dtypes else "-"
