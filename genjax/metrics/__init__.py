"""Metrics: how good samples are, pure functions of arrays."""
