"""Storage URLs as texts: recognised, made canonical, joined, and shown without secrets."""

from __future__ import annotations

import re
from pathlib import Path

from lorahub.errors import UsageError

CREDENTIALS = (
    "the store's own settings say who you are: for s3 AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL for another server than Amazon's"
)


def is_url(text: str) -> bool:
    """Whether a text is a storage URL (``s3://...``), which those of a Hub are not."""
    return bool(re.match(r"(?!(?:hf|https?)://)[A-Za-z][A-Za-z0-9+-]*://", text))


def seems_url(text: str) -> bool:
    """Whether a text is meant as some URL, even one that has lost a slash, as paths lose it."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+-]+:/", text))


def canonical(url: str) -> str:
    """A storage URL as it is recorded: an absolute path for ``file://``, no slash at the end.

    Raises:
        UsageError: It is none, or carries a password, which would end in records and logs.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or not is_url(url) or "::" in url or "?" in rest:
        raise UsageError(f"'{_shown(url)}' is no storage URL", hint="write e.g. s3://BUCKET/FOLDER")
    if re.match(r"[^/@]*:(?!\d+(?:/|\Z)).*@", rest, re.DOTALL):
        raise UsageError(
            f"'{_shown(url)}' carries a password, which would end in records and logs",
            hint=f"leave it out; {CREDENTIALS}",
        )
    scheme = scheme.lower()
    if scheme in {"file", "local"}:
        return f"file://{Path(rest).expanduser().absolute()}"
    return f"{scheme}://{rest.rstrip('/')}"


def join(url: str, name: str) -> str:
    """The URL of ``name`` in the folder at ``url``."""
    return f"{url.rstrip('/')}/{name}"


def _shown(url: str) -> str:
    """A URL without what may be a password in it."""
    return re.sub(r"(?<=://).*@|\?.*", "", url, flags=re.DOTALL)
