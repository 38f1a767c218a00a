"""The figures of `optimc compare`: loss curves, and paths on a curved ravine."""

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

import optimc
from optimc.cli.compare.numbers import mean_curve
from optimc.cli.compare.training import RATES, Result, best_rate, constructor, storage
from optimc.cli.style import BLUE, GREY, ORANGE

FLOOR = 1e-15           # where a loss of 0 is drawn on a logarithmic scale


def _panels(names, x, y, title):
    """A figure with one panel per optimizer on common axes, under a title of several parts, and the panels."""
    from matplotlib.figure import Figure
    rows = -(-len(names) // 4)
    columns = -(-len(names) // rows)
    figure = Figure(figsize=(max(3 * columns, 6) + 0.5, 2.7 * rows + 1.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(names):]:
        axes.remove()
    for axes in grid[len(names) - columns:len(names)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(x)
    for axes in grid[:len(names):columns]:
        axes.set_ylabel(y)
    figure.suptitle("\n".join(line for part in title for line in _lines(part, 12 * figure.get_figwidth())))
    return figure, grid[:len(names)]


def _lines(text, most):
    """Cuts a text into lines of about the same length."""
    count = math.ceil(len(text) / most)
    return textwrap.wrap(text, int(min(most, len(text) / count + 10)))


def draw_losses(path: Path, results: dict[str, Result], target: float, message: str = "") -> None:
    """The loss by epoch: mean over seeds, and one standard deviation around it; the message is the title."""
    from matplotlib import ticker
    figure, panels = _panels(list(results), "epoch (linear to 1, then logarithmic)", "mean squared error", [
        *[message] * bool(message), "Loss by epoch: mean over seeds, band of one standard deviation"])
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        for other in results.values() if len(results) > 1 else ():
            axes.plot(mean_curve(other, "training")[0] + FLOOR, color=GREY, linewidth=1, zorder=2,
                      label="training, the other optimizers")
        for part, color, line in (("training", BLUE, "-"), ("validation", ORANGE, "--")):
            mean, spread = mean_curve(result, part)
            axes.plot(mean + FLOOR, line, color=color, linewidth=1.8, label=part, zorder=3)
            axes.fill_between(range(len(mean)), np.maximum(mean - spread, mean / 10) + FLOOR,
                              mean + spread + FLOOR, color=color, alpha=0.15, linewidth=0, zorder=1)
        if math.isfinite(target):
            axes.axhline(target + FLOOR, color="black", linestyle=":", linewidth=1.2, label="target loss", zorder=4)
        else:
            axes.set_ylim(0.1, 10)                      # all runs diverged: there is nothing to draw
        axes.set_title(f"{name}, rate {result.learning_rate:g}")
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_yscale("log")
        axes.set_xlim(0, len(result.runs[0].training) - 1)
        axes.xaxis.set_major_locator(ticker.SymmetricalLogLocator(
            base=10, linthresh=1, subs=(1, 2, 5)))
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(ticker.NullFormatter())
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center",
                  ncols=4 if len(results) > 2 else 2)
    figure.savefig(path)


def ravine(x: Any, y: Any) -> Any:
    """Rosenbrock's curved ravine with its walls lowered from 100 to 20; least, 0, at (1, 1)."""
    return (1 - x) ** 2 + 20 * (y - x ** 2) ** 2


def ravine_gradient(x: Any, y: Any) -> np.ndarray:
    """The gradient of `ravine`."""
    return np.array([-2 * (1 - x) - 80 * x * (y - x ** 2), 40 * (y - x ** 2)])


def descend(optimizer: optimc.Optimizer, steps: int = 100) -> tuple[np.ndarray, float]:
    """The points an optimizer visits in the ravine, and the mean loss there."""
    weights = np.array([-1.2, 1.6])
    points = [weights.copy()]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            optimizer.apply([ravine_gradient(*weights)], [weights])
            points.append(weights.copy())
        loss = float(np.mean(ravine(*np.transpose(points))))
    return np.array(points), loss if math.isfinite(loss) else math.inf


def _best_descent(name, state_dtype):
    """The rate that the sweep's rule chooses in the ravine, and the points visited with it."""
    options = storage(name, state_dtype)[0]
    paths = {rate: descend(constructor(name)(rate, **options)) for rate in RATES}
    rate = best_rate({rate: loss for rate, (_, loss) in paths.items()})
    return rate, paths[rate][0]


def _closest(ends):
    best, worst = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if len(ends) == 1:
        return f"{best} ends at a loss of {ends[best]:.2g}"
    return (f"{best} comes closest to the minimum (loss {ends[best]:.2g}), {worst} stays farthest from it "
            f"({ends[worst]:.2g})")


def draw_paths(path: Path, names: list[str], state_dtype: str | None = None) -> None:
    """The way of each optimizer down the ravine, at the rate that the sweep's rule chooses."""
    paths = {name: _best_descent(name, state_dtype) for name in names}
    ends = {name: float(np.nan_to_num(ravine(*points[-1]), nan=math.inf)) for name, (_, points) in paths.items()}
    figure, panels = _panels(names, "weight 1", "weight 2", [_closest(ends), (
        "100 steps from the square towards the star in Rosenbrock's curved ravine (walls lowered from 100 to 20), "
        f"each optimizer at the best of {len(RATES)} rates")])
    x, y = np.meshgrid(np.linspace(-1.7, 1.7, 200), np.linspace(-0.6, 2.3, 200))
    for axes, (name, (rate, points)) in zip(panels, paths.items(), strict=True):
        axes.contourf(x, y, np.log10(ravine(x, y) + 0.03), levels=12, cmap="Greys", vmax=5.5)
        axes.plot(*points.T, "o-", color=ORANGE, markersize=2.5, linewidth=1)
        axes.plot(*points[0], "s", color=BLUE, markersize=6, markeredgecolor="white")
        axes.plot(1, 1, "*", color=BLUE, markersize=12, markeredgecolor="white")
        axes.set(xlim=(-1.7, 1.7), ylim=(-0.6, 2.3))
        axes.set_title(f"{name}, rate {rate:g}\nloss at the end {ends[name]:.2g}")
    figure.savefig(path)
