"""Measurements against floors and peers, each a ratio of figures from one run.

`python -m benchmarks NAME` prints a table and writes `benchmarks/results/NAME.json`.
"""
