"""Messages that more than one place sends."""

from __future__ import annotations

from textual.message import Message

from lorahub.errors import LorahubError


class Complaint(Message):
    """Something could not be done; the application shows it."""

    def __init__(self, error: LorahubError) -> None:
        super().__init__()
        self.error = error


class CatalogChanged(Message, bubble=False):
    """The catalog holds other adapters or runs than before."""
