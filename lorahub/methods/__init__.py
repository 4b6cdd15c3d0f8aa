"""Merge methods: one file each. `registry` says what a method is and finds them all."""
