"""Merging on a Ray cluster: every group is a task.

Ray schedules; which group is begun when, and what becomes of one that is lost, is decided as for
processes. Ray's own retries are off, since they would know neither.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection, Generator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic

from lorahub.errors import LorahubError, NetworkError, UsageError
from lorahub.events import ignore
from lorahub.executors.base import Group, Hindered, R, Start, T, Worker
from lorahub.executors.spreading import LostError, spread

if TYPE_CHECKING:
    from ray import ObjectRef

ANSWER_SECONDS = 10
"""How long a cluster may take to say a first word."""

ENDING_SECONDS = 1
"""How long what is about to end is waited for before the rest is interrupted."""

CANCEL_SECONDS = 30
"""How long a task may take to end once it is interrupted; then its process is killed."""

INTERRUPT_SECONDS = 0.5
"""How long Ctrl-C may go unnoticed while tasks are waited for."""

INSTALL = "pip install 'lorahub-kit[ray]'"

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What every gRPC server answers with a SETTINGS frame: the preface of HTTP/2 and an empty one."""

_SETTINGS = 4


class Ray:
    """The executor for a Ray cluster, which is joined when it is first needed."""

    elsewhere = True

    def __init__(
        self, address: str = "auto", *, jobs: int | None = None, gpus: bool = True
    ) -> None:
        """Say which cluster.

        Args:
            address: ``auto`` (``RAY_ADDRESS``, or the cluster this machine is part of),
                ``HOST:PORT``, ``ray://HOST:PORT`` (from outside of the cluster), or ``local``:
                one that is begun here and ends with the batch.
            jobs: Tasks at a time; None takes what the cluster has room for.
            gpus: Whether every task gets a GPU where the cluster has any.

        Raises:
            UsageError: Ray is not installed.
        """
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError as error:
            raise UsageError("Ray is not installed", hint=INSTALL) from error
        self._address, self._jobs, self._gpus = address, jobs, gpus
        self._joined = False

    @cached_property
    def jobs(self) -> int:
        """How many tasks there are at a time.

        Raises:
            NetworkError: The cluster does not answer.
        """
        self._join()
        room = self._room()
        return self._jobs or max(1, int(room["GPU"] if self._task_gpus(room) else room["CPU"]))

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """Names of the cluster's machines, sorted.

        Raises:
            NetworkError: The cluster does not answer.
        """
        import ray

        self._join()
        return tuple(sorted({n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]}))

    def run(
        self, groups: Sequence[Group[T]], hindered: Hindered[T, R], start: Start[T, R]
    ) -> Generator[R, None, None]:
        """See `lorahub.executors.base.Executor.run`.

        Raises:
            NetworkError: The cluster does not answer.
        """
        import ray

        jobs = self.jobs
        try:
            pool = _Pool(jobs, start, gpus=self._task_gpus(self._room()))
            yield from spread(groups, hindered, pool)
        finally:
            if self._joined:
                ray.shutdown()
                self._joined = False

    def _room(self) -> Mapping[str, float]:
        import ray

        found = ray.cluster_resources()
        return {name: found.get(name, 0.0) for name in ("CPU", "GPU")}

    def _task_gpus(self, room: Mapping[str, float]) -> int:
        return int(self._gpus and room["GPU"] >= 1)

    def _join(self) -> None:
        """Connect, unless the caller's own program is connected already."""
        import ray

        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        address = self._address
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"num_cpus": self._jobs, "include_dashboard": False}
        else:
            address = self._answering()
        try:
            ray.init(address, **options)
        except (ConnectionError, RuntimeError, SystemExit) as error:
            raise _no_answer(address, str(error)) from error
        self._joined = True

    def _answering(self) -> str:
        """The address in full, once something there has answered as a Ray cluster would.

        Ray itself would try an address where nobody is for minutes.
        """
        from ray._private.services import canonicalize_bootstrap_address_or_die

        address = self._address
        if address == "auto":
            try:
                address = os.environ.get("RAY_ADDRESS") or str(
                    canonicalize_bootstrap_address_or_die(address)
                )
            except ConnectionError as error:
                raise NetworkError(
                    "no Ray cluster runs here, and RAY_ADDRESS names none",
                    hint="give --address HOST:PORT, or start one: ray start --head",
                ) from error
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not (host and port.isdecimal()):
            raise UsageError(
                f"'{address}' is no address of a Ray cluster",
                hint="give auto, local, HOST:PORT or ray://HOST:PORT",
            )
        try:
            with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as line:
                if os.environ.get("RAY_USE_TLS", "0") == "0":
                    line.sendall(_GREETING)
                    answer = line.recv(9)
                    if len(answer) < 4 or answer[3] != _SETTINGS:
                        raise _no_answer(address, "something else answers there")
        except (OSError, OverflowError) as error:
            raise _no_answer(address, str(error)) from error
        return address


