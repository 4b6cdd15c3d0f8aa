"""Which base model an adapter is for, behind the names that people and tools give it."""

from lorahub.bases.agreement import common_base, known_base
from lorahub.bases.identity import identify, identify_name
from lorahub.bases.table import KnownBase, known, known_bases

__all__ = [
    "KnownBase",
    "common_base",
    "identify",
    "identify_name",
    "known",
    "known_base",
    "known_bases",
]
