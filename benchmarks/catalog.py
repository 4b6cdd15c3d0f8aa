"""The catalog at its size: 10,000 adapters of 224 modules, in SQLite and in PostgreSQL."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import text

from benchmarks.data import LLAMA_2_7B, llama_modules
from lorahub.adapter import Adapter, AdapterInfo, Module, ModuleKind, Origin, Source
from store import AdapterFilter, Catalog
from store.adapters import insert_rows
from tests.postgres import Databases, server

COUNT = 10_000
BASES = ("meta-llama/Llama-2-7b-hf", "unsloth/llama-2-7b-bnb-4bit", "huggyllama/llama-7b",
         "/models/Llama-2-7b-hf", "acme/llama-7b-tuned", None)  # fmt: skip
LICENSES = ("apache-2.0", "mit", "llama2", None)
WORDS = 30_000
FILTERS = {
    "nothing": AdapterFilter(),
    "base": AdapterFilter(base="meta-llama/Llama-2-7b-hf"),
    "part of a base": AdapterFilter(base="llama"),
    "rank": AdapterFilter(rank=(8, 16)),
    "alpha": AdapterFilter(alpha=(None, 16)),
    "targets": AdapterFilter(targets=("q_proj", "v_proj")),
    "tag": AdapterFilter(tags=("law",)),
    "dtype": AdapterFilter(dtype="BF16"),
    "size": AdapterFilter(size=(10**6, 10**8)),
    "license": AdapterFilter(license="mit"),
    "task": AdapterFilter(task="CAUSAL_LM"),
    "source": AdapterFilter(source="merge"),
    "method": AdapterFilter(method="svd"),
    "a rare method": AdapterFilter(method="lego"),
    "since": AdapterFilter(since="2020-01-01"),
    "used in": AdapterFilter(used_in="adapter-00042"),
    "several": AdapterFilter(
        base="llama", rank=(8, None), targets=("q_proj",), dtype="BF16", license="mit"
    ),
}
SORTS = ("name", "created", "rank", "size", "base")
SEARCHES = (
    "w00001",
    "w00007 w00042",
    "w29999",
    "adapter-04242",
    "llama q_proj",
    "w0",
    "adaptr lama",
)


def main() -> None:
    """Print the medians of reads, in milliseconds, and what a module takes."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        databases = Databases(stack.enter_context(server()))
        for name, where in (("SQLite", home / "catalog.db"), ("PostgreSQL", databases.new())):
            with Catalog.open(where) as catalog:
                start = time.perf_counter()
                fill(catalog)
                print(f"{name}: {COUNT} adapters in {time.perf_counter() - start:.0f} s")
                measure(catalog)


def modules(rank: int, alpha: float, dtype: str, seed: int) -> tuple[Module, ...]:
    """The modules of one adapter, with hashes of their own."""
    rng = random.Random(seed)
    found = []
    for name, d_out, d_in in llama_modules(*LLAMA_2_7B):
        key = f"base_model.model.{name}.lora_"
        hashes = rng.randbytes(32).hex(), rng.randbytes(32).hex()
        kind = ModuleKind.LINEAR
        found.append(
            Module(name, kind, rank, d_in, d_out, dtype, dtype, alpha, alpha / rank,
                   f"{key}A.weight", f"{key}B.weight", *hashes)
        )  # fmt: skip
    return tuple(found)


def adapter(i: int) -> Adapter:
    """The i-th adapter, as if pulled or merged."""
    rng = random.Random(i)
    rank, dtype = rng.choice((4, 8, 16, 32, 64)), rng.choice(("BF16", "F32"))
    source = rng.choice((Source.HUB, Source.HUB, Source.FOLDER, Source.MERGE))
    # Words as often as in natural text: the n-th in proportion to 1 / n.
    card = " ".join(f"w{int(WORDS ** rng.random()) - 1:05d}" for _ in range(300))
    method = rng.choice(("svd", "cat")) if source is Source.MERGE else None
    info = AdapterInfo(
        "peft", "LORA", rng.choice(BASES), rng.choice(("CAUSAL_LM", None)),
        modules(rank, 2.0 * rank, dtype, i), (), (), {"r": rank, "lora_alpha": 2 * rank},
        "adapter_model.safetensors", rank * 10**6, f"{i:064x}", f"{i:064x}",
        rng.choice(LICENSES), tuple(rng.sample(("law", "code", "peft", "lora", "chat"), 2)), card,
    )  # fmt: skip
    origin = Origin(source, Path(f"/adapters/{i}"), f"owner/adapter-{i}", "a" * 40)
    return Adapter(f"adapter-{i:05d}", origin, info, method="lego" if i == 4242 else method)


def fill(catalog: Catalog) -> None:
    """Add all adapters in a few transactions; single ones are timed apart."""
    for start in range(0, COUNT, 500):
        with catalog._write() as connection:
            for i in range(start, start + 500):
                insert_rows(connection, adapter(i))
    with catalog._write() as connection:
        connection.execute(
            text(
                "INSERT INTO lineage (adapter_id, position, parent_id, reference, content_hash, "
                "weight) SELECT 43, id, id, name, content_hash, 1 FROM adapters WHERE id < 40"
            )
        )


def measure(catalog: Catalog) -> None:
    """Print what takes how long."""
    for name, where in FILTERS.items():
        page = {s: _time(catalog.adapters, where, sort=s) for s in SORTS}
        worst = max(page, key=page.__getitem__)
        print(
            f"  ls by {name:15s} page {page['name']:5.1f}, worst {page[worst]:5.1f} (by {worst}), "
            f"count {_time(catalog.count, where):5.1f}, facets {_time(catalog.facets, where):5.1f} "
            f"ms, {catalog.count(where)} match"
        )
    deep = _time(catalog.adapters, None, sort="size", offset=COUNT - 50)
    print(f"  last page {deep:.1f} ms")
    for words in SEARCHES:
        found = len(catalog.search(words))
        print(f"  search {words:15s} {_time(catalog.search, words):5.1f} ms, {found} found")
    print(f"  by name {_time(catalog.by_name, 'adapter-04242'):.1f} ms")
    print(f"  names like {_time(catalog.names_like, 'adaptre-04242'):.1f} ms")
    new = [adapter(i) for i in range(COUNT, COUNT + 30)]
    print(f"  add {min(_once(catalog.add, one) for one in new):.1f} ms")
    stats = catalog.stats()
    print(f"  {stats.bytes / 1e6:.0f} MB, {stats.bytes / stats.modules:.0f} bytes a module")


def _time(act: Callable[..., object], *values: object, **options: object) -> float:
    """The best of several calls, ms: what the machine does beside only adds."""
    return min(_once(act, *values, **options) for _ in range(9))


def _once(act: Callable[..., object], *values: object, **options: object) -> float:
    start = time.perf_counter()
    act(*values, **options)
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
