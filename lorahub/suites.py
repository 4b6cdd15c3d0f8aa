"""Suites: what an adapter is scored by.

A suite is the word ``factors``, for figures from factors alone, or a YAML file with one of::

    command: [python, score.py]     # gets the adapter's folder as its last argument
    function: package.module:name   # is called with the folder
    harness: {tasks: [hellaswag]}   # tasks of lm-evaluation-harness
    perplexity: {text: held-out.txt}

A command prints a JSON object of numbers by name, as the last line of its output or as the whole
of it; a function returns one. The last two load the adapter on its base model, with transformers
and PEFT (see `lorahub.evaluators`). All of them run in processes of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorahub.adapter import Adapter, canonical_base
from lorahub.errors import EvaluationError
from lorahub.plot import bars, svg
from lorahub.recipe import Dtype
from lorahub.recipe_file import RecipeFile
from lorahub.suite_process import Process, Server
from lorahub.wording import first_wrong

FACTORS = "factors"
"""The suite that needs no data."""

REFUSED = "refused"
"""What an evaluator of lorahub's own gives instead of figures: a message and a hint."""

STDERR = "_stderr"
"""What the name of a figure's standard error ends in."""

_KINDS = ("command", "function", "harness", "perplexity")


class ModelSpec(BaseModel):
    """The model that an adapter is loaded on.

    Attributes:
        base: Its Hub id, maybe with ``@revision``, or its folder; the adapter's own without one.
        dtype: What it computes in; what it is stored in without one.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Annotated[str | None, Field(min_length=1)] = None
    dtype: Dtype | None = None
    device: Annotated[str, Field(min_length=1)] = "auto"


class Harness(ModelSpec):
    """Tasks of lm-evaluation-harness.

    Attributes:
        tasks: Names of tasks, groups or tags.
        include: Folder with YAML files of further tasks; theirs are preferred.
        num_fewshot: Examples before each question; what the task says without one.
        limit: How many documents of each task, or which share below 1; all without one.
        batch_size: How many requests at a time; ``auto`` tries what fits.
    """

    tasks: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    include: Path | None = None
    num_fewshot: Annotated[int | None, Field(ge=0)] = None
    limit: Annotated[int | float | None, Field(gt=0, allow_inf_nan=False)] = None
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 1


class Perplexity(ModelSpec):
    """Perplexity on a text.

    Attributes:
        text: File with the text, in UTF-8.
        window: Tokens that the model sees at a time; what it can see without one, 2,048 at most.
        stride: Tokens by which the window moves on; half of it without one.
    """

    text: Path
    window: Annotated[int | None, Field(ge=2)] = None
    stride: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _overlap(self) -> Self:
        if self.window is not None and self.stride is not None and self.stride >= self.window:
            raise ValueError("the stride has to be smaller than the window")
        return self


def _not_factors(name: str) -> str:
    if name == FACTORS:
        raise ValueError(f"'{FACTORS}' is the suite that needs no file: give another 'name'")
    return name


class Suite(BaseModel):
    """A suite that runs in processes of its own.

    Attributes:
        name: What results are stored under; the file's name without one.
        command: Program and arguments; the adapter's folder is added.
        function: ``package.module:name``, importable from the suite's folder.
        harness: Tasks of lm-evaluation-harness.
        perplexity: Perplexity on a text.
        timeout: Seconds for an adapter, after which it is ended.
        folder: Where it runs: the folder of the suite's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_not_factors)]
    command: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None
    function: Annotated[str | None, Field(pattern=r"^[\w.]+:\w+$")] = None
    harness: Harness | None = None
    perplexity: Perplexity | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600
    folder: Path = Path()

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _KINDS) != 1:
            raise ValueError(f"needs one of {', '.join(_KINDS[:-1])} and {_KINDS[-1]}")
        return self

    def start(self) -> RunningSuite:
        """The suite for several adapters, between which it keeps what it has loaded."""
        return RunningSuite(self)

    def run(self, adapter: Adapter) -> dict[str, float]:
        """Figures of an adapter, as `RunningSuite.run`."""
        with self.start() as running:
            return running.run(adapter)


