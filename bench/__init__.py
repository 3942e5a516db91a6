"""Benchmarks: what the service costs, beside what it could cost at best and at worst on the same machine."""
