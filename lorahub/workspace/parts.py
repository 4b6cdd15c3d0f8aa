"""One merge on an executor: its modules, part by part."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.config import Config, load_config
from lorahub.errors import LorahubError
from lorahub.events import Listener
from lorahub.integrity import check_unchanged
from lorahub.workspace.pulling import Pulling
from store import Catalog, is_local

if TYPE_CHECKING:
    from lorahub.engine.parts import Made, Part
    from lorahub.executors import Executor, Group, Worker


class OnExecutor:
    """An executor as the place where the parts of a merge are made."""

    def __init__(self, executor: Executor, config: Config, device: str) -> None:
        """Join what it runs on.

        Raises:
            NetworkError: It does not answer.
        """
        self.jobs = executor.jobs
        self._executor, self._config, self._device = executor, config, device

    def make(self, parts: Sequence[Part]) -> Generator[Made, None, None]:
        """See `lorahub.engine.parts.Elsewhere.make`."""
        from lorahub.executors.sharing import sign_in

        with sign_in(self._config.home) as sign:
            start = partial(start_worker, self._config, sign, self._device)
            yield from self._executor.run([(part,) for part in parts], _begun, start)


def _begun(_: Part) -> None:
    """Nothing hinders a part: the first that fails ends the merge."""


def start_worker(config: Config, sign: Path, device: str, listener: Listener) -> Worker[Part, Made]:
    """A worker in a process of its own, which merges parts on one thread.

    It neither writes results nor catalogues them. On a machine that does not share the data
    folder it fetches into its own the sources that are not there.
    """
    import torch

    from lorahub.engine.parts import make_part

    torch.set_num_threads(1)
    bring = (lambda adapter: adapter) if sign.exists() else _bringer(config)

    def worker(group: Group[Part]) -> Iterator[Made]:
        for part in group:
            try:
                plan = replace(part.plan, adapters=tuple(map(bring, part.plan.adapters)))
                yield make_part(replace(part, plan=plan), device=device, listener=listener)
            except LorahubError as error:
                yield part.failed(error)

    return worker


def _bringer(config: Config) -> Callable[[Adapter], Adapter]:
    """What finds a source's files on a machine that has a data folder of its own."""
    own = load_config()
    database = own.database if is_local(config.database) else config.database
    workspace = Pulling(replace(config, home=own.home), Catalog.open(database))
    known: dict[str, Adapter] = {}

    def bring(adapter: Adapter) -> Adapter:
        key = adapter.info.content_hash
        if key not in known:
            found = workspace._brought(adapter)  # noqa: SLF001
            check_unchanged(found)
            known[key] = found
        return known[key]

    return bring
