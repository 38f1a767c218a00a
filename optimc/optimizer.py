"""The name by which 0.1 knew `optimc.base.optimizer`."""

from optimc.base.optimizer import Optimizer

__all__ = ["Optimizer"]
