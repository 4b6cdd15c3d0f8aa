"""Where the merges of a batch are made: in this process, in others, on a cluster."""

from __future__ import annotations

from typing import Literal

from lorahub.errors import UsageError
from lorahub.executors.base import Executor, Group, Hindered, Start, Worker
from lorahub.executors.here import Here
from lorahub.executors.processes import Processes
from lorahub.executors.ray import Ray
from lorahub.parallel import usable_cpus

__all__ = [
    "Executor",
    "Group",
    "Here",
    "Hindered",
    "Kind",
    "Processes",
    "Ray",
    "Start",
    "Worker",
    "choose",
]

Kind = Literal["here", "processes", "ray"]


def choose(
    kind: Kind | None, *, jobs: int | None = None, address: str | None = None, device: str = "auto"
) -> Executor:
    """The executor of that kind; None takes processes where there are several jobs.

    Args:
        kind: What it is called.
        jobs: Groups at a time; None takes one here, the CPUs this process may use for
            processes, what the cluster has room for on Ray.
        address: Of the Ray cluster; see `Ray`.
        device: As for a merge; on ``cpu`` no GPU is asked for.

    Raises:
        UsageError: They do not go together, or Ray is not installed.
    """
    if address is not None and kind != "ray":
        raise UsageError("--address goes with --executor ray")
    if jobs is not None and jobs < 1:
        raise UsageError(f"{jobs} jobs cannot merge anything", hint="give 1 or more")
    if kind == "ray":
        return Ray(address or "auto", jobs=jobs, gpus=device != "cpu")
    if kind == "here" and jobs not in {None, 1}:
        raise UsageError(
            "--executor here merges one after the other", hint="drop --jobs, or take processes"
        )
    if kind == "processes":
        return Processes(jobs or usable_cpus())
    return Here() if jobs in {None, 1} else Processes(jobs)
