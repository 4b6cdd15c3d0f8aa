"""What Browse reads from the catalog: each read is a thread that posts what it found."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from textual import work
from textual.message import Message

from lorahub.errors import LorahubError, UsageError
from store.listing import SORTS
from tui import listing
from tui.acting import app_of
from tui.basket import why_not
from tui.describe import Description, describe, neighbours
from tui.jobs import ask
from tui.listing import Entry
from tui.messages import Complaint
from tui.query import Query
from tui.screens.room import Room
from tui.text import spoken

SETTLED = 0.1
"""Seconds that a cursor or a filter must rest before all about it is read."""


class BrowseReading(Room):
    """The reads of Browse and their messages."""

    class Listed(Message):
        """The first page of what the filter lets through."""

        def __init__(
            self,
            query: Query,
            sort: str,
            count: int,
            rows: Sequence[Entry],
        ) -> None:
            super().__init__()
            self.query, self.sort, self.count, self.rows = query, sort, count, rows

    class Counted(Message):
        """The facets of what the filter lets through, and the figures there are to sort by."""

        def __init__(
            self, query: Query, facets: Mapping[str, Mapping[str, int]], figures: Sequence[str]
        ) -> None:
            super().__init__()
            self.query, self.facets, self.figures = query, facets, figures

    class Paged(Message):
        """A further page."""

        def __init__(self, first: int, generation: int, rows: Sequence[Entry]) -> None:
            super().__init__()
            self.first, self.generation, self.rows = first, generation, rows

    class Described(Message):
        """An adapter in words."""

        def __init__(self, description: Description) -> None:
            super().__init__()
            self.description = description

    class Resembled(Message):
        """What an adapter is like, in words."""

        def __init__(self, name: str, words: str) -> None:
            super().__init__()
            self.name, self.words = name, words

    class Refused(Message):
        """An adapter cannot be in the basket with those that are there, for a reason."""

        def __init__(self, name: str, reason: str) -> None:
            super().__init__()
            self.name, self.reason = name, reason

    class Removed(Message):
        """An adapter left the catalog."""

    def load(self) -> None:
        """Read the first page anew."""
        raise NotImplementedError

    @work(exclusive=True, group="list", exit_on_error=False)
    async def read_list(self, query: Query, sort: str, *, descending: bool) -> None:
        """Read the first page and the counts."""
        catalog = app_of(self).workspace.catalog
        read = partial(listing.first_page, catalog, query, sort, descending=descending)
        try:
            count, rows = await asyncio.to_thread(read)
            self.post_message(self.Listed(query, sort, count, rows))
            # Counting takes longer than listing, and nobody reads it while typing goes on.
            await asyncio.sleep(SETTLED)
            counts = await asyncio.to_thread(catalog.facets, query.where)
            figures = await asyncio.to_thread(catalog.figures)
            self.post_message(self.Counted(query, counts, figures))
        except UsageError as error:
            self.post_message(Complaint(error))
            if sort not in SORTS:  # the figure that it was sorted by is gone
                app_of(self).remember(sort="name")
                self.load()
        except LorahubError as error:
            self.post_message(Complaint(error))

    @work(thread=True, group="page", exit_on_error=False)
    def read_page(self, query: Query, first: int, generation: int) -> None:
        """Read a further page."""
        state = app_of(self).state
        try:
            rows = listing.page(
                app_of(self).workspace.catalog, query, state.sort, first,
                descending=state.descending,
            )  # fmt: skip
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        self.post_message(self.Paged(first, generation, rows))

    @work(exclusive=True, group="describe", exit_on_error=False)
    async def read_description(self, name: str) -> None:
        """Read all about one adapter, unless the cursor moves on at once."""
        await asyncio.sleep(SETTLED)
        try:
            found = await asyncio.to_thread(describe, app_of(self).workspace, name)
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        self.post_message(self.Described(found))

    @work(exclusive=True, group="similar", exit_on_error=False)
    async def read_similar(self, name: str) -> None:
        """Search for what is like an adapter, in a child process: it may have to read factors."""
        words = ["similar", name]
        try:
            found = await ask(app_of(self).home, words)
            self.post_message(self.Resembled(name, neighbours(found)))
        except LorahubError as error:
            self.post_message(self.Resembled(name, spoken(error)))

    @work(thread=True, exit_on_error=False)
    def check_pick(self, name: str, others: Sequence[str]) -> None:
        """Look into an adapter and those it joins: their modules tell what their rows do not."""
        get = app_of(self).workspace.get
        there = []
        for other in others:
            with suppress(LorahubError):  # the plan says what is wrong with it
                there.append(get(other))
        try:
            reason = why_not(get(name), there)
        except LorahubError as error:
            reason = spoken(error)
        if reason is not None:
            self.post_message(self.Refused(name, reason))

    @work(thread=True, exit_on_error=False)
    def take_out(self, name: str) -> None:
        """Take an adapter out of the catalog."""
        try:
            app_of(self).workspace.remove([name])
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        self.post_message(self.Removed())
