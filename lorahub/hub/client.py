"""What every conversation with a Hub stands on: an endpoint, a token, patience and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lorahub.errors import LorahubError
from lorahub.hub.errors import translate

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT_SECONDS = 10.0
_READ_TRIES = 4
_LONGEST_WAIT = 20
_PASSING = {408, 429, 500, 502, 503, 504}

T = TypeVar("T")


@dataclass(frozen=True)
class Client:
    """An endpoint and a token; None leaves the choice to huggingface_hub, False sends no token."""

    endpoint: str | None = None
    token: str | bool | None = None

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token, library_name="lorahub")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except LorahubError:
            raise
        except Exception as error:
            translated = translate(error, what)
            if translated is None:
                raise
            raise translated from _ClientError(type(error).__name__)


class _ClientError(Exception):
    """Stands in for a client error as a cause: its own text could hold headers or tokens."""


def with_retries(ask: Callable[[], T]) -> T:
    """Repeat a read that failed for a passing reason, waiting as the Hub asks, at most 20 s.

    A connection that cannot be made is not repeated: then the Hub is not there.
    """
    import time

    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(_READ_TRIES):
        last = attempt == _READ_TRIES - 1
        wait = 0.2 * 2**attempt
        try:
            return ask()
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise
        except (httpx2.RemoteProtocolError, httpx2.NetworkError, httpx2.TimeoutException):
            if last:
                raise
        except HfHubHTTPError as error:
            if last or error.response.status_code not in _PASSING:
                raise
            after = error.response.headers.get("Retry-After", "")
            wait = min(int(after), _LONGEST_WAIT) if after.isdecimal() else wait
        except OSError as error:
            # What the client raises for a body of another length than announced has no number.
            if last or type(error) is not OSError or error.errno is not None:
                raise
        time.sleep(wait)
    raise AssertionError("unreachable")
