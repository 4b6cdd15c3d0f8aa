"""What an adapter's own modules tell of the model they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lorahub.adapter import Module, ModuleKind
from lorahub.bases.table import KnownBase, known_bases

# The first that matches a module's name counts.
_DIALECTS = tuple(
    (name, re.compile(rf"(?:^|\.){layers}\.(?P<layer>\d+)\.{inner}"))
    for name, layers, inner in (
        ("gpt2", r"h", r"(?:attn|mlp)\.(?:c_attn|c_proj|c_fc)$"),
        ("gpt-neo", r"h", r"attn\.attention\."),
        ("gpt-j", r"h", r"(?:attn\.[qkv]_proj|attn\.out_proj|mlp\.fc_)"),
        ("bloom", r"h", r"(?:self_attention\.|mlp\.dense_)"),
        ("gpt-neox", r"layers", r"attention\.(?:query_key_value|dense)$"),
        ("chatglm", r"layers", r"(?:self_attention|attention)\.query_key_value$"),
        ("opt", r"decoder\.layers", r"(?:self_attn\.(?:[qkv]|out)_proj|fc[12])$"),
        ("phi3", r"layers", r"(?:self_attn\.qkv_proj|mlp\.gate_up_proj)$"),
        ("phi", r"layers", r"(?:self_attn\.dense|mlp\.fc[12])$"),
        ("llama", r"layers", r"(?:self_attn\.(?:[qkvo]_proj|W_pack)|mlp\.(?:gate|up|down)_proj)$"),
        ("t5", r"block", r"layer\.\d+\.(?:Self|EncDec)Attention\."),
        ("distilbert", r"layer", r"(?:attention\.(?:[qkv]|out)_lin|ffn\.lin[12])$"),
        ("bert", r"layer", r"attention\.self\.(?:query|key|value)$"),
        ("vit", r"layer", r"attention\.attention\.(?:query|key|value)$"),
    )
)

# Last parts of modules that read the hidden state, and whose output is the MLP or the keys.
_FROM_HIDDEN = re.compile(
    r"(?:[qkv]_proj|gate_proj|up_proj|gate_up_proj|qkv_proj|W_pack|c_attn|c_fc|query_key_value|"
    r"dense_h_to_4h|query|key|value|[qkv]_lin|lin1|[qkv]|fc1|fc_in)"
)
_TO_MLP = re.compile(r"(?:gate_proj|up_proj)")
_TO_KEYS = re.compile(r"(?:k_proj|v_proj)")


@dataclass(frozen=True, slots=True)
class Structure:
    """What is seen of a model: its dialect and sizes, None for what no module shows.

    ``layers`` counts up to the last one that has a module; the model may have more.
    """

    dialect: str | None = None
    layers: int | None = None
    hidden: int | None = None
    mlp: int | None = None
    keys: int | None = None

    def contradicts(self, base: KnownBase) -> str | None:
        """How the modules cannot be ``base``'s, in words; None where nothing says so."""
        for what, seen, has in (
            ("hidden size", self.hidden, base.hidden),
            ("MLP width", self.mlp, base.mlp),
            ("key width", self.keys, base.keys),
        ):
            if seen is not None and has is not None and seen != has:
                return f"its {what} is {has}, the adapter's {seen}"
        if self.layers is not None and base.layers is not None and self.layers > base.layers:
            return f"it has {base.layers} layers, the adapter {self.layers}"
        return None

    def confirms(self, base: KnownBase) -> bool:
        """Whether layers and hidden size are seen, and are exactly those of ``base``."""
        return (
            (self.layers, self.hidden) == (base.layers, base.hidden)
            and self.hidden is not None
            and self.contradicts(base) is None
        )


def structure(modules: Iterable[Module]) -> Structure:
    """What the modules of an adapter show, from the text model if they are of several parts."""
    dialect: str | None = None
    layers = hidden = mlp = keys = None
    for module in modules:
        found = _dialect(module.name) if module.kind is ModuleKind.LINEAR else None
        if found is None or dialect not in {None, found[0]}:
            continue
        dialect, layer = found
        layers = max(layers or 0, layer + 1)
        if _FROM_HIDDEN.fullmatch(module.target):
            hidden = module.d_in
        if _TO_MLP.fullmatch(module.target):
            mlp = module.d_out
        if _TO_KEYS.fullmatch(module.target):
            keys = module.d_out
    return Structure(dialect, layers, hidden, mlp, keys)


def fitting(seen: Structure) -> tuple[KnownBase, ...]:
    """Known bases that have exactly what is seen; none where too little is."""
    return tuple(b for b in known_bases() if b.dialect == seen.dialect and seen.confirms(b))


def _dialect(name: str) -> tuple[str, int] | None:
    for dialect, pattern in _DIALECTS:
        if match := pattern.search(name):
            return dialect, int(match["layer"])
    return None
