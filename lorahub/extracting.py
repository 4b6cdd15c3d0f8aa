"""Extracting a LoRA from two full models: pin them, extract, record, catalogue; and check it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source, canonical_base
from lorahub.config import Config
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidAdapterError,
    InvalidRecipeError,
    LorahubError,
    NotFoundError,
    StorageError,
    UsageError,
    VerificationError,
)
from lorahub.events import Advanced, Listener, PhaseStarted, Warned
from lorahub.extraction import FILE_NAME, Extraction, LeftOut, ModelSource
from lorahub.extraction_plan import ExtractionPlan, PlannedModule, Request
from lorahub.formats import checkpoint
from lorahub.formats.card import read_card
from lorahub.integrity import check_unchanged, file_sha256
from lorahub.merging import closing_run, output_of
from lorahub.output import held, new_folder, writing
from lorahub.record import Parent, Verification
from store import Catalog, RunDraft

if TYPE_CHECKING:
    from lorahub.engine.model_pair import ModelPair

_WEIGHTS = "adapter_model.safetensors"
_SNAPSHOT = re.compile(
    r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})/?\Z"
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Outcome of an extraction; ``state`` is ``unchanged`` when the same was already there."""

    adapter: Adapter
    record: Extraction
    state: Literal["extracted", "unchanged"]


class Extractor:
    """Extracts into one data folder and its catalog."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog

    def plan(self, request: Request) -> ExtractionPlan:
        """What a request would write; see `lorahub.workspace.Workspace.plan_extraction`."""
        from lorahub.engine.model_pair import ModelPair

        _check(request)
        folders = _folders(request)
        with ModelPair.open(*folders) as pair:
            shapes = [(name, pair.shape(name)) for name in pair.modules]
            return ExtractionPlan(
                request.base_model or _repo_of(pair.base.folder)[0] or _named(folders[0]),
                request.dtype or pair.dtype,
                tuple(
                    PlannedModule(name, *shape, min(request.rank or min(shape), *shape))
                    for name, shape in shapes
                ),
            )

    def extract(self, request: Request, *, force: bool, listener: Listener) -> Extracted:
        """Execute a request; see `lorahub.workspace.Workspace.extract`."""
        from lorahub.engine.model_pair import ModelPair

        _check(request)
        name, target = output_of(request.name, request.folder, self._config)
        with ModelPair.open(*_folders(request)) as pair:
            job = _job(pair, request, name, target, listener)
            # Until it is catalogued: another process that found it would catalogue it too.
            with writing(target, self._config.home / "locks"):
                known = self._catalog.by_name(name)
                done = self._already_there(job, known, force=force)
                done = done or self._made(pair, job, known, force=force, listener=listener)
        shutil.rmtree(self._work(job), ignore_errors=True)
        return done

    def _made(
        self, pair: ModelPair, job: _Job, known: Adapter | None, *, force: bool, listener: Listener
    ) -> Extracted:
        """A new result, where nobody else writes it."""
        if job.base_model is None:
            text = "the name of the base model is not known; give it with --base owner/name"
            listener(Warned(text))
        self._catalog.sweep_dead_runs()
        run_id = self._catalog.begin_run(job.draft)
        work, locks = self._work(job), self._config.home / "locks"
        with closing_run(self._catalog, run_id):
            with new_folder(job.target, replace=force) as partial, _kept(work, locks):
                record = _write(pair, job, partial, work, listener)
            adapter = self._catalogue(run_id, job, record, known)
        return Extracted(adapter, record, "extracted")

    def _work(self, job: _Job) -> Path:
        """Folder of the modules that are finished."""
        return self._config.home / "extractions" / job.digest

    def verify(self, adapter: Adapter, record: Extraction, listener: Listener) -> Verification:
        """Recompute an extracted adapter; see `lorahub.workspace.Workspace.verify`."""
        from lorahub.engine.extract import verify
        from lorahub.engine.model_pair import ModelPair

        check_unchanged(adapter)
        if record.weights_sha256 != adapter.info.weights_sha256:
            raise IntegrityError(f"the weights of '{adapter.name}' are not those of its record")
        folders = [Path(p.reference) for p in self._catalog.parents(adapter.id)]
        if not folders:
            raise NotFoundError(
                f"the catalog does not know which models '{adapter.name}' was extracted from",
                hint="extract it again",
            )
        with ModelPair.open(*folders) as pair:
            pinned = _pinned(pair, listener)
            for folder, now, then in zip(
                folders, pinned, (record.base, record.finetuned), strict=True
            ):
                if now.files != then.files:
                    raise IntegrityError(
                        f"the weights in {folder} changed since '{adapter.name}' was extracted",
                        hint="extract it again",
                    )
            check = verify(
                pair,
                adapter.weights_path,
                adapter.info.modules,
                dtype=record.dtype,
                listener=listener,
            )
        if not check.passed:
            raise VerificationError(
                f"'{adapter.name}' is off by {check.worst_error:.1e} in module "
                f"'{check.worst_module}', {check.tolerance:.0e} is allowed",
                hint="this is a defect of lorahub or of the files; please report it",
            )
        return check

    def _already_there(self, job: _Job, known: Adapter | None, *, force: bool) -> Extracted | None:
        """The same result if it stands there already; room for it otherwise."""
        target = job.target
        record = Extraction.read(target) if target.is_dir() and not force else None
        if (
            record is not None
            and record.digest == job.digest
            and (known is None or known.origin.folder == target)
            and file_sha256(target / _WEIGHTS) == record.weights_sha256
        ):
            if known is None:  # finished by a process that was killed before it could say so
                known = self._catalogue(self._catalog.begin_run(job.draft), job, record, None)
            return Extracted(known, record, "unchanged")
        if known is not None and not force:
            raise ConflictError(
                f"an adapter named '{job.name}' is already in the catalog",
                hint="choose another --name, or pass --force to replace it",
            )
        return None

    def _catalogue(
        self, run_id: int, job: _Job, record: Extraction, replaced: Adapter | None
    ) -> Adapter:
        origin = Origin(Source.EXTRACT, job.target)
        adapter = Adapter(job.name, origin, formats.inspect(job.target), method="extract")
        # The result is the fine-tuned model minus the base model.
        models = zip(
            _folders(job.request), (record.base, record.finetuned), (-1.0, 1.0), strict=True
        )
        parents = [
            Parent(
                str(folder), source.content_hash, weight, source.repo_id, source.revision,
                license=source.license,
            )
            for folder, source, weight in models
        ]  # fmt: skip
        return self._catalog.finish_run(
            run_id,
            adapter,
            [(parent, None) for parent in parents],
            record.to_json(),
            replaces=replaced.id if replaced else None,
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A request with all that determines its result."""

    request: Request
    name: str
    target: Path
    base: ModelSource
    finetuned: ModelSource
    dtype: str
    base_model: str | None
    digest: str

    @property
    def draft(self) -> RunDraft:
        return RunDraft(self.digest, "", "extract", str(self.target))


