"""Regular expressions from strangers' configs, matched as Python's re does, in bounded time.

No look at an expression tells whether backtracking ends while somebody waits, so matching is
done by the regex library, which takes a timeout that re does not have.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

SECONDS = 3.0
"""CPU time that the expressions of one config field may take together, to compile and to match:
enough for thousands of ordinary ones."""

_MAX_LENGTH = 2000
# re takes these literally; regex would read approximate matching and POSIX classes.
_OTHERWISE_IN_REGEX = re.compile(r"(?s)(?:[^\\]|\\.)*?(?:\{(?!\d*,?\d*\})|\[:)")


class Allowance:
    """The CPU time that is left for the expressions of one field, in seconds."""

    def __init__(self) -> None:
        self.left = SECONDS


class Expression:
    """A regular expression that is given up once it is found wrong or too slow.

    Attributes:
        usable: Whether everything that was asked of it so far got an answer.
    """

    def __init__(self, text: str, allowance: Allowance) -> None:
        """Compile ``text``; its time, and that of matching, is taken off ``allowance``."""
        self._allowance = allowance
        self.usable = (
            len(text) <= _MAX_LENGTH and allowance.left > 0 and not _OTHERWISE_IN_REGEX.match(text)
        )
        if not self.usable:
            return
        import regex  # type: ignore[import-untyped]  # slow to import, and few configs need it

        start = time.thread_time()
        try:
            re.compile(text)  # what PEFT compiles; regex knows more syntax
            self._compiled = regex.compile(text, regex.VERSION0)
        except (re.error, regex.error, OverflowError, RecursionError, FutureWarning):
            self.usable = False
        finally:
            allowance.left -= time.thread_time() - start

    def match(self, name: str) -> bool:
        """Whether a beginning of ``name`` matches; False, and `usable` too, when time is up."""
        return self.usable and self._answer(self._compiled.match, name)

    def fullmatch(self, name: str) -> bool:
        """Whether all of ``name`` matches; False, and `usable` too, when time is up."""
        return self.usable and self._answer(self._compiled.fullmatch, name)

    def search(self, name: str) -> bool:
        """Whether it is found anywhere in ``name``; False, and `usable` too, when time is up."""
        return self.usable and self._answer(self._compiled.search, name)

    def _answer(self, ask: Callable[..., object], name: str) -> bool:
        left = self._allowance.left
        start = time.thread_time()
        try:
            if left > 0:
                return ask(name, timeout=left) is not None
        except (TimeoutError, MemoryError):
            pass
        finally:
            self._allowance.left -= time.thread_time() - start
        self.usable = False
        return False
