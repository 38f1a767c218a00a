"""`optimc compare`.  Begin with command.py; these names are for programs and notebooks."""

from optimc.cli.compare.numbers import mean_curve, summarise
from optimc.cli.compare.training import (
    CONTESTANTS,
    RATES,
    Result,
    Run,
    Settings,
    backward,
    best_rate,
    constructor,
    forward,
    mean_squared_error,
    measure,
    measure_all,
    new_weights,
    train,
)
from optimc.cli.compare.words import learnt, show

__all__ = ["CONTESTANTS", "RATES", "Result", "Run", "Settings", "backward", "best_rate", "constructor", "forward",
           "learnt", "mean_curve", "mean_squared_error", "measure", "measure_all", "new_weights", "show", "summarise",
           "train"]
