"""optimc's kernels with the functions of DeepSpeed's compiled modules: `cpu_adam`, `cpu_lion` and `cpu_adagrad`.

DeepSpeed numbers its optimizers, and passes every number of a step, and all tensors, with it.  The formulas are
DeepSpeed's, but for Lion's sign: of zero it is zero here, and the sign of the zero there.  Tensors that are not
contiguous are stepped too, where DeepSpeed's code leaves them as they are.

Next: flat.py, the steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from optimc import optimizers
from optimc.torch.flat import Rule

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

#: elements of a step that are taken back at a time
PIECE = 1 << 17


class Op:
    """A module of kernels as DeepSpeed calls it.  Optimizers are numbers, and their rules are made at their steps."""

    _rules: dict[int, dict[bool, Rule]]

    def __init__(self) -> None:
        self._rules = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"optimc has no {name}: for ZenFlow and the like DeepSpeed must compile its own "
                             "code, without optimc.deepspeed.install()")

    def _destroy(self, number: int) -> int:
        self._rules.pop(number, None)
        return 0


class AdamOp(Op):
    """`cpu_adam`, of DeepSpeedCPUAdam."""

    def __init__(self) -> None:
        super().__init__()
        self._decouples: dict[int, bool] = {}

    def create_adam(self, number: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                    adamw_mode: bool, should_log: bool, /) -> int:
        """Registers an optimizer.  What changes with the step comes with the step."""
        self._rules[number] = {
            corrects: Rule(optimizers.AdamW if adamw_mode else optimizers.Adam, ("m", "v"), style="torch",
                           bias_correction=corrects) for corrects in (False, True)}
        self._decouples[number] = adamw_mode
        return 0

    def destroy_adam(self, number: int, /) -> int:
        self._decouples.pop(number, None)
        return self._destroy(number)

    def adam_update(self, number: int, step: int, lr: float, beta1: float, beta2: float, eps: float,
                    weight_decay: float, bias_correction: bool, param: Tensor, grad: Tensor, exp_avg: Tensor,
                    exp_avg_sq: Tensor, /) -> int:
        """Step number `step` of a parameter, in place."""
        self._rules[number][bool(bias_correction)].step(
            step, {"learning_rate": lr, "beta_1": beta1, "beta_2": beta2, "epsilon": eps,
                   "weight_decay": weight_decay}, param, grad, exp_avg, exp_avg_sq)
        return 0

    @torch.no_grad()
    def adam_rollback(self, number: int, step: int, lr: float, beta1: float, beta2: float, eps: float,
                      weight_decay: float, bias_correction: bool, param: Tensor, grad: Tensor, exp_avg: Tensor,
                      exp_avg_sq: Tensor, /) -> int:
        """Takes step number `step` back, to rounding.

        Raises:
            TypeError: a tensor is not float32: rounded numbers do not lead back.
        """
        for tensor in (param, exp_avg, exp_avg_sq):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise TypeError(f"only a step of contiguous float32 tensors can be taken back, got {tensor.dtype}")
        decouples = self._decouples[number]
        for p, g, m, v in zip(*(torch.split(tensor.reshape(-1), PIECE) for tensor in (
                param, grad, exp_avg, exp_avg_sq)), strict=True):
            now, slope, mean, square = p.double(), g.double(), m.double(), v.double()
            corrections = (1 - beta1 ** step, 1 - beta2 ** step) if bias_correction else (1.0, 1.0)
            now += lr * (mean / corrections[0]) / ((square / corrections[1]).sqrt() + eps)
            if decouples:
                now /= 1 - lr * weight_decay
            else:
                slope += weight_decay * now
            p.copy_(now)
            m.copy_(_before(mean, beta1, slope))
            v.copy_(_before(square, beta2, slope * slope).clamp_(min=0))
        return 0


def _before(average: Tensor, decay: float, added: Tensor) -> Tensor:
    """An average before `added` entered it; one without decay held nothing that counts."""
    return (average - (1 - decay) * added) / decay if decay else torch.zeros_like(average)


class LionOp(Op):
    """`cpu_lion`, of DeepSpeedCPULion."""

    def create_lion(self, number: int, lr: float, beta1: float, beta2: float, weight_decay: float,
                    should_log: bool, /) -> int:
        """Registers an optimizer."""
        self._rules[number] = {True: Rule(optimizers.Lion, ("m",))}
        return 0

    def destroy_lion(self, number: int, /) -> int:
        return self._destroy(number)

    def lion_update(self, number: int, step: int, lr: float, beta1: float, beta2: float, weight_decay: float,
                    param: Tensor, grad: Tensor, exp_avg: Tensor, /) -> int:
        """Step number `step` of a parameter, in place."""
        self._rules[number][True].step(step, {"learning_rate": lr, "beta_1": beta1, "beta_2": beta2,
                                              "weight_decay": weight_decay}, param, grad, exp_avg)
        return 0


class AdagradOp(Op):
    """`cpu_adagrad`, of DeepSpeedCPUAdagrad."""

    def create_adagrad(self, number: int, lr: float = 1e-2, eps: float = 1e-8, weight_decay: float = 0,
                       should_log: bool = False, /) -> int:
        """Registers an optimizer."""
        self._rules[number] = {True: Rule(optimizers.Adagrad, ("accumulator",), style="torch")}
        return 0

    def destroy_adagrad(self, number: int, /) -> int:
        return self._destroy(number)

    def adagrad_update(self, number: int, step: int, lr: float, eps: float, weight_decay: float, param: Tensor,
                       grad: Tensor, exp_avg_sq: Tensor, /) -> int:
        """Step number `step` of a parameter, in place.  The gradient stays as it is."""
        self._rules[number][True].step(step, {"learning_rate": lr, "epsilon": eps, "weight_decay": weight_decay},
                                       param, grad, exp_avg_sq)
        return 0


OPS: dict[str, type[Op]] = {"cpu_adam": AdamOp, "cpu_lion": LionOp, "cpu_adagrad": AdagradOp}
