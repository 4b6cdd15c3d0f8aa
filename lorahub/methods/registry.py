"""What a merge method is, and the one door by which all of them come in.

A method is a decorated function from a `Stack` to a `Mix` or to `Factors`. Its keyword-only
parameters, with their constraints, are its schema: recipes, the command line, forms and docs
are made from it.
Built-in methods live one per file in this package; others are found through the entry point
group ``lorahub.methods``, whose entries name modules that use the same decorator. Importing a
method must not import torch, so that its schema can be shown without it.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from lorahub.errors import InvalidRecipeError
from lorahub.kernels.stack import Factors, Mix, Stack
from lorahub.wording import did_you_mean, first_wrong

if TYPE_CHECKING:
    from lorahub.kernels.allocation import Rule
    from lorahub.kernels.delta import Merged

ENTRY_POINT_GROUP = "lorahub.methods"

Space = Literal["factors", "core", "delta"]
RankBound = Callable[[Sequence[int], int, Mapping[str, Any]], int]
MergeRule = Callable[..., Mix | Factors]
Definition = Callable[
    [Stack, Sequence[Mapping[str, Any]], Mapping[str, Any]], "Mix | Factors | Merged"
]


@dataclass(frozen=True, slots=True)
class Method:
    """A registered merge method.

    Attributes:
        name: What users type; the function's name.
        title: Its name in print.
        summary: First sentence of the docstring.
        doc: The whole docstring.
        paper: Where the idea comes from: URL, or library and function.
        rule: The function itself: ``rule(stack, **parameters)`` gives a mixture, or factors.
        schema: pydantic model of the parameters.
        space: Where it works: on the factors' elements, in R x R matrices of the factors' inner
            products, or on the deltas' elements.
        rank_bound: Largest rank a module may come out with, from its members' ranks, the
            smaller of d_in and d_out, and the parameters.
        definition: Function that gives, from a float64 stack, the modules' reports and the
            parameters, the mixture or factors whose delta the method defines before any
            truncation, or that delta block by block; the exact weighted sum by default. `verify`
            uses it. `method` makes None into the rule itself, with all ranks kept.
        default_scale: Scale applied when none is asked for, from the number of adapters.
        normalize: Whether adapters get equal norms first, when nothing is asked for; None
            leaves it to how much their norms and ranks differ.
        allocation: Rule that distributes a budget over the modules, for methods that need one.
        packed: How many times smaller than in bfloat16 the result is packed when nothing is
            asked for; None packs it only when asked.
        equal_weights: Whether weights come from the method and may not be given.
        equal_ranks: Whether all members of a module must have the same rank.
        most_adapters: Largest number of adapters it can merge, or None.
        exceptions: Laws the method breaks by nature (``gauge``), as its docstring explains.
    """

    name: str
    title: str
    summary: str
    doc: str
    paper: str
    rule: MergeRule
    schema: type[BaseModel]
    space: Space
    rank_bound: RankBound
    definition: Definition
    default_scale: Callable[[int], float]
    normalize: bool | None
    allocation: Rule | None
    packed: float | None
    equal_weights: bool
    equal_ranks: bool
    most_adapters: int | None
    exceptions: frozenset[str]

    def __reduce__(self) -> tuple[Any, ...]:
        # Its schema has no module to be found in: another process finds it by its name.
        return get, (self.name,)

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check parameters and fill in defaults.

        Raises:
            InvalidRecipeError: An unknown parameter, or a value outside its constraints.
        """
        known = list(self.schema.model_fields)
        for name in given:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise InvalidRecipeError(
                    f"method '{self.name}' has no parameter '{name}'",
                    hint=f"{takes}{did_you_mean(name, known)}",
                    key=("parameters", name),
                )
        try:
            return self.schema.model_validate(dict(given)).model_dump()
        except ValidationError as error:
            first = first_wrong(error)
            field = ".".join(str(part) for part in first["loc"])
            raise InvalidRecipeError(
                f"method '{self.name}', parameter '{field}': {first['msg']}, "
                f"got {first['input']!r}",
                hint=f"see `lorahub methods show {self.name}`",
                key=("parameters", *first["loc"]),
            ) from error


