"""Losses: pure functions of a model and arrays, one value per example."""
