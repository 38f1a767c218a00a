"""Writes a file of results as text: all tables beside it, and the parts of README.md and docs/performance/results.md.

The file is what `python -m benchmarks` wrote.  `make record` writes what shows benchmarks/results/speed.json, the one
in the tree, whenever it is stale; nothing is timed for that.  Next: plots.py, which draws the pictures.
"""

import json
import pathlib
import re
import sys

from benchmarks import storage
from benchmarks.libraries import race
from benchmarks.workloads import AFTER_MATMUL
from optimc.cli.bench.processes import OURS, STREAM, with_threads
from optimc.cli.bench.words import duration, is_peer, merged, multiple, share, share_of_limit, too_noisy

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
MARKED = re.compile(r"(<!-- speed -->\n).*?(\n<!-- end -->)", re.S)
#: a larger spread of a case's times shows that something else kept the machine busy
CALM = 0.05
#: columns of the tables
COLUMNS = ("NumPy out=", "torch fused", "torch foreach", "optax jit", "Keras on torch", "thinc", "scikit-learn")
#: columns of each table in docs/performance/results.md, whose lines are short
PAGE_COLUMNS = (COLUMNS[:4], COLUMNS[4:])
#: rows: the case and its name there
ROWS = {
    "lists/small network": "10 → 64 → 1 network: 4 arrays, 769 weights", "lists/50 x 100": "50 arrays of 100",
    "lists/1000 x 64": "1000 arrays of 64", "lists/100 x 10 000": "100 arrays of 10 000",
    "lists/ResNet-50": "ResNet-50: 161 arrays, 25.6 million",
    "lists/GPT-2 small": "GPT-2 small: 148 arrays, 124 million",
    "sizes/1 000 000": "one array of 1 million", "sizes/25 000 000": "one array of 25 million",
    "float64/25 000 000": "one array of 25 million, float64",
    "options/clip, AdamW, EMA": "25 million: global clip, AdamW, EMA of weights",
    "options/modern step": "25 million: unscaling, finite check, global clip, AdamW, EMA",
}
#: what of it the README shows
README_COLUMNS = ("NumPy out=", "torch fused", "optax jit")
README_ROWS = ("lists/small network", "lists/100 x 10 000", "lists/GPT-2 small")


def load(path):
    """The results in a file."""
    return json.loads(pathlib.Path(path).read_text("utf-8"))


def write(path, results):
    """Writes results, and beside them their tables and pictures."""
    path, results = pathlib.Path(path), rounded(results)
    head = json.dumps({key: value for key, value in results.items() if key != "cases"}, indent=1)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in results["cases"])
    path.write_text(f'{head[:-2]},\n "cases": [\n{lines}\n]}}\n', "utf-8")
    for other, content in files_beside(path, results).items():
        other.write_bytes(content)


def files_beside(path, results):
    """Returns path -> content of the tables and pictures that lie beside a file of results."""
    files = {path.with_suffix(".md"): (whole(results) + "\n").encode()}
    return files | pictures({path.with_suffix(".png"): "overview",
                             path.with_name(f"{path.stem}-optimizers.png"): "optimizers"}, results)


def pictures(names, results):
    """Returns path -> content of pictures, by path -> name of what plots.py draws; nothing without matplotlib."""
    try:
        from benchmarks import plots
    except ImportError:
        print("no pictures: matplotlib is not installed: pip install matplotlib", file=sys.stderr)
        return {}
    drawn = {path: plots.drawn(path, getattr(plots, name), results) for path, name in names.items()}
    return {path: content for path, content in drawn.items() if content}


def rounded(value):
    """Results with their numbers to five digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# ------------------------------------------------------------------------------------------- tables


def markdown(header, rows):
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def headline(results, rows=tuple(ROWS), columns=COLUMNS, times=True):
    """A table of medians on one thread: optimc, its share of the limit, each peer's multiple of optimc's time.

    Args:
        results: what `load` returns.
        rows: names of cases.
        columns: names of peers.
        times: whether peers' times are there beside the multiples.
    """
    found = {case["name"]: merged(case["sets"]) for case in results["cases"]}
    found = {name: found[name] for name in rows if "median" in found.get(name, {}).get(OURS, {})}
    columns = [name for name in columns if any("ratio" in entries.get(name, {}) for entries in found.values())]
    lines = []
    for name, entries in found.items():
        least = min((entries[peer]["ratio"] for peer in columns if "ratio" in entries.get(peer, {})), default=2)
        ours = duration(entries[OURS]["median"])
        lines.append([ROWS[name], f"**{ours}**" if least > 1 else ours, share_of_limit(entries) or "-",
                      *(_cell(entries.get(peer, {}), times) for peer in columns)])
    return markdown(["one step of Adam, one thread", OURS, "share of hardware limit", *columns], lines)


def _cell(entry, times):
    if "ratio" not in entry:
        return "failed" if "error" in entry else "-"
    cell = f"{multiple(entry['ratio'])}x"
    cell = f"{duration(entry['median'])} ({cell})" if times else cell
    return f"**{cell}**" if entry["ratio"] < 1 else cell


def source(results):
    """Tells in a paragraph where the figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    absent = "".join(f" Without {peer}: {module} was not installed." for peer, module in results["missing"].items())
    return (f"Measured on {results['date']} on {results['cpu']}, with {versions}, by `{results['command']}`. Times "
            "are medians. Libraries in one process step in turn, and a multiple compares two times of one process, "
            "so it is not exactly the quotient of two printed times. The hardware limit is the least time in which "
            "the machine can read and write the arrays of "
            f"the step and do its roots and divisions.{absent}"
            + f" Cases whose repeats varied by more than {CALM:.0%} were measured again, for up to "
            f"{results.get('patience', 0):g} min in all, and the less noisy result was kept."
            * bool(results.get("patience"))
            + " Interrupted: not all cases were measured." * results["interrupted"])


