"""The record beside an extracted adapter (``extracted.json``): from which models, how well.

As the record of a merge, it holds nothing that differs between two executions on the same inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorahub.errors import IntegrityError

FILE_NAME = "extracted.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One of the two models, pinned.

    Attributes:
        name: ``owner/name`` where its folder belongs to the Hub's cache, else the folder's name.
        files: sha256 (hex) of each weights file, by name.
        repo_id: ``owner/name`` on the Hub, or None.
        revision: Commit (40 hex) on the Hub, or None.
        license: Licence its card states, or None.
    """

    name: str
    files: Mapping[str, str]
    repo_id: str | None = None
    revision: str | None = None
    license: str | None = None

    @property
    def content_hash(self) -> str:
        """Identity of the weights: sha256 (hex) over the hashes of their files."""
        text = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(self.files.items()))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ExtractedModule:
    """What became of one linear weight that differs.

    Attributes:
        name: Path of the module inside the model.
        d_out: Rows of B.
        d_in: Columns of A.
        rank: Rank it was given.
        change: Frobenius norm of the difference relative to the base weight's.
        error: Frobenius distance of what was written from the difference, relative to it.
        norm: Frobenius norm of the difference.
    """

    name: str
    d_out: int
    d_in: int
    rank: int
    change: float
    error: float
    norm: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that differs between the models and is not in the adapter.

    Attributes:
        name: Tensor name in the fine-tuned model, or in the base where only that has it.
        reason: How it differs, in words.
        change: Frobenius norm of the difference of the values that both have, relative to the
            base's; None where it was not computed.
    """

    name: str
    reason: str
    change: float | None


@dataclass(frozen=True, slots=True)
class Extraction:
    """Everything needed to understand, check and repeat an extraction.

    Attributes:
        digest: sha256 (hex) over the models' files and the parameters.
        lorahub: Version of lorahub that made it.
        base: The base model.
        finetuned: The fine-tuned model.
        base_model: Hub id of the base model, or None where it is not known.
        rank: Largest rank that was asked for, or None.
        energy: Share of each difference's squared norm that was asked for, or None.
        dtype: safetensors dtype name of the written factors.
        error: Frobenius distance of all modules from their differences, relative to them.
        modules: One entry per module written, by name.
        unchanged: Names of the linear weights that are the same in both models.
        left_out: Other tensors that differ.
        weights_sha256: sha256 (hex) of the weights file.
    """

    digest: str
    lorahub: str
    base: ModelSource
    finetuned: ModelSource
    base_model: str | None
    rank: int | None
    energy: float | None
    dtype: str
    error: float
    modules: tuple[ExtractedModule, ...]
    unchanged: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    weights_sha256: str

    @property
    def kept(self) -> float:
        """Share (0..1) of the squared norm of all differences that the adapter holds."""
        return max(0.0, 1 - self.error**2)

    def to_json(self) -> str:
        """The text of ``extracted.json``."""
        body = {"version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Extraction | None:
        """The record in a folder, or None where there is no ``extracted.json``.

        Raises:
            IntegrityError: The file is there but is no record, or one of a newer version.
        """
        path = folder / FILE_NAME
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            version = body.pop("version")
            if version == FORMAT_VERSION:
                return cls._from(body)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{path}: is no record of an extraction ({error})",
                hint="the file was edited or damaged; extract again",
            ) from error
        raise IntegrityError(
            f"{path}: record version {version} is not {FORMAT_VERSION}",
            hint="upgrade lorahub to read it",
        )

    @classmethod
    def _from(cls, body: dict[str, Any]) -> Extraction:
        body["base"] = ModelSource(**body["base"])
        body["finetuned"] = ModelSource(**body["finetuned"])
        body["modules"] = tuple(ExtractedModule(**m) for m in body["modules"])
        body["left_out"] = tuple(LeftOut(**t) for t in body["left_out"])
        body["unchanged"] = tuple(body["unchanged"])
        return cls(**body)
