"""The catalog itself: what is in it, what base models its adapters are for, and copies of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorahub.adapter import BaseIdentity, canonical_base
from lorahub.errors import StorageError, UsageError, unreadable
from lorahub.workspace.base import Base
from store import AdapterFilter, BaseSummary, Imported, Stats


@dataclass(frozen=True, slots=True)
class BaseReport:
    """What is known of a base model.

    Attributes:
        name: The name that was asked for.
        identity: What it is taken to be, or None where nobody knows.
        also: Other names of it that lorahub knows.
        aliases: Names that the user says mean it.
        adapters: How many adapters of the catalog are for it.
    """

    name: str
    identity: BaseIdentity | None
    also: tuple[str, ...]
    aliases: tuple[str, ...]
    adapters: int


class Cataloguing(Base):
    """Counts, base models, export and import."""

    def facets(self, where: AdapterFilter | None = None) -> dict[str, dict[str, int]]:
        """How many of the matching adapters have each base model, rank, licence and so on."""
        return self.catalog.facets(where)

    def stats(self) -> Stats:
        """How much the catalog holds, and how much room it takes."""
        return self.catalog.stats()

    def bases(self) -> tuple[BaseSummary, ...]:
        """The base models of all adapters."""
        return self.catalog.bases()

    def base_report(self, name: str) -> BaseReport:
        """What a base model's name means here."""
        from lorahub.bases import known

        identity = self.catalog.meaning(name)
        base = identity.name if identity else None
        entry = known(base) if base else None
        where = AdapterFilter(base=base)
        return BaseReport(
            name,
            identity,
            (entry.id, *entry.also) if entry else (),
            tuple(a.alias for a in self.catalog.aliases(base)) if base else (),
            self.catalog.count(where) if base and "/" in base else 0,
        )

    def add_base_alias(self, name: str, base: str) -> int:
        """Say that a base model's name means another; returns how many adapters that concerns.

        Raises:
            UsageError: ``base`` is no Hub id, or the same name.
        """
        if canonical_base(base) is None or "/" not in base:
            raise UsageError(f"'{base}' is not a Hub id", hint="give it as owner/name")
        name = name.strip()
        if name in {"", base}:
            raise UsageError(f"'{name}' cannot be an alias of {base}")
        return self.catalog.add_alias(name, base)

    def remove_base_alias(self, name: str) -> int:
        """Take an alias back; returns how many adapters that concerns.

        Raises:
            NotFoundError: There is no such alias.
        """
        return self.catalog.remove_alias(name)

    def export_catalog(self, file: Path) -> int:
        """Write the whole catalog as JSON lines; returns how many lines.

        Raises:
            ConflictError: ``file`` is a folder, or another process is writing it.
            StorageError: The file cannot be written; then it is left as it was.
        """
        from lorahub.output import new_file

        count = 0
        with (
            new_file(file.absolute(), self.config.home / "locks", replace=True) as partial,
            partial.open("w", encoding="utf-8") as out,
        ):
            for line in self.catalog.export_lines():
                out.write(line)
                count += 1
        return count

    def import_catalog(self, file: Path) -> Imported:
        """Take in a catalog that `export_catalog` wrote, whole or not at all.

        Raises:
            NotFoundError: There is no such file.
            StorageError: The file cannot be read.
            InvalidCatalogError: A line that is no part of a catalog, by its number.
            ConflictError: A name that means another adapter here.
        """
        try:
            with file.open("rb") as lines:
                return self.catalog.import_lines(lines, str(file))
        except OSError as error:
            hint = "name a file that `lorahub export-catalog` wrote"
            raise unreadable(file, error, StorageError, hint=hint) from error
