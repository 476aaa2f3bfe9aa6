"""Speed against floors measured in the same run, and against others. Start with `benchmarks/run.py`."""
