"""Faults on a whole cluster with the real engine: rows of a matrix, for tests and benches."""
