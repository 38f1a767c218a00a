"""The plots of a file of results."""

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from optimc.cli.bench.processes import OURS, with_threads
from optimc.cli.bench.words import bound, duration, is_peer, merged, share
from optimc.cli.style import BLUE, GREY, ORANGE, STYLE

COLORS = {OURS: BLUE, "NumPy out=": "#CC79A7", "NumPy plain": "#882255", "torch fused": ORANGE,
          "torch foreach": "#E69F00", "torch default": "#F0E442", "optax jit": "#009E73", "Keras on NumPy": "#56B4E9",
          "Keras on torch": "#332288", "thinc": "#999933", "scikit-learn": "0.5"}
LINES = {OURS: "o-", "torch fused": "s-", "optax jit": "^-", "NumPy out=": "v-"}


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
    limits = [(n, bound(found) / n) for n, found in entries if bound(found)]
    if limits:
        axes.plot(*zip(*limits, strict=True), ":", color="black", label="the machine's limit", linewidth=1.8)
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel="ns per weight",
             title="One array, Adam, float32: time per weight")
    if entries:
        axes.legend(fontsize=8)


def draw_peers(axes, cases, title="Lists of arrays, Adam, float32, one thread"):
    """A row per case: how many times optimc's time each peer takes."""
    cases = cases[::-1]
    names = list(dict.fromkeys(name for case in cases for name, entry in merged(case["sets"]).items()
                               if "ratio" in entry and is_peer(name)))
    for name in names:
        points = [(merged(case["sets"])[name]["ratio"], row) for row, case in enumerate(cases)
                  if "ratio" in merged(case["sets"]).get(name, {})]
        axes.plot(*zip(*points, strict=True), "o", color=COLORS.get(name, GREY), label=name, markersize=6)
    axes.axvline(1, color=BLUE, linewidth=2, label=OURS)
    axes.set(xscale="log", xlabel="time of a step, as a multiple of optimc's", title=title,
             yticks=range(len(cases)), yticklabels=[
                 f"{case['title']}\n{duration(merged(case['sets'])[OURS]['median'])}" for case in cases])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(axis="y", color=GREY, linewidth=0.5)
    axes.legend(fontsize=8)


def draw_shares(axes, cases, title):
    """A bar per optimizer: how much of the machine's limit it reaches."""
    found = {case["title"]: share(merged(case["sets"])) for case in cases}
    found = dict(sorted(((name, value) for name, value in found.items() if value), key=lambda item: item[1]))
    axes.barh(list(found), [100 * value for value in found.values()], color=BLUE)
    axes.axvline(90, color=ORANGE, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 120), xlabel="per cent of the machine's limit", title=title)
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
    if cases:
        axes.legend(fontsize=8)


def timed(results, group):
    """The cases of a group in which optimc was timed."""
    return [case for case in results["cases"] if case["group"] == group
            and "median" in merged(case["sets"]).get(OURS, {})]


def draw(path, results):
    """Peers and growth side by side, as far as they were timed: the README's plot."""
    lists, sizes = timed(results, "lists"), timed(results, "sizes")
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(12, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        if lists:
            draw_peers(left, lists)
        draw_growth(right, sizes)
        figure.savefig(path)


def draw_optimizers(path, results):
    """Every optimizer's share of the machine's limit, a panel per size and dtype."""
    groups = dict.fromkeys(case["group"] for case in results["cases"] if case["group"].startswith("optimizers"))
    groups = [group for group in groups if any(share(merged(case["sets"])) for case in timed(results, group))]
    if not groups:
        return
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(5 * len(groups), 6.5), layout="constrained")
        for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
            draw_shares(axes, timed(results, group), group)
        figure.savefig(path)
