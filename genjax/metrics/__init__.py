"""Metrics: how good samples are, pure functions of arrays.

`frechet`, `kernel`, `neighbours` and `sliced` compare `samples [N, D]` with a `reference [M, D]`, points or features of a
network; `inception` reads the logits of a classifier; `modes` knows the mixture and `energy` the ways of a flow.
"""
