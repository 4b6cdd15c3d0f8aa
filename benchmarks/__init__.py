"""Measurements against peers and floors. Run all with `make bench`; see docs/benchmarks.md."""
