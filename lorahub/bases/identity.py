"""The canonical base model behind what an adapter states and shows.

A Hub id stands for itself, or for the base that the table knows it as another name of. Suffixes
of quantised twins are taken off. A local path is read from its end for a known name, which the
shapes of the adapter's modules must not contradict. Without a name, shapes can only suggest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorahub.adapter import AdapterInfo, BaseIdentity, Confidence, canonical_base
from lorahub.bases.shapes import Structure, fitting, structure
from lorahub.bases.table import KnownBase, known, named

_QUANTISED = re.compile(
    r"[-_.](?:unsloth|bnb|gptq|awq|gguf|ggml|exl2|hqq|mlx|nf4|fp4|fp8|fp16|bf16|f16|w\d+a\d+|"
    r"(?:int)?[348]-?bits?|int[48]|q[2-8](?:[_-][k01](?:[_-][sml])?)?|dynamic|quantized|marlin|"
    r"g?128g?)$",
    re.IGNORECASE,
)
# Owners who publish others' models under the same name.
_REUPLOADERS = frozenset(
    ("unsloth", "thebloke", "nousresearch", "mlx-community", "bartowski", "hugging-quants",
     "neuralmagic", "redhatai", "casperhansen", "lmstudio-community", "solidrust", "techxgenus",
     "ggml-org", "maziyarpanahi", "quantfactory", "modelcloud", "astronomer", "llm-research",
     "ai-modelscope", "modelscope", "shanghai_ai_laboratory")
)  # fmt: skip
_CACHED = re.compile(r"models--([\w.-]+)--([\w.-]+)", re.ASCII)
_DEEPEST = 8


def identify(info: AdapterInfo) -> BaseIdentity:
    """The base model of an adapter, from the name it states and the shapes of its modules."""
    seen = structure(info.modules)
    found = identify_name(info.base_model, seen)
    if found is not None:
        return found
    fits = fitting(seen)
    if not fits:
        return BaseIdentity(None, Confidence.UNKNOWN, _nothing(info.base_model))
    some = ", ".join(b.id for b in fits[:3]) + (" ..." if len(fits) > 3 else "")
    name = fits[0].id if len(fits) == 1 else None
    reason = f"{_nothing(info.base_model)}; its modules have the shapes of {some}"
    return BaseIdentity(name, Confidence.GUESS, reason)


def identify_name(name: object, seen: Structure | None = None) -> BaseIdentity | None:
    """The base model that a name means; None where it means nothing to anybody else."""
    seen = seen or Structure()
    hub_id = canonical_base(name)
    if hub_id is None:
        return _from_path(name, seen) if isinstance(name, str) else None
    if base := known(hub_id):
        same = hub_id == base.id
        reason = "it is named so" if same else f"{hub_id} is another name of it"
        wrong = seen.contradicts(base)
        confidence = Confidence.LIKELY if wrong else Confidence.CERTAIN
        return BaseIdentity(base.id, confidence, f"{reason}, though {wrong}" if wrong else reason)
    owner, _, last = hub_id.rpartition("/")
    if owner and (twin := _twin(owner, last, seen)):
        return twin
    base = named(_plain(last)) if not owner else None
    if base is not None and not seen.contradicts(base):
        return _judged(base, seen, f"{hub_id} has its name, but no owner")
    return BaseIdentity(hub_id, Confidence.CERTAIN, "it is named so")


def _twin(owner: str, last: str, seen: Structure) -> BaseIdentity | None:
    """The base that a Hub id is a quantised or copied form of."""
    plain, full = _plain(last), f"{owner}/{last}"
    if base := known(f"{owner}/{plain}"):
        return _judged(base, seen, f"{full} is a quantised form of it", Confidence.LIKELY)
    if owner.casefold() in _REUPLOADERS:
        base = named(plain)
        if base is not None and not seen.contradicts(base):
            return _judged(base, seen, f"{full} is a copy of it by its name", Confidence.LIKELY)
    if plain == last:
        return None
    reason = f"{full} is a quantised form of it by its name"
    return BaseIdentity(f"{owner}/{plain}", Confidence.GUESS, reason)


def _from_path(name: str, seen: Structure) -> BaseIdentity | None:
    """The known base that a local path ends in."""
    if cached := _CACHED.search(name):
        found = identify_name(f"{cached[1]}/{cached[2]}", seen)
        if found is not None:
            return BaseIdentity(found.name, found.confidence, f"{found.reason} (the Hub's cache)")
    for part in _parts(name):
        base = known(part) or named(_plain(part))
        if base is not None and not seen.contradicts(base):
            return _judged(base, seen, f"the local path has its name, {part}")
    return None


def _parts(path: str) -> Iterator[str]:
    """Parts of a local path from its end, each alone and before that with the one above."""
    parts = [p for p in re.split(r"[\\/]+", path.strip()) if p not in {"", ".", "..", "~"}]
    for i in range(len(parts) - 1, max(len(parts) - _DEEPEST, 0) - 1, -1):
        if i:
            yield f"{parts[i - 1]}/{parts[i]}"
        yield parts[i]


def _plain(name: str) -> str:
    """A name without the suffixes that quantised forms add."""
    while (shorter := _QUANTISED.sub("", name)) != name and shorter:
        name = shorter
    return name


def _judged(
    base: KnownBase, seen: Structure, reason: str, unconfirmed: Confidence = Confidence.GUESS
) -> BaseIdentity:
    """A base found by its name: surer where the shapes are exactly its own."""
    if wrong := seen.contradicts(base):
        return BaseIdentity(base.id, Confidence.GUESS, f"{reason}, but {wrong}")
    if not seen.confirms(base):
        return BaseIdentity(base.id, unconfirmed, reason)
    raised = Confidence.CERTAIN if unconfirmed is Confidence.LIKELY else Confidence.LIKELY
    return BaseIdentity(base.id, raised, f"{reason} and its shapes")


def _nothing(name: str | None) -> str:
    if name is None or not name.strip():
        return "base_model_name_or_path is empty"
    return f"base_model_name_or_path is '{name}', no Hub id, and ends in no known name"
