"""State as version 1 stored it: in checkpoints of format version 1, and in pickles and `state_dict`s of optimc 0.1.

Later versions store running values by name.  Version 1 stored eleven numbers for each group, in the order that they
had in memory:

    8 products of hyperparameters, in the order of the rule's row in 0.1; NaN (None in a file) without a product
    1 number without a meaning
    2 scalars of the rule; 0 where the rule has fewer

No other module knows this layout.  The tables are of the rules of 0.1 and never change.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PRODUCTS, SCALARS = slice(0, 8), slice(9, 11)
LENGTH = 11
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "rate_in_velocity"),
    "rmsprop": ("rho", "momentum", "epsilon", "epsilon_outside", "rate_in_velocity"),
    "adam": ("beta_1", "beta_2", "epsilon", "bias_correction", "corrected_epsilon"),
    "adagrad": ("epsilon", "epsilon_outside", "learning_rate_decay"),
    "adadelta": ("rho", "epsilon"),
    "adamax": ("beta_1", "beta_2", "epsilon", "epsilon_in_norm"),
    "nadam": ("beta_1", "beta_2", "epsilon", "momentum_decay"),
    "ftrl": ("learning_rate_power", "l1_regularization_strength", "l2_regularization_strength",
             "l2_shrinkage_regularization_strength", "beta"),
    "lion": ("beta_1", "beta_2"),
    "schedule_free": ("beta_1", "beta_2", "epsilon", "warmup_steps"),
    "radam": ("beta_1", "beta_2", "epsilon", "corrected_epsilon"),
    "yogi": ("beta_1", "beta_2", "epsilon", "corrected_epsilon"),
    "adabelief": ("beta_1", "beta_2", "epsilon"),
    "rprop": ("eta_minus", "eta_plus", "min_step", "max_step"),
    "asgd": ("lambd", "alpha", "t0"),
    "adan": ("beta_1", "beta_2", "beta_3", "epsilon"),
    "lamb": ("beta_1", "beta_2", "epsilon"),
    "adafactor": ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold"),
    "muon": ("momentum", "adam_beta_1", "adam_beta_2", "epsilon", "adam_lr_ratio", "rms_rate", "adam_weight_decay"),
}
SCALAR_NAMES: dict[str, tuple[str, ...]] = {"nadam": ("u_product",), "asgd": ("eta", "mu")}


def running_by_name(rule: str | None, numbers: Sequence[float | None]) -> dict[str, dict[str, float]]:
    """The running values of a group by name, from the eleven numbers that version 1 stored for it."""
    if len(numbers) != LENGTH or rule not in HYPERPARAMETERS:
        raise ValueError(f"running: expected products and scalars by name, or {LENGTH} numbers of version 1")
    values = [math.nan if number is None else float(number) for number in numbers]
    products = zip(HYPERPARAMETERS[rule], values[PRODUCTS], strict=False)
    return {"products": {name: product for name, product in products if not math.isnan(product)},
            "scalars": dict(zip(SCALAR_NAMES.get(rule, ()), values[SCALARS], strict=False))}
