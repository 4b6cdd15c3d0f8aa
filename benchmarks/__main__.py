"""Run every benchmark."""

from benchmarks import (
    catalog,
    elementwise_module,
    in_turn,
    lego_module,
    model_7b,
    packs,
    startup,
    svd_module,
)

PARTS = (
    startup, catalog, svd_module, elementwise_module, lego_module, model_7b, in_turn, packs,
)  # fmt: skip

for part in PARTS:
    print(f"== {part.__name__}")
    part.main()
