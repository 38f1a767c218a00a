"""Other libraries by name: those of the README's picture, each by its fastest way to do the step; optional ones."""

from optimc.cli.bench.processes import OURS
from optimc.cli.bench.words import merged

#: those that keep Adam's slots in 8 bits; the extra `bench` does not install them
IN_8_BITS = ("bitsandbytes 8-bit", "torchao 8-bit")
#: the case, by its name
CASE = "lists/small network"
#: library -> the name of a contestant -> what this way is called beside the library
LIBRARIES = {
    "NumPy": {"NumPy out=": "with out=", "NumPy plain": "expressions"}, "scikit-learn": {"scikit-learn": ""},
    "PyTorch": {"torch fused": "fused", "torch foreach": "foreach", "torch default": ""}, "Thinc": {"thinc": ""},
    "optax": {"optax jit": "JAX, jit"}, "Keras": {"Keras on torch": "on PyTorch", "Keras on NumPy": "on NumPy"},
}


def race(results):
    """Returns optimc's figures, library -> (its figures, its way), the fastest first, and the number of weights.

    It returns None if optimc was not timed.
    """
    case = next((case for case in results["cases"] if case["name"] == CASE), {"sets": {}})
    entries = merged(case["sets"])
    if "median" not in entries.get(OURS, {}):
        return None
    found = {}
    for library, ways in LIBRARIES.items():
        timed = [way for way in ways if "ratio" in entries.get(way, {})]
        if timed:
            best = min(timed, key=lambda way: entries[way]["ratio"])
            found[library] = entries[best], ways[best]
    return entries[OURS], dict(sorted(found.items(), key=lambda item: item[1][0]["ratio"])), case["weights"]
