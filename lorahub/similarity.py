"""Which adapters are alike, told by their sketches: neighbours, families, a map.

Arrays of sketches hold one float32 row per adapter, of any scale; a row of zeros is an adapter
that changes nothing, and has cosine 0 with all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from store.sketches import Sketched

Vectors = NDArray[np.float32]

FEW = 5
"""Fewer adapters are placed by their principal components: t-SNE needs neighbours to weigh."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An adapter beside another one, with three cosines (-1..1) estimated from sketches.

    Attributes:
        name: Catalog name.
        base: Its canonical base model, or, where nobody knows it, what it names as such.
        delta: Cosine between the deltas, as one vector each.
        subspace: Cosine between the projectors on the spaces of A's rows and B's columns.
        spectrum: Cosine between the singular values: the largest that ``delta`` could be if the
            subspaces were turned to fit.
    """

    name: str
    base: str | None
    delta: float
    subspace: float
    spectrum: float


@dataclass(frozen=True, slots=True)
class Relative:
    """A member of a family, with its cosine to the family's centre."""

    name: str
    base: str | None
    cosine: float


@dataclass(frozen=True, slots=True)
class Family:
    """Adapters each of which is near another of them; the centre is nearest to all."""

    center: str
    members: tuple[Relative, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """An adapter as a point of the plane; only nearness has a meaning, in no unit."""

    name: str
    base: str | None
    x: float
    y: float


class HasVector(Protocol):
    """A row of the catalog with a sketch."""

    @property
    def vector(self) -> bytes:
        """int8 values of any common scale."""
        ...


def vectors(rows: Sequence[HasVector]) -> Vectors:
    """(n, length) float32 from stored sketches."""
    return unpacked(b"".join(row.vector for row in rows), len(rows))


def unpacked(body: bytes, count: int) -> Vectors:
    """(count, length) float32 from stored sketches end to end."""
    if count == 0:
        return np.zeros((0, 1), np.float32)
    return np.frombuffer(body, np.int8).reshape(count, -1).astype(np.float32)


def nearest(found: Vectors, to: Vectors, limit: int) -> list[tuple[int, float]]:
    """(row, cosine) of the rows nearest to the vector ``to`` (length,), nearest first."""
    from sklearn.neighbors import NearestNeighbors

    count = min(limit, len(found))
    if count == 0:
        return []
    index = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(found)
    distances, rows = index.kneighbors(to[None])
    return [(int(i), 1 - float(d)) for i, d in zip(rows[0], distances[0], strict=True)]


def cosines(found: Vectors, to: Vectors) -> list[float]:
    """Cosine of every row with the vector ``to`` (length,)."""
    from sklearn.metrics.pairwise import cosine_similarity

    return [float(c) for c in cosine_similarity(found, to[None])[:, 0]] if len(found) else []


def families(rows: Sequence[Sketched], cosine: float) -> tuple[Family, ...]:
    """Groups of two or more in which every adapter has at least ``cosine`` with another.

    The largest come first. They are the clusters of DBSCAN (Ester et al., KDD 1996) with every
    adapter that has a neighbour as a core, so that neither order nor count decides on them.
    """
    from sklearn.cluster import DBSCAN

    if not rows:
        return ()
    found = vectors(rows)
    labels = DBSCAN(eps=1 - cosine, min_samples=2, metric="cosine").fit_predict(found)
    groups = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    made = [_family([rows[int(i)] for i in group], found[group]) for group in groups]
    return tuple(sorted(made, key=lambda f: (-len(f.members), f.center)))


def _family(rows: Sequence[Sketched], found: Vectors) -> Family:
    middle = (found / np.linalg.norm(found, axis=1, keepdims=True)).sum(0)
    center = int(np.argmax(np.round(cosines(found, middle), 5)))  # the oldest of equal ones
    to_center = cosines(found, found[center])
    members = [Relative(r.name, r.base, c) for r, c in zip(rows, to_center, strict=True)]
    return Family(rows[center].name, tuple(sorted(members, key=lambda m: (-m.cosine, m.name))))


def places(rows: Sequence[Sketched]) -> tuple[Place, ...]:
    """Adapters in the plane, near ones near each other: t-SNE (van der Maaten & Hinton, 2008)."""
    points = _embedded(vectors(rows))
    return tuple(
        Place(r.name, r.base, float(x), float(y)) for r, (x, y) in zip(rows, points, strict=True)
    )


def _embedded(found: Vectors) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    count = len(found)
    plane = np.zeros((count, 2), np.float32)
    if len(np.unique(found, axis=0)) < 2:
        return plane
    if count < FEW:
        size = min(2, count - 1)
        plane[:, :size] = PCA(size, svd_solver="full").fit_transform(normalize(found))
        return plane
    perplexity = min(30.0, (count - 1) / 3)
    # Between vectors of length 1, Euclidean distances put neighbours in the order of cosines.
    method = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(method.fit_transform(normalize(found)), np.float32)
