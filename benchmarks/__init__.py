"""Benchmarks: this project's PPO and its label scoring beside other libraries, on one machine, in turns.

`python -m benchmarks --help`, or `make bench` and `make bench-quick`. docs/performance.md shows the results.
"""
