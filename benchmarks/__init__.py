"""One script a question: `python -m benchmarks.NAME`; see `benchmarks/README.md`."""
