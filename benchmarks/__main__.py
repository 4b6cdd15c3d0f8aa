"""Run every benchmark."""

from benchmarks import (
    batch,
    catalog,
    elementwise_module,
    extract_module,
    in_turn,
    lego_module,
    model_7b,
    packs,
    scale,
    similar,
    startup,
    svd_module,
    tui,
)

for part in (
    startup,
    catalog,
    svd_module,
    elementwise_module,
    extract_module,
    lego_module,
    model_7b,
    in_turn,
    packs,
    similar,
    tui,
    batch,
    scale,
):
    print(f"== {part.__name__}")
    part.main()