def _job(pair: ModelPair, request: Request, name: str, target: Path, listener: Listener) -> _Job:
    base, finetuned = _pinned(pair, listener)
    dtype = request.dtype or pair.dtype
    base_model = request.base_model or base.repo_id or _named(pair.base.folder)
    digest = _digest(base, finetuned, request, dtype, base_model)
    return _Job(request, name, target, base, finetuned, dtype, base_model, digest)


@contextmanager
def _kept(work: Path, locks: Path) -> Iterator[None]:
    """Hold the folder of finished modules, which stays when the block is stopped.

    It goes when the block fails for a reason that repeating it would not change.
    """
    busy = "another lorahub is extracting just this right now"
    with held(locks / f"{work.name[:32]}.lock", busy):
        work.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except StorageError:
            raise
        except LorahubError:
            shutil.rmtree(work, ignore_errors=True)
            raise


def _write(pair: ModelPair, job: _Job, folder: Path, work: Path, listener: Listener) -> Extraction:
    from lorahub.card import render_extraction
    from lorahub.engine.extract import extract, overall_error
    from lorahub.engine.plan import LORAHUB_VERSION

    if pair.dtypes_differ:
        listener(Warned("the two models are stored in different dtypes: what rounding did counts"))
    left_out = tuple(pair.left_out())
    _warn_of(left_out, listener)
    modules, unchanged = extract(
        pair,
        work,
        folder / _WEIGHTS,
        rank=job.request.rank,
        energy=job.request.energy,
        dtype=job.dtype,
        listener=listener,
    )
    config = formats.peft.config_for(
        {m.name: m.rank for m in modules},
        base_model=job.base_model,
        task_type=None,
        fan_in_fan_out=pair.transposed,
    )
    (folder / formats.peft.CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    info = formats.inspect(folder)
    record = Extraction(
        digest=job.digest,
        lorahub=LORAHUB_VERSION,
        base=job.base,
        finetuned=job.finetuned,
        base_model=job.base_model,
        rank=job.request.rank,
        energy=job.request.energy,
        dtype=job.dtype,
        error=overall_error(modules),
        modules=modules,
        unchanged=unchanged,
        left_out=left_out,
        weights_sha256=info.weights_sha256,
    )
    (folder / FILE_NAME).write_text(record.to_json(), encoding="utf-8")
    card = render_extraction(record, info, name=job.name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return record


def _warn_of(left_out: tuple[LeftOut, ...], listener: Listener) -> None:
    """One warning for each tensor of another shape or of one model alone, one for the others."""
    changed = [t for t in left_out if t.reason == "changed"]
    for tensor in left_out:
        if tensor.reason != "changed":
            listener(Warned(f"not in the adapter: '{tensor.name}' {tensor.reason}"))
    if changed:
        most = max(changed, key=lambda t: t.change or 0.0)
        by = "" if most.change is None else f" by {most.change:.2%}"
        listener(
            Warned(
                f"not in the adapter: {len(changed)} tensors that changed but are no linear weight "
                f"of a block (most: '{most.name}'{by})"
            )
        )


def _folders(request: Request) -> list[Path]:
    return [p.expanduser().absolute() for p in (request.base, request.finetuned)]


def _check(request: Request) -> None:
    if request.rank is None and request.energy is None:
        raise UsageError("an extraction needs a size", hint="give --rank K, --energy 0.9, or both")
    if request.rank is not None and request.rank < 1:
        raise InvalidRecipeError(f"rank {request.rank} is no rank", hint="give 1 or more")
    if request.energy is not None and not 0 < request.energy <= 1:
        raise InvalidRecipeError(
            f"energy {request.energy} is no share", hint="give a number over 0, up to 1"
        )
    if request.dtype not in {None, "F32", "F16", "BF16"}:
        raise InvalidRecipeError(f"dtype '{request.dtype}' is not one of F32, F16, BF16")
    if request.base_model is not None and canonical_base(request.base_model) is None:
        raise InvalidRecipeError(
            f"base model '{request.base_model}' is not a Hub id", hint="give it as owner/name"
        )


def _pinned(pair: ModelPair, listener: Listener) -> tuple[ModelSource, ModelSource]:
    """Both models with the hashes of their weights."""
    models = (pair.base, pair.finetuned)
    listener(PhaseStarted("hash", sum(len(m.files) for m in models), "files"))
    done, found = 0, []
    for model in models:
        hashes: dict[str, str] = {}
        for file in model.files:
            try:
                hashes[file.path.name] = file_sha256(file.path)
            except OSError as error:
                raise InvalidAdapterError(
                    f"{file.path}: cannot be read ({error.strerror})"
                ) from error
            done += 1
            listener(Advanced("hash", done, file.path.name))
        repo_id, commit = _repo_of(model.folder)
        found.append(
            ModelSource(
                name=repo_id or model.folder.name,
                files=hashes,
                repo_id=repo_id,
                revision=commit,
                license=read_card(model.folder).license,
            )
        )
    return found[0], found[1]


def _repo_of(folder: Path) -> tuple[str | None, str | None]:
    """(``owner/name``, commit) of a folder that belongs to the Hub's cache."""
    found = _SNAPSHOT.search(folder.as_posix())
    return (f"{found['owner']}/{found['name']}", found["commit"]) if found else (None, None)


def _named(folder: Path) -> str | None:
    """The Hub id that a model's config says it was loaded from."""
    return canonical_base(checkpoint.read_config(folder).get("_name_or_path"))


def _digest(
    base: ModelSource,
    finetuned: ModelSource,
    request: Request,
    dtype: str,
    base_model: str | None,
) -> str:
    """sha256 (hex) over everything that determines the result's bytes."""
    from lorahub.engine.plan import LORAHUB_VERSION

    body = {
        "lorahub": LORAHUB_VERSION,
        "base": dict(base.files),
        "finetuned": dict(finetuned.files),
        "rank": request.rank,
        "energy": request.energy,
        "dtype": dtype,
        "base_model": base_model,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
