"""The Hub: resolve once, pin by commit, verify bytes, publish in one commit.

Everything goes through huggingface_hub, whose cache owns the bytes. What it leaves open is
closed here: content is checked against the recorded hashes, file names are checked before they
become paths, privacy is read back before weights go up, a Hub that is down is said at once, and
errors become lorahub's. Each file here is one subject; `Hub` is all of them.
"""

from lorahub.hub.client import Client
from lorahub.hub.fetching import Fetching
from lorahub.hub.listing import Listed, Listing, Query, Sort
from lorahub.hub.pushing import Pushed, Pushing
from lorahub.hub.snapshots import RemoteFile, Snapshot

__all__ = [
    "Client",
    "Hub",
    "Listed",
    "Pushed",
    "Query",
    "RemoteFile",
    "Snapshot",
    "Sort",
]


class Hub(Fetching, Listing, Pushing):
    """A Hub-compatible endpoint; None for endpoint or token leaves the choice to the client.

    A token of False sends none, whatever login is stored.
    """