def whole(results):
    """All tables: every case with everybody's minimum, median, maximum and spread."""
    parts = [f"# Speed\n\n{source(results)}\n\n{headline(results)}\n\n{targets(results)}"]
    for group in dict.fromkeys(case["group"] for case in results["cases"]):
        rows = []
        for case in (case for case in results["cases"] if case["group"] == group):
            entries = merged(case["sets"])
            for name, entry in entries.items():
                title = case["title"] if name == next(iter(entries)) else ""
                rows.append([title, name, *_figures(case, name, entry, entries)])
        parts.append(f"## {group}\n\n" + markdown(
            ["case", "step", "minimum", "median", "maximum", "spread", "repeats", "ns/weight", "bytes/weight", "GB/s",
             "of optimc", "of the limit"], rows))
    return "\n\n".join(parts)


def spread(entry):
    """Returns the distance of the quartiles of a contestant's times, as a share of the median."""
    return (entry["high"] - entry["low"]) / entry["median"]


def _figures(case, name, entry, entries):
    if "error" in entry:
        return [entry["error"].replace("|", "/"), *[""] * 9]
    own = {with_threads(who, n, variant): (variant, n) for who in (OURS, STREAM) for n in case["threads"]
           for variant in ("", *case.get("variants", ()))}
    variant, threads = own.get(name, ("", 1))
    moved = entries.get(with_threads(STREAM, 1, variant), {}).get("bytes") if name in own else None
    reached = share_of_limit(entries, threads, variant) if name == with_threads(OURS, threads, variant) else ""
    return [*(duration(entry[key]) for key in ("min", "median", "max")),
            f"{spread(entry):.0%}", str(entry["repeats"]),
            f"{entry['median'] / case['weights']:.3g}", f"{moved / case['weights']:.3g}" if moved else "",
            f"{moved / entry['median']:.3g}" if moved else "",
            f"{entry['ratio']:.3g}" if "ratio" in entry else "",
            reached]


# ------------------------------------------------------------------------------------------ targets


def targets(results):
    """Returns a table of the project's targets of speed, and whether these results meet them."""
    found, entries = _found(results)
    judged = [*_speeds(found, entries), *storage.judged(found, entries), *_threads(found, entries)]
    if "import_ms" in results:
        judged.append(("import optimc", "at most 30 ms more than NumPy's", f"{results['import_ms']:.1f} ms",
                       results["import_ms"] <= 30))
    verdicts = {True: "met", False: "not met", None: "not judged"}
    return markdown(["target", "here", ""], [[f"{name}: {target}", value, verdicts[good]]
                                             for name, target, value, good in judged])


def raced(results):
    """Returns the names of the cases that a target of speed judges, by a peer, the limit or a time."""
    found, entries = _found(results)
    return {name for name, *_ in (*_speeds(found, entries), *storage.judged(found, entries))}


def _found(results):
    """Returns the cases by name, and the figures of each from all processes."""
    found = {case["name"]: case for case in results["cases"]}
    return found, {name: merged(case["sets"]) for name, case in found.items()}


