"""Whether adapters are for one base model, and for which."""

from __future__ import annotations

from collections.abc import Sequence

from lorahub.adapter import Adapter, BaseIdentity, Confidence, canonical_base
from lorahub.bases.identity import identify, identify_name
from lorahub.errors import IncompatibleError, InvalidRecipeError


def common_base(adapters: Sequence[Adapter], wanted: str | None, warnings: list[str]) -> str:
    """The Hub id of the base model that all adapters are for.

    Args:
        adapters: One or more.
        wanted: What the user says it is; asked for where the adapters do not tell.
        warnings: Takes what the user should know.

    Raises:
        InvalidRecipeError: ``wanted`` is no Hub id.
        IncompatibleError: They are for different base models, or one is not known well enough.
    """
    bases = {a.name: a.base or identify(a.info) for a in adapters}
    if wanted is not None:
        return _as_wanted(wanted, bases, warnings)
    stated = {canonical_base(a.info.base_model) for a in adapters}
    alike = stated.pop() if len(stated) == 1 else None
    if alike is not None and "/" in alike:
        return alike
    base = _not_different(
        bases, "merge adapters of one base model, or say --base ID if these are the same model"
    )
    unsure = {n: b for n, b in bases.items() if not b.sure}
    if unsure or base is None:
        raise _asked_for(unsure)
    warnings += [
        f"{n}: its base model is taken to be {b.name}: {b.reason}"
        for n, b in bases.items()
        if b.confidence is Confidence.LIKELY
    ]
    return base


def known_base(adapters: Sequence[Adapter]) -> str | None:
    """The base model of those adapters that tell it, None where none does.

    Raises:
        IncompatibleError: They are for different base models.
    """
    bases = {a.name: a.base or identify(a.info) for a in adapters}
    return _not_different(bases, "compare adapters of one base model")


def _not_different(bases: dict[str, BaseIdentity], hint: str) -> str | None:
    sure = sorted({b.name for b in bases.values() if b.sure and b.name})
    if len(sure) > 1:
        who = "; ".join(f"'{n}' is for {b.name or 'an unknown base'}" for n, b in bases.items())
        raise IncompatibleError(f"the adapters are for different base models: {who}", hint=hint)
    return sure[0] if sure else None


def _as_wanted(wanted: str, bases: dict[str, BaseIdentity], warnings: list[str]) -> str:
    if canonical_base(wanted) is None:
        raise InvalidRecipeError(
            f"base model '{wanted}' is not a Hub id", hint="give it as owner/name"
        )
    meant = identify_name(wanted)
    others = {b.name for b in bases.values() if b.name} - {wanted, meant and meant.name}
    if others:
        named = ", ".join(sorted(others))
        warnings.append(f"the sources name {named}; {wanted} is written as asked")
    return wanted


def _asked_for(unsure: dict[str, BaseIdentity]) -> IncompatibleError:
    guesses = {b.name for b in unsure.values() if b.name}
    why = "; ".join(f"'{n}': {_guess(b)}" for n, b in unsure.items())
    example = guesses.pop() if len(guesses) == 1 else "owner/name"
    return IncompatibleError(
        f"the base model is unknown for {', '.join(repr(n) for n in unsure)} ({why})",
        hint=f"say which Hub model they are for with --base {example}",
    )


def _guess(base: BaseIdentity) -> str:
    return f"perhaps {base.name}, for {base.reason}" if base.name else base.reason
