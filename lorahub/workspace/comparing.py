"""Understanding adapters from their factors alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorahub.errors import UsageError
from lorahub.events import Listener, ignore
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison


class Comparing(Pulling):
    """How adapters relate to each other."""

    def compare(self, references: Sequence[str], *, listener: Listener = ignore) -> Comparison:
        """Norms, cosines, subspace overlap, sign conflict and effective rank, from factors.

        Raises:
            UsageError: Fewer than two adapters.
            IncompatibleError: They share no module of one shape.
        """
        from lorahub.engine.compare import compare

        if len(references) < 2:
            raise UsageError("compare needs at least two adapters")
        return compare([self._source(r, listener) for r in references], listener=listener)