def unit_scale(adapters: int) -> float:
    """The scale of methods whose definition is the sum as it stands."""
    return 1.0


def sum_of_ranks(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    """Bound of methods that keep every rank."""
    return sum(ranks)


def capped_rank(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    """Bound of methods with an optional ``rank`` parameter."""
    return min(sum(ranks), limit, parameters["rank"] or limit)


def merged_rank(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    """Bound of methods whose result is full rank by nature; the sum of ranks if none is asked."""
    return min(limit, parameters["rank"] or sum(ranks))


def largest_rank(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    """Bound of methods that average factors of equal rank."""
    return max(ranks)


def weighted_sum(
    stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> Mix:
    """Definition of the linear family: the exact sum of the weighted deltas."""
    from lorahub.kernels.lowrank import exact_sum

    return exact_sum(stack)


def _untruncated(rule: MergeRule) -> Definition:
    def definition(
        stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
    ) -> Mix | Factors:
        full = {"rank": None} if "rank" in parameters else {}
        return rule(stack, **{**parameters, **full})

    return definition


def elementwise(merge: Callable[..., Merged]) -> Definition:
    """Definition of methods that merge the deltas element by element, from all but ``rank``."""

    def definition(
        stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
    ) -> Merged:
        from lorahub.kernels.delta import Deltas

        others = {name: value for name, value in parameters.items() if name != "rank"}
        return merge(Deltas.of(stack), **others)

    return definition


def factorwise(merge: Callable[..., Merged]) -> Definition:
    """Definition of methods that merge the factors of each side element by element."""

    def definition(
        stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
    ) -> Factors:
        from lorahub.kernels.delta import factorwise

        return factorwise(stack, partial(merge, **parameters))

    return definition


def method(
    *,
    title: str,
    paper: str,
    rank_bound: RankBound,
    space: Space = "core",
    definition: Definition | None = weighted_sum,
    default_scale: Callable[[int], float] = unit_scale,
    normalize: bool | None = False,
    allocation: Rule | None = None,
    packed: float | None = None,
    equal_weights: bool = False,
    equal_ranks: bool = False,
    most_adapters: int | None = None,
    exceptions: frozenset[str] = frozenset(),
) -> Callable[[MergeRule], MergeRule]:
    """Register the decorated function as the merge method of its own name."""

    def register(rule: MergeRule) -> MergeRule:
        hints = get_type_hints(rule, include_extras=True)
        fields: dict[str, Any] = {
            name: (hints[name], p.default if p.default is not p.empty else ...)
            for name, p in inspect.signature(rule).parameters.items()
            if p.kind is p.KEYWORD_ONLY
        }
        doc = inspect.getdoc(rule) or ""
        name = rule.__name__
        if name in _METHODS and _METHODS[name].rule.__module__ != rule.__module__:
            raise ValueError(f"two merge methods are named '{name}'")
        _METHODS[name] = Method(
            name=name,
            title=title,
            summary=doc.split("\n\n")[0].replace("\n", " "),
            doc=doc,
            paper=paper,
            rule=rule,
            schema=create_model(name, __config__=ConfigDict(extra="forbid"), **fields),
            space=space,
            rank_bound=rank_bound,
            definition=definition or _untruncated(rule),
            default_scale=default_scale,
            normalize=normalize,
            allocation=allocation,
            packed=packed,
            equal_weights=equal_weights,
            equal_ranks=equal_ranks,
            most_adapters=most_adapters,
            exceptions=exceptions,
        )
        return rule

    return register


_METHODS: dict[str, Method] = {}


@cache
def _load() -> None:
    package = import_module("lorahub.methods")
    for module in pkgutil.iter_modules(package.__path__, "lorahub.methods."):
        import_module(module.name)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()


def methods() -> Mapping[str, Method]:
    """All methods by name, sorted."""
    _load()
    return dict(sorted(_METHODS.items()))


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        InvalidRecipeError: There is none.
    """
    known = methods()
    if name not in known:
        raise InvalidRecipeError(
            f"there is no merge method '{name}'",
            hint=f"known: {', '.join(known)}{did_you_mean(name, known)}",
            key=("method",),
        )
    return known[name]
