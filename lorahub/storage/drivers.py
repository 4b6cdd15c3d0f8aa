"""fsspec's drivers: found by a URL, and their errors as lorahub's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorahub.errors import (
    AuthError,
    LorahubError,
    NetworkError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lorahub.urls import CREDENTIALS


def filesystem(url: str) -> tuple[Any, str]:
    """The driver for a URL, which remembers no listings, and the path in its own terms."""
    import fsspec

    scheme = url.partition("://")[0]
    # Without it, the local driver makes no folders; others do, or have none.
    options = {"auto_mkdir": True} if scheme == "file" else {}
    with errors(url):
        try:
            files, root = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise UsageError(
                f"{url}: there is no driver for {scheme} here",
                hint="pip install 'lorahub-kit[s3]'" if scheme in {"s3", "s3a"} else str(error),
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{url}: '{scheme}' is no kind of store that fsspec knows",
                hint="write e.g. s3://BUCKET/FOLDER or file:///FOLDER",
            ) from error
    return files, str(root)


@contextmanager
def errors(url: str) -> Iterator[None]:
    """What a driver raises, as one of lorahub's errors that names the URL."""
    try:
        yield
    except LorahubError:
        raise
    except Exception as error:
        ours = _ours(url, error)
        if ours is None:
            raise
        raise ours from error


def _ours(url: str, error: Exception) -> LorahubError | None:
    """The error to raise for a driver's; None for one that is a defect, not the store's."""
    kind = type(error)
    why = " ".join(str(error).split()) or kind.__name__
    named = f"{kind.__module__}.{kind.__name__}"
    if isinstance(error, PermissionError) or re.search(r"Credential|Token|Unauthori|Auth", named):
        return AuthError(f"{url}: the store refuses ({why})", hint=CREDENTIALS)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"{url}: is not there ({why})", hint="check the bucket and the path")
    if isinstance(error, ConnectionError | TimeoutError) or re.search(
        r"Connect|Timeout|Endpoint|HTTPClient|ClientError|ServerDisconnected|gaierror", named
    ):
        return NetworkError(f"{url}: the store does not answer ({why})", hint="try again later")
    if isinstance(error, NotImplementedError):
        return UsageError(f"{url}: stores of this kind cannot be written to ({why})")
    if isinstance(error, OSError):
        return unwritable(url, error)
    if kind.__module__.partition(".")[0] in sys.stdlib_module_names:
        return None
    return StorageError(f"{url}: the store failed ({why})", hint="check the URL, and try again")


def unwritable(where: str, error: OSError) -> StorageError:
    """The error for a place, local or not, that the system does not let us read or write."""
    return StorageError(
        f"{where}: cannot be read or written ({error.strerror or error})",
        hint="free some space, or choose another place",
    )
