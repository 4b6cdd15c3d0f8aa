"""Every error lorahub raises on purpose, grouped by what the user does next.

An error carries a message (what was wrong, in which object), an optional hint (what to do) and,
through its class, a stable machine-readable code and the process exit code.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of the ``lorahub`` command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTH = 4
    INVALID = 5
    CONFLICT = 6
    NETWORK = 7
    PARTIAL = 8
    INTERRUPTED = 130


class LorahubError(Exception):
    """Base of all deliberate errors.

    Attributes:
        message: What was wrong and in which file, field or reference; one or a few lines.
        hint: What the user can do about it, or None.
        code: Stable identifier used in JSON output.
        exit_code: The process exit code the CLI maps the error to.
    """

    code: ClassVar[str] = "failure"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # The hint is keyword-only, so the default pickling would lose it between processes.
        return (_rebuild, (type(self), self.message, self.hint))


def unreadable(
    path: object, error: OSError, kind: type[LorahubError], *, hint: str
) -> LorahubError:
    """What a file that cannot be read is: not found where there is none, else of that kind."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"{path}: there is no such file", hint=hint)
    return kind(f"{path}: cannot be read ({error.strerror or error})", hint=hint)


def _rebuild(cls: type[LorahubError], message: str, hint: str | None) -> LorahubError:
    return cls(message, hint=hint)


class UsageError(LorahubError):
    """The command line or a function argument makes no sense: correct the call."""

    code = "usage"
    exit_code = ExitCode.USAGE


class NotFoundError(LorahubError):
    """A reference, file or folder is not there: correct the name, or pull it first."""

    code = "not_found"
    exit_code = ExitCode.NOT_FOUND


class AuthError(LorahubError):
    """A token is missing or not allowed: log in, or ask for access."""

    code = "auth"
    exit_code = ExitCode.AUTH


class InvalidAdapterError(LorahubError):
    """Files that are damaged, hostile or no adapter at all: get a good copy."""

    code = "invalid_adapter"
    exit_code = ExitCode.INVALID


class UnsupportedAdapterError(LorahubError):
    """A sound adapter of a kind that cannot be merged (yet): leave it out, or convert it."""

    code = "unsupported_adapter"
    exit_code = ExitCode.INVALID


class IncompatibleError(LorahubError):
    """Adapters that do not fit together: choose others, or say the base model."""

    code = "incompatible"
    exit_code = ExitCode.INVALID


class LicenseError(LorahubError):
    """A licence that the parents do not allow: state another, or leave some of them out."""

    code = "license"
    exit_code = ExitCode.INVALID


class InvalidCatalogError(LorahubError):
    """An exported catalog that is damaged, or none: export it again."""

    code = "invalid_catalog"
    exit_code = ExitCode.INVALID


class InvalidRecipeError(LorahubError):
    """A recipe, method or parameter that is wrong: edit it.

    Attributes:
        key: The key of the recipe that is wrong, from the top; empty where it is not known.
    """

    code = "invalid_recipe"
    exit_code = ExitCode.INVALID

    def __init__(
        self, message: str, *, hint: str | None = None, key: tuple[int | str, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.key = key


class ConflictError(LorahubError):
    """Something is already there under that name: choose another, or remove it."""

    code = "conflict"
    exit_code = ExitCode.CONFLICT


class NetworkError(LorahubError):
    """The Hub did not answer or answered badly: try again later."""

    code = "network"
    exit_code = ExitCode.NETWORK


class OfflineError(NetworkError):
    """There is no connection to the Hub: what is local works, the rest has to wait."""

    code = "offline"


class StorageError(LorahubError):
    """The disk is full, read-only or failing: make room, or write elsewhere."""

    code = "storage"


class ResourceError(LorahubError):
    """Memory ran out: merge fewer adapters at a time, or on the CPU."""

    code = "resource"


class IntegrityError(LorahubError):
    """Bytes are not those that were recorded: fetch or merge again."""

    code = "integrity"


class CatalogError(LorahubError):
    """The catalog cannot be used: restore a backup, or upgrade lorahub."""

    code = "catalog"


class VerificationError(LorahubError):
    """A merged adapter is further from its definition than its dtype allows."""

    code = "verification"


class EvaluationError(LorahubError):
    """A suite could not be run, or did not give figures: correct the suite."""

    code = "evaluation"


class PartialError(LorahubError):
    """Some of several objects failed: repeat for those that are named."""

    code = "partial"
    exit_code = ExitCode.PARTIAL
