"""The pictures of docs/, drawn from the real functions; `python -m benchmarks.figures`."""
