"""The numbers of `optimc compare`, made once for the table, the JSON and the sentences.

`summarise` makes a row per optimizer from the results of training.py.  Next: words.py, which shows the rows.
"""

import math
import platform
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

import optimc
from optimc.cli.compare.data import Data
from optimc.cli.compare.training import Result, Settings

#: the numbers of an optimizer by name
Row = dict[str, Any]
WITHIN = 1.05       # the fastest optimizer is the first to come this close to the lowest validation loss
#: Slots by whether they remember the size of gradients (Rprop: of steps), so that each weight has a rate of its own.
ADAPTS = {**dict.fromkeys(("v", "u", "n", "s", "accumulator", "row", "row_accumulator", "size"), True),
          **dict.fromkeys(("velocity", "m", "average", "v_max", "delta", "z", "linear", "previous", "update",
                           "column"), False)}


def summarise(results: dict[str, Result]) -> tuple[float, list[Row]]:
    """The target loss of the speed column, and the numbers of each optimizer: a row each.

    Runs that diverged set no target and reach none; if all did, the target is NaN.
    """
    lowest = [mean_curve(result, "validation")[0].min() for result in results.values()]
    target = WITHIN * min((float(loss) for loss in lowest if math.isfinite(loss)), default=math.nan)
    return target, [_row(name, result, target) for name, result in results.items()]


def _row(name, result, target):
    good = [run for run in result.runs if not run.diverged]
    final = [float(run.training[-1]) for run in good]
    epochs = [_epochs_to(target, run) for run in result.runs]
    test = mean_curve(result, "test")[0]
    slots = result.runs[0].slots
    return {
        "optimizer": name,
        "epochs_to_target": statistics.median_high(epochs),     # that of a run; inf: half or more never did
        "epochs_by_seed": epochs,
        "loss_spread": statistics.stdev(final) if len(final) > 1 else math.nan,
        "diverged": len(result.runs) - len(good),
        "adaptive": is_adaptive(slot for slot, arrays in slots.items() if arrays[0] is not None),
        "slot_bytes_per_weight": sum(array.nbytes for arrays in slots.values() for array in arrays
                                     if array is not None) / result.runs[0].n_weights,
        "learning_rate": result.learning_rate,
        "training_loss": statistics.fmean(final) if final else math.inf,
        "test_loss": float(test[-1]) if good else math.inf,
        "best_test_loss": float(test.min()) if good else math.inf,
        "best_epoch": int(test.argmin()) if good else math.inf,
        "microseconds_per_step": statistics.median(run.step_ns for run in result.runs) / 1e3,
    }


def is_adaptive(slots: Iterable[str]) -> bool:
    """Whether an optimizer with these slots gives each weight a rate of its own; every slot must be in `ADAPTS`."""
    kept = list(slots)
    unknown = [slot for slot in kept if slot not in ADAPTS]
    if unknown:
        raise KeyError(f"ADAPTS in optimc/cli/compare/numbers.py does not have the slot {unknown[0]!r}")
    return any(ADAPTS[slot] for slot in kept)


def _epochs_to(target, run):
    reached = run.validation <= target
    return int(reached.argmax()) if reached.any() and not run.diverged else math.inf


def mean_curve(result: Result, part: str) -> np.ndarray:
    """Mean and standard deviation over the runs that did not diverge, by epoch."""
    curves = [getattr(run, part) for run in result.runs if not run.diverged]
    if not curves:
        return np.full((2, len(result.runs[0].training)), math.nan)
    return np.array([np.mean(curves, axis=0), np.std(curves, axis=0)])


def as_json(data: Data, settings: Settings, results: dict[str, Result], interrupted: bool) -> dict[str, Any]:
    """All numbers as plain values; what is not finite (never, diverged) becomes None."""
    target, rows = summarise(results)
    return _plain({
        "data": {"name": data.name, "features": data.features, "target": data.target,
                 "rows": {part: len(y) for part, (_, y) in data.parts.items()}},
        "versions": {"optimc": optimc.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "isa": optimc.isa,
        "settings": {**settings._asdict(), "seeds": list(range(settings.seeds))},
        "interrupted": interrupted,
        "target_validation_loss": target,
        "results": [{
            **row,
            "sweep": [{"learning_rate": rate, "validation_loss": score}
                      for rate, score in result.scores.items()],
            "final_training_losses": [run.training[-1] for run in result.runs],
            "mean_curves": {part: mean_curve(result, part)[0] for part in ("training", "validation")},
        } for row, result in zip(rows, results.values(), strict=True)],
    })


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):                    # NumPy's float64 is one
        return float(value) if math.isfinite(value) else None
    return value
