"""Packs: many adapters in one small file, by shard sharing and water-filling.

Decoding needs numpy alone; see docs/mos-format.md for the file format.
"""

from lorahub.packing.info import Candidate, Expanded, MemberInfo, PackInfo
from lorahub.packing.pack import PackInput, pack
from lorahub.packing.read import expand, read_info, unpack

__all__ = [
    "Candidate",
    "Expanded",
    "MemberInfo",
    "PackInfo",
    "PackInput",
    "expand",
    "pack",
    "read_info",
    "unpack",
]