def _no_answer(address: str, why: str) -> NetworkError:
    return NetworkError(
        f"no Ray cluster answers at {address} ({why})",
        hint="see `ray status` there; HOST:PORT is what `ray start --head` prints (port 6379), "
        "ray://HOST:PORT its client server (port 10001)",
    )


class _Pool(Generic[T, R]):
    """Tasks of a cluster that is joined."""

    def __init__(self, jobs: int, start: Start[T, R], *, gpus: int) -> None:
        import ray

        self.jobs = jobs
        self._start = ray.put(start)
        self._make = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_make)
        self._running: list[ObjectRef[Any]] = []

    def submit(self, group: Group[T]) -> ObjectRef[Any]:
        handle = self._make.remote(_version(), self._start.hex(), self._start, group)
        self._running.append(handle)
        return handle

    def wait(self, handles: Collection[ObjectRef[Any]]) -> list[ObjectRef[Any]]:
        import ray

        ended: list[ObjectRef[Any]] = []
        while not ended:  # Ctrl-C is noticed between two questions only
            ended = ray.wait(list(handles), timeout=INTERRUPT_SECONDS)[0]
        return ended

    def result(self, handle: ObjectRef[Any]) -> list[R]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._running.remove(handle)
        try:
            outcomes: list[R] = ray.get(handle)
        except RayTaskError as error:
            if isinstance(error.cause, ModuleNotFoundError):
                raise UsageError(
                    f"a machine of the cluster lacks a package ({error.cause})",
                    hint="install the same lorahub-kit on all of them",
                ) from error
            raise
        except RayError as error:
            raise LostError(type(error).__name__) from error
        return outcomes

    def close(self) -> None:
        import ray

        # Ray ends this whole process where a task ends just when it is cancelled. So what is short
        # ends by itself, and nothing is handed to a worker that an interruption sets free.
        left = _unfinished(self._running, ENDING_SECONDS)
        for force in (False, True):
            for handle in reversed(left):
                ray.cancel(handle, force=force)
            left = _unfinished(left, CANCEL_SECONDS)


def _unfinished(handles: Collection[ObjectRef[Any]], seconds: float) -> list[ObjectRef[Any]]:
    """Those of some tasks that have not ended after so long, in order."""
    import ray

    if not handles:
        return []
    return ray.wait(list(handles), num_returns=len(handles), timeout=seconds)[1]


_workers: dict[str, Worker[Any, Any]] = {}


def _make(version: str, batch: str, start: Start[Any, Any], group: Group[Any]) -> list[Any]:
    """The task: make a group, with the worker that an earlier task of this process began."""
    try:
        if version != _version():
            raise UsageError(
                f"{socket.gethostname()} has lorahub {_version()}, the batch is of {version}",
                hint="install the same version on all machines",
            )
        if batch not in _workers:
            # By it, Ray interrupts a task; a cluster begun in the background ignores it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _workers.clear()
            _workers[batch] = start(ignore)
    except LorahubError as error:
        return [item.failed(error) for item in group]
    return list(_workers[batch](group))


def _version() -> str:
    from lorahub.engine.plan import LORAHUB_VERSION

    return LORAHUB_VERSION
