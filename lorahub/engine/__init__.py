"""Plan, run and verify merges; see the submodules of those names."""
