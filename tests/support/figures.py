"""Figures of the benchmark as the tests need them: made up, in ns."""


def figure(median, **more):
    return {"min": median * 0.9, "low": median * 0.95, "median": median, "high": median * 1.05, "max": median * 1.2,
            "repeats": 5, **more}


SETS = {
    "numpy": {"optimc": figure(100.0), "optimc, 2 threads": figure(60.0), "limit: memory": figure(95.0, bytes=2800),
              "limit: divider": figure(40.0), "NumPy out=": figure(500.0)},
    "torch": {"optimc": figure(110.0), "limit: memory": figure(104.5, bytes=2800), "torch fused": figure(121.0),
              "torch default": {"error": "ValueError: a | b"}}}
