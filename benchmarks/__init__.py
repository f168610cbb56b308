"""Benchmarks: measured claims. ``python -m benchmarks`` lists them."""
