"""Suites: what an adapter is scored by, and running the user's own commands and functions.

A suite is the word ``factors``, for figures from factors alone, or a YAML file::

    command: [python, score.py]     # gets the adapter's folder as its last argument
    timeout: 600

or, instead of a command, ``function: package.module:name``, which is called with the folder in a
process of its own. Both give a JSON object of numbers by name: a command prints it, as the last
line of its output or as the whole of it; a function returns it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorahub.errors import EvaluationError, InvalidRecipeError
from lorahub.recipe_file import RecipeFile, dotted

FACTORS = "factors"
"""The suite that needs no data."""

_MOST_OUTPUT = 1 << 20

_CALL = """\
import importlib, json, os, sys
module, _, name = sys.argv[1].partition(":")
sys.path.insert(0, os.getcwd())
function = getattr(importlib.import_module(module), name)
print("\\n" + json.dumps(dict(function(sys.argv[2]))))
"""


class Suite(BaseModel):
    """A suite that runs something of the user's.

    Attributes:
        name: What results are stored under; the file's name without one.
        command: Program and arguments; the adapter's folder is added.
        function: ``package.module:name``, importable from the suite's folder.
        timeout: Seconds after which it is ended.
        folder: Where it runs: the folder of the suite's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    command: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None
    function: Annotated[str | None, Field(pattern=r"^[\w.]+:\w+$")] = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600
    folder: Path = Path()

    @model_validator(mode="after")
    def _one_of_two(self) -> Suite:
        if (self.command is None) == (self.function is None):
            raise ValueError("needs either a command or a function")
        return self

    def run(self, folder: Path) -> dict[str, float]:
        """Figures of the adapter in ``folder``.

        The environment is that of this process; nothing is added to it.

        Raises:
            EvaluationError: It cannot be started, fails, takes too long, or gives no figures.
        """
        if self.function is not None:
            words = [sys.executable, "-c", _CALL, self.function, str(folder)]
        else:
            words = [*(self.command or ()), str(folder)]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                child = subprocess.Popen(  # noqa: S603 - running it is what the user asks for
                    words,
                    cwd=self.folder,
                    env=os.environ.copy(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            except OSError as error:
                raise EvaluationError(
                    f"suite '{self.name}': '{words[0]}' cannot be started ({error.strerror})",
                    hint="correct 'command' in the suite",
                ) from error
            try:
                code = child.wait(self.timeout)
            except subprocess.TimeoutExpired as error:
                raise EvaluationError(
                    f"suite '{self.name}' took longer than {self.timeout:g} s and was ended",
                    hint="raise 'timeout' in the suite",
                ) from error
            finally:
                _end(child)
            if code != 0:
                how = (
                    f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
                )
                raise EvaluationError(f"suite '{self.name}' {how}", hint=_last_line(err))
            return self._figures(_read(out))

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
    file = RecipeFile(path)
    try:
        given = {"name": path.stem} | file.body | {"folder": path.absolute().parent}
        return Suite.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        line = file.line(first["loc"])
        place = f"{path}, line {line}" if line else str(path)
        key = f", key '{dotted(first['loc'])}'" if first["loc"] else ""
        raise InvalidRecipeError(
            f"{place}{key}: {first['msg'].lower()}",
            hint="a suite has 'command' or 'function', and maybe 'name' and 'timeout'",
        ) from error


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


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, whether it is still there or not."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST_OUTPUT))
    return file.read().decode(errors="replace")


def _last_line(file: BinaryIO) -> str | None:
    return _read(file).strip().rpartition("\n")[2][:300] or None
