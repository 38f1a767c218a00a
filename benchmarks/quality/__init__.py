"""Measurements of the quality that storage in fewer bits keeps; docs/explain/narrow-storage.md has the results.

    python -m benchmarks.quality.update_errors      steps of Adam beside those of float32: a minute
    python -m benchmarks.quality.digits             every optimizer on a small network: half an hour
    python -m benchmarks.quality.letters            AdamW on a small transformer in torch: hours

Each prints a table.  Set OMP_NUM_THREADS=1: the networks are too small for more.
"""
