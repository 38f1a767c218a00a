"""The plots of a file of results.

A file carries a fingerprint of what it was drawn from, because the bytes of a PNG differ between versions of
matplotlib.  `drawn` returns the file as it is while its fingerprint is right.
"""

import hashlib
import io
import json
import sys
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import libraries
from optimc.cli import style
from optimc.cli.bench import words
from optimc.cli.bench.processes import OURS, with_threads
from optimc.cli.bench.words import NOISY, bound, duration, is_peer, merged, share, share_of_limit, too_noisy
from optimc.cli.style import BLUE, GREY, ORANGE, STYLE

COLORS = {OURS: BLUE, "NumPy out=": "#CC79A7", "NumPy plain": "#882255", "torch fused": ORANGE,
          "torch foreach": "#E69F00", "torch default": "#F0E442", "optax jit": "#009E73", "Keras on NumPy": "#56B4E9",
          "Keras on torch": "#332288", "thinc": "#999933", "scikit-learn": "0.5"}
LINES = {OURS: "o-", "torch fused": "s-", "optax jit": "^-", "NumPy out=": "v-"}


def plain(axis, *ticks):
    """Writes these values, and no others, at a logarithmic axis."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g} million" if x >= 1e6 else
                                           f"{x:,.0f}".replace(",", " ") if x >= 1e4 else f"{x:g}"))


def beside(axes):
    """Puts the legend to the right of the data."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def draw_race(axes, ours, others, weights):
    """A row per library, each by its fastest way: the time of one step, as a multiple of optimc's."""
    rows = [(OURS, 1, f"{duration(ours['median'])} = 1", {"color": BLUE, "fontweight": "bold"})]
    rows += [(f"{library} ({way})" if way else library, entry["ratio"], words.multiple(entry["ratio"]),
              {"color": "0.25"}) for library, (entry, way) in others.items()]
    for k, (_, ratio, label, look) in enumerate(rows):
        axes.plot(ratio, k, "o", color=look["color"], markersize=11)
        axes.text(ratio * 1.15, k, label, va="center_baseline", **look,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.set(xscale="log", xlim=(0.7, 1000), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)),
             yticklabels=[label for label, *_ in rows],
             xlabel="time of a step, as a multiple of optimc's; the axis is logarithmic")
    plain(axes.xaxis, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    axes.grid(axis="x", color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.get_yticklabels()[0].set(fontweight="bold", color=BLUE)
    axes.set_title(f"One step of Adam for a small network of {weights} weights", loc="left")


def draw_growth(axes, cases):
    """Nanoseconds per weight by the number of weights, with quartiles, and the machine's limit."""
    cases = sorted((case for case in cases if case["group"] == "sizes" and case["weights"] >= 1000),
                   key=lambda case: case["weights"])
    entries = [(case["weights"], merged(case["sets"])) for case in cases]
    for name, line in LINES.items():
        color = COLORS[name]
        points = [(n, *(found[name][key] / n for key in ("median", "low", "high"))) for n, found in entries
                  if "median" in found.get(name, {})]
        if points:
            n, median, low, high = zip(*points, strict=True)
            axes.plot(n, median, line, color=color, label=name, markersize=4, linewidth=1.5)
            axes.fill_between(n, low, high, color=color, alpha=0.2, linewidth=0)
    many = [(n, found[name]["median"] / n) for n, found in entries for name in found
            if name.startswith(f"{OURS}, ") and "median" in found[name]]
    if many:
        axes.plot(*zip(*many, strict=True), "--", color=BLUE, label=f"{OURS}, all threads", linewidth=1.2)
    limits = [(n, bound(found) / n) for n, found in entries if bound(found) and not too_noisy(found)]
    if limits:
        axes.plot(*zip(*limits, strict=True), "x:", color="black", label="hardware limit,\none thread", linewidth=1.6)
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel="ns per weight",
             title="One array, Adam, float32: time per weight")
    plain(axes.xaxis, *(10 ** k for k in range(3, 9)))
    plain(axes.yaxis, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    axes.grid(axis="y", color=GREY, linewidth=0.5)
    beside(axes)


def draw_peers(axes, cases, title="Lists of arrays, Adam, float32, one thread"):
    """A row per case: how many times optimc's time each peer takes."""
    cases = cases[::-1]
    names = list(dict.fromkeys(name for case in cases for name, entry in merged(case["sets"]).items()
                               if "ratio" in entry and is_peer(name)))
    axes.axvline(1, color=BLUE, linewidth=2, label=OURS)
    for name in names:
        points = [(merged(case["sets"])[name]["ratio"], row) for row, case in enumerate(cases)
                  if "ratio" in merged(case["sets"]).get(name, {})]
        axes.plot(*zip(*points, strict=True), "o", color=COLORS.get(name, GREY), label=name, markersize=6)
    axes.set(xscale="log", xlabel="time of a step, as a multiple of optimc's (logarithmic)", title=title,
             yticks=range(len(cases)), yticklabels=[
                 f"{case['title']}\n{duration(merged(case['sets'])[OURS]['median'])}" for case in cases])
    plain(axes.xaxis, 1, 10, 100, 1000, 10_000)
    axes.grid(axis="both", color=GREY, linewidth=0.5)
    beside(axes)


def draw_shares(axes, cases, title):
    """A bar per optimizer: how much of the machine's limit it reaches, or that this is too noisy to judge."""
    found = {case["title"]: merged(case["sets"]) for case in cases}
    found = dict(sorted(((name, entries) for name, entries in found.items() if share(entries)),
                        key=lambda item: (too_noisy(item[1]), share(item[1]))))
    for name, entries in found.items():
        if too_noisy(entries):
            axes.barh(name, 0)
            axes.text(1, name, NOISY, va="center", fontsize=8, color="0.4")
        else:
            axes.barh(name, min(100, 100 * share(entries)), color=BLUE)
            axes.text(2, name, share_of_limit(entries), va="center", fontsize=8, color="white")
    axes.set(xlim=(0, 100), ylim=(-0.7, len(found) - 0.3), xlabel="per cent of the machine's limit", title=title)
    axes.tick_params(axis="y", labelsize=8)


def draw_threads(axes, cases, title):
    """By size, the time of a step on all threads as a multiple of one's, with quartiles: it should not cross 1."""
    for name, color in ((OURS, BLUE), ("torch fused", ORANGE)):
        points = []
        for case in cases:
            entries = merged(case["sets"])
            one, many = (entries.get(with_threads(name, case["threads"][k]), {}) for k in (0, -1))
            if one is not many and "median" in one and "median" in many:
                points.append((case["weights"], *(many[key] / one["median"] for key in ("median", "low", "high"))))
        if points:
            n, median, low, high = zip(*points, strict=True)
            axes.plot(n, median, "o-", color=color, label=name, markersize=4)
            axes.fill_between(n, low, high, color=color, alpha=0.2, linewidth=0)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel="time on all threads / on one", title=title)
    plain(axes.xaxis, *(10 ** k for k in range(0, 9, 2)))
    plain(axes.yaxis, 0.5, 0.7, 1, 1.4, 2)
    beside(axes)


def timed(results, group):
    """The cases of a group in which optimc was timed."""
    return [case for case in results["cases"] if case["group"] == group
            and "median" in merged(case["sets"]).get(OURS, {})]


# ------------------------------------------------------------------------------------------- files


def small_network(results):
    """The README's picture; None if its case was not timed."""
    found = libraries.race(results)
    if found is None:
        return None
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    draw_race(figure.subplots(), *found)
    return figure


def overview(results):
    """Peers above, growth below, as far as they were timed."""
    lists, sizes = timed(results, "lists"), timed(results, "sizes")
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    above, below = figure.subplots(2, 1)
    if lists:
        draw_peers(above, lists)
    draw_growth(below, sizes)
    return figure


def optimizers(results):
    """Every optimizer's share of the machine's limit, a panel per size and dtype; None if no limit was measured."""
    groups = dict.fromkeys(case["group"] for case in results["cases"] if case["group"].startswith("optimizers"))
    groups = [group for group in groups if any(share(merged(case["sets"])) for case in timed(results, group))]
    if not groups:
        return None
    figure = Figure(figsize=(5 * len(groups), 6.5), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        draw_shares(axes, timed(results, group), group)
    return figure


def fingerprint(results):
    """Names the results and the code of the plots."""
    code = b"".join(Path(module.__file__).read_bytes().replace(b"\r\n", b"\n")
                    for module in (sys.modules[__name__], libraries, style))
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode() + code).hexdigest()


def drawn(path, make, results):
    """Returns the bytes of a picture: those of the file if it shows these results, else new ones; None if nothing is.

    Args:
        path: the file, which need not exist.
        make: `small_network`, `overview` or `optimizers`.
        results: what `report.load` returns.
    """
    mark = fingerprint(results)
    if path.exists() and mark.encode() in (content := path.read_bytes()):
        return content
    with matplotlib.style.context(["default", STYLE]):
        figure = make(results)
        if figure is None:
            return None
        content = io.BytesIO()
        figure.savefig(content, metadata={"Source": mark})
    return content.getvalue()
