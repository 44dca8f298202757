"""Benchmarks: what caching, fused attention and kept features save, and what the 7B size costs on a GPU."""
