"""The workspace: everything lorahub does, as typed functions on one object.

The command line and the terminal UI call these and add no logic of their own. Each file here is
one subject; `Workspace` is all of them.
"""

from lorahub.workspace.cataloguing import Cataloguing
from lorahub.workspace.comparing import Comparing
from lorahub.workspace.deriving import Deriving
from lorahub.workspace.discovering import Discovering
from lorahub.workspace.keeping import Keeping
from lorahub.workspace.knowing import Knowing
from lorahub.workspace.packing import Packing
from lorahub.workspace.reproducing import Reproducing
from lorahub.workspace.resizing import Resizing
from lorahub.workspace.searching import Searching

__all__ = ["Workspace"]


class Workspace(
    Cataloguing,
    Discovering,
    Searching,
    Resizing,
    Comparing,
    Deriving,
    Keeping,
    Knowing,
    Packing,
    Reproducing,
):
    """A catalog with the means to fill it, merge from it and publish from it.

    Use as a context manager, or call `close`.
    """
