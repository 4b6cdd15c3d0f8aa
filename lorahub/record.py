"""The record written beside every merged adapter (``lorahub.json``): from what, how, how well.

It holds nothing that differs between two executions of the same recipe on the same inputs, so
that its bytes are as reproducible as the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorahub.errors import IntegrityError
from lorahub.wording import first_wrong

FILE_NAME = "lorahub.json"
RECIPE_NAME = "recipe.yaml"
PACK_NAME = "adapter.mos"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Parent:
    """One source of a merge, pinned.

    Attributes:
        reference: Catalog name at the time of the merge; for the Hub ``owner/name@commit``,
            for a storage URL that URL.
        content_hash: sha256 identity of the adapter (config and weights).
        weight: The weight it was merged with.
        repo_id: ``owner/name`` when it came from the Hub, else None.
        revision: Commit (40 hex) when it came from the Hub, else None.
        endpoint: Hub endpoint when it is not the default one, else None.
        license: Licence its card states, or None.
        factor: What it was multiplied by to give all adapters the same norm; 1 where they were
            not normalised.
        weights: Weights by pattern, which replaced ``weight`` at the modules that they match;
            the first match decides.
    """

    reference: str
    content_hash: str
    weight: float
    repo_id: str | None = None
    revision: str | None = None
    endpoint: str | None = None
    license: str | None = None
    factor: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def pinned(self) -> str:
        """A reference that means the same source on another machine, where there can be one."""
        if self.endpoint and self.repo_id:
            return f"{self.endpoint.rstrip('/')}/{self.repo_id}@{self.revision}"
        return self.reference


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the written file is from its definition, recomputed in float64.

    Attributes:
        error: Frobenius distance of the written deltas from the method's definition, over all
            modules, relative to the norm of the exact weighted sum.
        worst_error: The same for the worst single module.
        worst_module: Name of that module.
        truncation: Distance of the written deltas from the exact weighted sum, relative to it.
        retained: Per parent, the share (0..1) of its squared norm that lies in the column and
            row spaces of the result.
        tolerance: What ``worst_error`` may be at most: for the dtype written, or what packing
            was found to cost.
    """

    error: float
    worst_error: float
    worst_module: str
    truncation: float
    retained: tuple[float, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every module is as near to its definition as its dtype allows."""
        return self.worst_error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Packed:
    """The pack beside a merged adapter, whose decoding the weights are.

    Attributes:
        ratio: How many times smaller than in bfloat16 was asked for, or None.
        limit: How many bytes were allowed, or None where a ratio was asked for.
        bytes: Bytes of the pack.
        sha256: sha256 (hex) of the pack.
        codec: What it was coded with.
        error: Relative Frobenius error of the packed deltas, over all modules.
        worst_error: That of the worst single module.
        tried: What each other code would have given: name, bytes, error.
    """

    ratio: float | None
    limit: int | None
    bytes: int
    sha256: str
    codec: str
    error: float
    worst_error: float
    tried: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Everything needed to understand, check and repeat a merge.

    Attributes:
        digest: sha256 (hex) over the plan: inputs by content, method, parameters, seed, dtype.
        lorahub: Version of lorahub that made it.
        method: Name of the method.
        parameters: The method's parameters, defaults included.
        scale: Factor the merged delta was multiplied by.
        normalize: Whether all adapters were given the same norm first.
        allocate: Rule that distributed the budget over the modules, or None without one.
        budget: Most parameters the result was allowed, or None.
        packed: The pack beside the weights, or None.
        seed: Seed of all random choices.
        dtype: safetensors dtype name of the written factors.
        base_model: Base model of the result, or None where its name is not known.
        parents: The sources in recipe order.
        modules: Number of target modules written.
        rank: Largest rank written.
        weights_sha256: sha256 (hex) of the weights file.
        verification: How far the result is from its definition.
        license: Licence under which all parents may be handed on together, or None.
        notes: What the method or the plan wanted remembered (e.g. partially shared modules).
        reports: By module name, what the method reported of it (e.g. clusters); may be empty.
    """

    digest: str
    lorahub: str
    method: str
    parameters: Mapping[str, Any]
    scale: float
    normalize: bool
    allocate: str | None
    budget: int | None
    packed: Packed | None
    seed: int
    dtype: str
    base_model: str | None
    parents: tuple[Parent, ...]
    modules: int
    rank: int
    weights_sha256: str
    verification: Verification
    license: str | None = None
    notes: tuple[str, ...] = ()
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``lorahub.json``."""
        body = {"version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = FILE_NAME) -> Record:
        """Parse ``lorahub.json``.

        Raises:
            IntegrityError: The text is no record, or one of a newer version.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            body = json.loads(text)
            version = body.pop("version")
            if version != FORMAT_VERSION:
                raise IntegrityError(
                    f"{where}: record version {version} is not {FORMAT_VERSION}",
                    hint="upgrade lorahub to read it",
                )
            record = TypeAdapter(cls).validate_python(body)
            for parent in record.parents:
                if not all(map(math.isfinite, (parent.weight, parent.factor))):
                    raise ValueError(f"the weight of '{parent.reference}' is not a finite number")
            return record
        except ValidationError as error:
            first = first_wrong(error)
            field = ".".join(map(str, first["loc"]))
            reason = f"{field}: {first['msg']}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)
        raise IntegrityError(
            f"{where}: not a lorahub record ({reason})",
            hint="the file was edited or damaged; merge again from the recipe",
        )

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder, or None where there is no ``lorahub.json``.

        Raises:
            IntegrityError: The file is there but no readable record.
        """
        path = folder / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path}: cannot be read ({error})") from error
        return cls.from_json(text, str(path))