def _speeds(found, entries):
    """Yields (case, target, figure, whether it is met or None) for the targets of one thread that were timed."""

    def times(name, least, peers=None):
        ratios = {peer: entry["ratio"] for peer, entry in entries.get(name, {}).items()
                  if "ratio" in entry and is_peer(peer) and (peers is None or peer in peers)}
        if ratios:
            best = min(ratios, key=ratios.get)
            yield (name, f"{least} times as fast as {' or '.join(peers) if peers else 'any peer'}",
                   f"{ratios[best]:.3g} ({best})", ratios[best] >= least)

    def most(name, limit):
        ours = entries.get(name, {}).get(OURS, {}).get("median")
        if ours:
            yield name, f"at most {duration(limit)}", duration(ours), ours <= limit

    def near(name, least):
        figures = entries.get(name, {})
        if share(figures):
            good = None if too_noisy(figures) else share(figures) >= least
            yield name, f"{least:.0%} of the limit", share_of_limit(figures), good

    yield from most("lists/small network", 600)
    yield from times("lists/small network", 33)
    yield from most("lists/50 x 100", 5000)
    yield from times("lists/100 x 10 000", 2.7, ("torch fused",))
    yield from near("lists/100 x 10 000", 1 / 1.12)
    yield from times("sizes/25 000 000", 1.05, ("torch fused",))
    yield from near("sizes/25 000 000", 0.97)
    yield from times("options/modern step", 1.45, ("torch fused",))
    yield from times("options/clip, AdamW, EMA", 1.3, ("torch fused",))
    torch = ("torch fused", "torch foreach", "torch default")
    for title, least in {"RMSprop": 7, "Nadam": 5, "Adamax": 5, "Adadelta": 5}.items():
        yield from times(f"optimizers, 25 000 000/{title}", least, torch)
    for name in found:
        if name.startswith("optimizers, 25 000 000"):
            yield from near(name, 0.9)
        if name.startswith("float64/") and found[name]["weights"] >= 25_000_000:
            yield from near(name, 0.97)


def _threads(found, entries):
    """More threads are never slower than one beyond the spread; with a rival, at most 1.5 times.  Where torch's are
    awake they are as fast as in torch."""
    for name, case in found.items():
        one, many = (entries[name].get(with_threads(OURS, n), {}) for n in (case["threads"][0], case["threads"][-1]))
        if one is many or "median" not in one or "median" not in many:
            continue
        ratio = many["ratio"]
        torch = entries[name].get(with_threads("torch fused", case["threads"][-1]), {}).get("ratio")
        if case["group"] == AFTER_MATMUL and torch:
            yield (name, f"{case['threads'][-1]} threads 1.1 times as fast as torch fused with as many",
                   f"{torch / ratio:.2f}", torch >= 1.1 * ratio)
        if case["group"] == "with a rival process":
            yield name, f"{case['threads'][-1]} threads at most 1.5 times one's", f"{ratio:.2f}", ratio <= 1.5
        else:
            yield (name, f"{case['threads'][-1]} threads no slower than one beyond the spread", f"{ratio:.2f}",
                   many["low"] <= one["high"])


# ----------------------------------------------------------------------------------------- documents


def in_readme(results):
    """Returns the text between the README's markers."""
    return (f"![{message(results)}](docs/performance/speed.png)\n\n"
            f"Median times on {results['cpu']}, {results['date']}; each library in its fastest mode\n"
            "([method](docs/performance/method.md)). The last three columns are multiples of optimc's "
            "time, measured in turn in one\nprocess.\n\n"
            + headline(results, README_ROWS, README_COLUMNS, times=False))


def message(results):
    """Says in a sentence what the README's picture shows."""
    ours, others, weights = race(results)
    words = ", ".join(f"{library} {multiple(entry['ratio'])}" for library, (entry, _) in others.items())
    return (f"A step of Adam for {weights} weights takes {duration(ours['median'])} in optimc; other libraries take "
            f"this many times as long: {words}")


def in_page(results):
    """Returns the text between the markers of docs/performance/results.md."""
    found = {case["name"]: merged(case["sets"]) for case in results["cases"]}
    tables = []
    for columns in PAGE_COLUMNS:
        rows = [name for name in ROWS if any("ratio" in found.get(name, {}).get(peer, {}) for peer in columns)]
        tables.append(headline(results, rows, columns, times=False))
    return "\n\n".join([*tables, source(results)])


def filled(text, section):
    """Returns the text of a document with its section on speed replaced."""
    text, n = MARKED.subn(lambda m: m[1] + section + m[2], text)
    if n != 1:
        raise ValueError(f"the document has {n} sections between <!-- speed --> and <!-- end -->, expected one")
    return text


def files(results, root=ROOT):
    """Returns path -> content of every file in the tree that shows the results."""
    documents = {root / "README.md": in_readme, root / "docs" / "performance" / "results.md": in_page}
    return ({path: filled(path.read_text("utf-8"), section(results)).encode() for path, section in documents.items()}
            | pictures({root / "docs" / "performance" / "speed.png": "small_network"}, results)
            | files_beside(root / RESULTS.relative_to(ROOT), results))


def publish(results):
    """Writes every file in the tree that shows the results."""
    for path, content in files(results).items():
        path.write_bytes(content)
