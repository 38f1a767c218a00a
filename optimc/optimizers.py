"""The optimizers: one short class each, its arguments in Keras's order with Keras's defaults.

Formulas are above each rule in csrc/rules.inc.  To add one, see CONTRIBUTING.md.
"""

from optimc.arguments import HIGH_OPEN, Option, Value, at_least_zero, fraction
from optimc.optimizer import Optimizer


class SGD(Optimizer):
    """Gradient descent; with momentum (Polyak, 1964) or Nesterov momentum (Sutskever et al., 2013).

    velocity <- momentum velocity - learning_rate g;  w <- w + velocity.  The learning rate is inside the
    velocity, as in Keras.  Slots: `velocity`, only with momentum.

    Args:
        learning_rate: finite and >= 0; a number, a schedule (called with the step), or a callable.
        momentum: in [0, 1].
        nesterov: look ahead along the velocity; plain SGD without momentum.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.array([1.0, 2.0], np.float32)
        >>> opt = optimc.SGD(learning_rate=0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     opt.apply([2 * w], [w])             # the gradient of sum(w ** 2)
        >>> w
        array([0.46, 0.92], dtype=float32)
    """

    rule = "sgd"
    learning_rate = Value(0.01)
    momentum = fraction(0.0)
    nesterov = Option(False)
    keras_slots = ({"velocity": "momentum"},)

    def _kernel(self):
        if not self._in_use("momentum"):
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton, 2012), optionally with momentum or centered (Graves, 2013).

    v <- rho v + (1 - rho) g^2;  w <- w - learning_rate g / sqrt(v + epsilon), epsilon inside the root.
    Slots: `v`; `velocity` with momentum; `average`, of gradients, if centered.

    Args:
        learning_rate: finite and >= 0; a number, a schedule (called with the step), or a callable.
        rho: decay of the averages, in [0, 1].
        momentum: in [0, 1].
        epsilon: >= 0.
        centered: divide by the estimated variance instead of the second moment.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.RMSprop(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.6837724, 1.3162277], dtype=float32)
    """

    rule = "rmsprop"
    learning_rate = Value(0.001)
    rho = fraction(0.9)
    momentum = fraction(0.0)
    epsilon = Value(1e-7)
    centered = Option(False)
    keras_slots = ({"v": "velocity"}, {"velocity": "momentum"}, {"average": "average_gradient"})

    def _kernel(self):
        return "rmsprop" + "_centered" * self.centered + "_momentum" * self._in_use("momentum")


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2014, arXiv 1412.6980), optionally AMSGrad (Reddi et al., 2018, arXiv 1904.09237).

    m <- m + (g - m)(1 - beta_1);  v <- v + (g^2 - v)(1 - beta_2);
    w <- w - m alpha / (sqrt(v) + epsilon) with alpha = learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t).
    Slots: `m`, `v`; `v_max` with amsgrad.

    Args:
        learning_rate: finite and >= 0; a number, a schedule (called with the step), or a callable.
        beta_1, beta_2: decay of the two moments, in [0, 1).
        epsilon: >= 0, the paper's "epsilon hat": added to the uncorrected root.
        amsgrad: divide by the largest second moment so far.
        bias_correction: False leaves the corrections out, alpha = learning_rate: Adam as first taught.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adam(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.90000033, 1.0999999 ], dtype=float32)
    """

    rule = "adam"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-7)
    amsgrad = Option(False)
    bias_correction = Option(True, keyword_only=True)
    keras_slots = ({"m": "momentum", "v": "velocity"}, {"v_max": "velocity_hat"})

    def _kernel(self):
        return "amsgrad" if self.amsgrad else "adam"


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2017, arXiv 1711.05101).

    Before Adam's update, w <- w - w weight_decay learning_rate.  Arguments and slots are Adam's, but
    `weight_decay` is the second argument and must be a number.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.AdamW(0.1, weight_decay=0.5).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.8500003, 1.05     ], dtype=float32)
    """

    learning_rate = Value(0.001)
    weight_decay = Value(0.004)


class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011, JMLR 12).

    accumulator <- accumulator + g^2;  w <- w - learning_rate g / sqrt(accumulator + epsilon), epsilon
    inside the root.  Slots: `accumulator`.

    Args:
        learning_rate: finite and >= 0; a number, a schedule (called with the step), or a callable.
        initial_accumulator_value: what the accumulator starts from, >= 0.
        epsilon: >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adagrad(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.9046537, 1.099689 ], dtype=float32)
    """

    rule = "adagrad"
    learning_rate = Value(0.001)
    initial_accumulator_value = Option(0.1, at_least_zero)
    epsilon = Value(1e-7)
    keras_slots = ({"accumulator": "accumulator"},)

    def _initial(self, slot, weight):
        return self.initial_accumulator_value
