"""Where the merges of a batch are made: in this process, in others, on a cluster."""

from lorahub.executors.base import Executor, Group, Hindered, Start, Worker
from lorahub.executors.here import Here
from lorahub.executors.processes import Processes

__all__ = ["Executor", "Group", "Here", "Hindered", "Processes", "Start", "Worker"]
