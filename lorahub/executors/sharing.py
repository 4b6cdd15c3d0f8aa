"""Whether the machine of a worker shares the data folder of the process that it works for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sign_in(home: Path) -> Iterator[Path]:
    """A file in the data folder, which those see that share it."""
    locks = home / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=locks, prefix="shared-") as file:
        yield Path(file.name)
