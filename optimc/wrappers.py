"""The name by which 0.1 knew `optimc.loss_scale` and `optimc.routing`; its pickles use it."""

from optimc.loss_scale import LossScaleOptimizer
from optimc.routing import MultiOptimizer, OptimizerMap

__all__ = ["LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"]
