"""Colours and style of all figures: those of `compare`, of benchmarks/ and of the notebooks."""

from typing import Any

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.75"       # readers with any kind of colour vision can tell them apart
STYLE: dict[str, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
                         "legend.frameon": False, "savefig.dpi": 150}
