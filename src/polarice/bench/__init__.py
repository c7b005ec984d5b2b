"""Benchmarks: Polarice beside other programs on the same particles, and its engine alone."""