class RunningSuite:
    """A suite with its process; a context that ends it."""

    def __init__(self, suite: Suite) -> None:
        """Start nothing yet."""
        self.name = suite.name
        self._suite = suite
        self._spec: ModelSpec | None = suite.harness or suite.perplexity
        own = f"lorahub.evaluators.{'harness' if suite.harness else 'perplexity'}:score"
        function = own if self._spec else suite.function or ""
        self._server = Server(suite.name, function, suite.folder, own=self._spec is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.end()

    def run(self, adapter: Adapter) -> dict[str, float]:
        """Figures of an adapter.

        Raises:
            EvaluationError: The suite cannot be started, fails, takes too long, or gives no
                figures; or it needs a base model, and none is known.
        """
        suite, folder = self._suite, str(adapter.origin.folder)
        if suite.command is not None:
            process = Process(suite.name, [*suite.command, folder], suite.folder)
            try:
                printed = process.finish(suite.timeout)
            finally:
                process.end()
            return self._figures(printed)
        arguments: list[object] = [folder]
        if self._spec is not None:
            base = self._spec.base or self._base(adapter)
            arguments = [self._spec.model_dump(mode="json") | {"base": base}, folder]
        answer = self._server.call(arguments, suite.timeout)
        if self._spec is not None and REFUSED in (given := json.loads(answer)):
            message, hint = given[REFUSED]
            raise EvaluationError(f"suite '{self.name}': {message}", hint=hint)
        return self._figures(answer)

    def _base(self, adapter: Adapter) -> str:
        """The adapter's own base model: the folder it states if it is here, or a Hub id."""
        stated, known = adapter.info.base_model, adapter.base
        if stated and canonical_base(stated) is None and Path(stated).is_dir():
            return str(Path(stated).absolute())
        if known is not None and known.name is not None and known.sure:
            return known.name
        raise EvaluationError(
            f"suite '{self.name}': the base model of '{adapter.name}' is not known for sure",
            hint="give 'base' in the suite, or say what the stated name means: "
            "`lorahub base alias`",
        )

    def _figures(self, text: str) -> dict[str, float]:
        for candidate in (text, text.strip().rpartition("\n")[2]):
            try:
                body = json.loads(candidate)
            except (ValueError, RecursionError):
                continue
            break
        else:
            shown = " ".join(text.split())[:80]
            raise EvaluationError(
                f"suite '{self.name}' printed no JSON: '{shown}'",
                hint="its last line has to be an object of numbers by name",
            )
        if not isinstance(body, dict) or not body:
            raise EvaluationError(f"suite '{self.name}' gave no object of numbers by name")
        figures = {}
        for key, value in body.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not key.isprintable():
                raise EvaluationError(f"suite '{self.name}': {key!r} is no finite number")
            figures[key] = float(value)
        return figures


def load_suite(path: Path) -> Suite:
    """Read a suite's file.

    Raises:
        InvalidRecipeError: It cannot be read, or is no suite.
    """
    hint = f"a suite has one of {', '.join(_KINDS)}, and maybe 'name' and 'timeout'"
    file = RecipeFile(path, kind="suite", hint=hint)
    try:
        given = {"name": path.stem} | file.body | {"folder": path.absolute().parent}
        return Suite.model_validate(given)
    except ValidationError as error:
        first = first_wrong(error)
        raise file.wrong(first["loc"], first["msg"], hint) from error


def chart(found: Mapping[str, Mapping[str, float]]) -> str:
    """Bars that compare adapters, one panel a figure.

    Args:
        found: Figures by adapter; a figure's standard error is named as it is, with ``_stderr``
            behind.

    Returns:
        The text of an SVG file.
    """
    names = dict.fromkeys(name for figures in found.values() for name in figures)
    errors = {f"{name}{STDERR}" for name in names}
    panels = [
        bars(name, [
            (adapter, figures[name], figures.get(f"{name}{STDERR}", 0.0))
            for adapter, figures in found.items()
            if name in figures
        ])
        for name in names
        if name not in errors
    ]  # fmt: skip
    return svg("What a suite found of adapters", panels)


def merged_figures(
    cosines: Mapping[tuple[int, int], float], norms: list[float], weights: list[float]
) -> dict[str, float]:
    """How a sum's parts get along: from the cosines and norms of its deltas.

    ``interference`` is 1 less the squared norm of the weighted sum over what it would be if all
    deltas were orthogonal: positive where they cancel, negative where they add up.
    """
    parts = [w * n for w, n in zip(weights, norms, strict=True)]
    apart = sum(p * p for p in parts)
    together = apart + 2 * sum(parts[i] * parts[j] * c for (i, j), c in cosines.items())
    return {"interference": 1 - together / apart if apart else 0.0}
