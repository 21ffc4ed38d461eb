"""Compares the drivers that work on this machine, workload by workload; `python -m benchmarks` runs it."""
