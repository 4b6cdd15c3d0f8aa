"""`lego`: LoRA-LEGO, clusters of rank-one units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import method

AUTO_ENERGY = 0.9


def _bound(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    if parameters["energy"] is not None or parameters["rank"] == "auto":
        return sum(ranks)
    return min(sum(ranks), parameters["rank"] or max(ranks))


def _scale(adapters: int) -> float:
    """0.8 for several adapters; one alone stays itself."""
    return 0.8 if adapters > 1 else 1.0


def _definition(
    stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> Mix:
    from lorahub.kernels.units import clusters_from, merged_units, units_of

    clusters = clusters_from(reports, stack.coefficients.device)
    return merged_units(
        stack,
        units_of(stack, parameters["gauge"]),
        clusters,
        int(clusters.labels.max()) + 1,
        parameter_reweighting=parameters["parameter_reweighting"],
        output_reweighting=parameters["output_reweighting"],
        norm=parameters["norm"],
    )


@method(
    title="LoRA-LEGO",
    paper="Zhao et al., ICLR 2025, arXiv 2409.16167",
    rank_bound=_bound,
    definition=_definition,
    default_scale=_scale,
    normalize=None,
    exceptions=frozenset({"sum", "cancel"}),
)
def lego(
    stack: Stack,
    *,
    rank: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"] | None,
        Field(description="Number of clusters; the mean input rank if none; auto by energy"),
    ] = None,
    energy: Annotated[
        float | None,
        Field(gt=0, le=1, description="Share of the units' energy that clusters must explain"),
    ] = None,
    features: Annotated[
        Literal["unit_halves", "raw"],
        Field(description="What is clustered: both halves at norm 1, or the units as they are"),
    ] = "unit_halves",
    gauge: Annotated[
        Literal["native", "svd"],
        Field(description="Units as trained, or each adapter's own singular vectors"),
    ] = "native",
    align: Annotated[
        bool, Field(description="Count a unit and its negative, which is the same term, as one")
    ] = True,
    parameter_reweighting: Annotated[
        bool, Field(description="Give each mean the mean norm of its members")
    ] = True,
    output_reweighting: Annotated[
        bool, Field(description="Scale by sqrt(mean input rank / result's rank)")
    ] = True,
    norm: Annotated[
        Literal["l2", "linf"], Field(description="Norm that parameter reweighting restores")
    ] = "l2",
    restarts: Annotated[int, Field(ge=1, le=1000, description="Seeded starts of k-means")] = 10,
) -> Mix:
    """Cluster the rank-one units of all adapters and keep one mean unit per cluster.

    Every rank of every adapter is a unit [a ; b]; k-means puts alike ones together, whatever
    the ranks of the inputs, and each cluster's weighted mean becomes a rank of the result. Two
    reweightings undo what averaging takes from norms and what a change of rank does to the
    output. The result depends on the gauge of the inputs under rotation (not under permutation
    or signs of ranks); gauge ``svd`` removes that. It is no weighted sum: weights decide how
    much a unit counts in its cluster's mean, and an adapter minus itself leaves something
    behind. With one adapter and a lower rank it prunes. Use it where the adapters' ranks or
    norms differ much, or where many share units that a sum would count twice.
    """
    from lorahub.kernels.units import (
        clustered,
        clustered_by_energy,
        features_of,
        merged_units,
        report_of,
        units_of,
    )

    units = units_of(stack, gauge)
    gram = features_of(units, features)
    if energy is None and isinstance(rank, str):
        energy = AUTO_ENERGY
    if energy is not None:
        clusters, ranks = clustered_by_energy(
            units, gram, energy, seeds=stack.seeds, restarts=restarts, align=align
        )
    else:
        k = min(gram.shape[-1], int(rank or max(1, round(units.rank))))
        clusters, ranks = clustered(
            units, gram, k, seeds=stack.seeds, restarts=restarts, align=align
        )
    mix = merged_units(
        stack,
        units,
        clusters,
        max(ranks),
        parameter_reweighting=parameter_reweighting,
        output_reweighting=output_reweighting,
        norm=norm,
    )
    return replace(mix, ranks=ranks, reports=report_of(clusters, units, gram))
