"""What the client's errors mean to a user of lorahub."""

from __future__ import annotations

import json
from typing import Any

from lorahub.errors import (
    AuthError,
    ConflictError,
    InvalidAdapterError,
    LorahubError,
    NetworkError,
    NotFoundError,
    OfflineError,
    StorageError,
    UsageError,
)

_LOGIN = "log in with `hf auth login`, set HF_TOKEN, or pass --token-env NAME"


def translate(error: Exception, what: str) -> LorahubError | None:
    """Lorahub's error for one of the client's, or None for what is not the client's."""
    import httpx2
    from huggingface_hub import errors as hf

    if isinstance(error, hf.LocalTokenNotFoundError):
        return no_token()
    if isinstance(error, hf.HFValidationError):
        return UsageError(f"'{what}' is not a valid repository id", hint="give it as owner/name")
    if isinstance(error, hf.OfflineModeIsEnabled):
        return OfflineError(
            f"{what}: offline mode is on", hint="unset HF_HUB_OFFLINE; the catalog works without"
        )
    if isinstance(error, hf.HfHubHTTPError) and (known := _known(error, what)):
        return known
    cause = error.__cause__
    wraps = isinstance(error, hf.LocalEntryNotFoundError | RuntimeError)
    if wraps and isinstance(cause, hf.HfHubHTTPError | hf.OfflineModeIsEnabled | httpx2.HTTPError):
        return translate(cause, what)  # the client hides what really happened behind these
    if wraps:
        return _unreachable(what)
    if isinstance(error, hf.HfHubHTTPError):
        # Before its base class, which is httpx2's.
        return _translate_status(error, what)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return OfflineError(
            f"{what}: the Hub cannot be reached",
            hint="check the connection and the endpoint; the catalog works without",
        )
    if isinstance(error, httpx2.HTTPError):
        return _unreachable(what)
    return _translate_plain(error, what)


def no_token() -> AuthError:
    """For what nobody may do namelessly."""
    return AuthError("there is no Hub token", hint=_LOGIN)


def _known(error: Any, what: str) -> LorahubError | None:  # noqa: ANN401 - HfHubHTTPError
    """For the answers in which the Hub itself says what is the matter."""
    from huggingface_hub import errors as hf

    if isinstance(error, hf.GatedRepoError):
        return AuthError(
            f"{what} is gated", hint=f"ask for access on its page on the Hub, then {_LOGIN}"
        )
    if isinstance(error, hf.DisabledRepoError):
        return NotFoundError(
            f"{what} is disabled on the Hub", hint="its page says why; a copy already pulled stays"
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return NotFoundError(
            f"{what}: there is no such revision", hint="it may be gone; see its page"
        )
    if isinstance(error, hf.RemoteEntryNotFoundError):
        return NotFoundError(f"{what}: there is no such file")
    if isinstance(error, hf.RepositoryNotFoundError):
        return NotFoundError(
            f"{what} does not exist, or is private and this token may not see it",
            hint=f"check the spelling; for a private one {_LOGIN}",
        )
    return None


def _unreachable(what: str) -> NetworkError:
    return NetworkError(
        f"{what}: the Hub does not answer as it should",
        hint="check the connection and try again",
    )


def _translate_plain(error: Exception, what: str) -> LorahubError | None:
    """For what the client lets through of Python's own errors."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, json.JSONDecodeError):
        return NetworkError(
            f"{what}: the answer is not one of a Hub",
            hint="check the endpoint, and that no login page stands in between",
        )
    if isinstance(error, ValueError) and isinstance(error.__cause__, HfHubHTTPError):
        return InvalidAdapterError(
            f"{what}: the Hub does not accept the metadata of README.md",
            hint="correct the block between the --- lines at its top",
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return NetworkError(f"{what}: the connection failed", hint="try again")
    if isinstance(error, OSError) and error.errno is None:
        return NetworkError(f"{what}: the file arrived incomplete", hint="try again")
    if isinstance(error, OSError):
        return StorageError(
            f"{what}: the Hub's cache cannot be written ({error.strerror})",
            hint="free some space, or set HF_HOME to a folder you may write to",
        )
    return None


def _translate_status(error: Any, what: str) -> LorahubError:  # noqa: ANN401 - HfHubHTTPError
    status = error.response.status_code if error.response is not None else 0
    if status in {401, 403}:
        return AuthError(f"{what}: the Hub refuses this token ({status})", hint=_LOGIN)
    if status == 404:
        return NotFoundError(f"{what}: not found")
    if status in {409, 412}:
        return ConflictError(
            f"{what}: the repository changed meanwhile ({status})",
            hint="look at it, then push again",
        )
    return NetworkError(f"{what}: the Hub answered {status}", hint="try again later")
