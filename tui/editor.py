"""The user's own editor on a text, while the application is set aside."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from textual.app import App, SuspendNotSupported

from lorahub.errors import UsageError


def edited(app: App[None], text: str, name: str) -> str:
    """The text as ``$VISUAL``, ``$EDITOR`` or vi leaves it.

    Raises:
        UsageError: The editor cannot be run, or failed.
    """
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        try:
            with app.suspend():
                subprocess.run([*editor, str(file)], check=True)  # noqa: S603 - the user's own
        except SuspendNotSupported as error:
            raise UsageError("there is no terminal to edit in") from error
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(f"{editor[0]}: {error}", hint="set EDITOR to another") from error
        return file.read_text(encoding="utf-8")
