"""The optimizers: one short class each, with arguments in Keras's order and Keras's defaults.

The formulas are above each rule in csrc/rules.inc.  To add an optimizer, see CONTRIBUTING.md.
"""

import math

from optimc import registry
from optimc._core import warn
from optimc.base import narrow
from optimc.base.arguments import HIGH_OPEN, LOW_OPEN, Option, Value, at_least_zero, cautious, fraction, real
from optimc.base.optimizer import Optimizer


class SGD(Optimizer):
    """Gradient descent, optionally with momentum (Polyak, 1964) or Nesterov momentum (Sutskever et al., 2013).

    Formula:
        velocity <- momentum velocity - learning_rate g
        w <- w + velocity

    The learning rate is inside the velocity, as in Keras.  Slots: `velocity`, only with momentum.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        momentum: in [0, 1].
        nesterov: look ahead along the velocity; without momentum it has no effect, and a warning says so.
        dampening: with rate_in_velocity=False, the velocity adds (1 - dampening) g; in [0, 1].
        rate_in_velocity: False leaves the learning rate out of the velocity and applies it to the weight:
            velocity <- momentum velocity + (1 - dampening) g;  w <- w - learning_rate velocity.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.array([1.0, 2.0], np.float32)
        >>> opt = optimc.SGD(learning_rate=0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     opt.apply([2 * w], [w])             # the gradient of sum(w ** 2)
        >>> w
        array([0.46, 0.92], dtype=float32)
    """

    _rule = "sgd"
    learning_rate = Value(0.01)
    momentum = fraction(0.0, also=0.9)
    nesterov = Option(False)
    dampening = fraction(0.0, keyword_only=True)
    rate_in_velocity = Option(True, keyword_only=True)
    cautious = cautious()
    styles = {
        "torch": {"learning_rate": 1e-3, "rate_in_velocity": False, "coupled_weight_decay": True},
        "optax": {"rate_in_velocity": False},
    }
    _keras_slots = ({"velocity": "momentum"},)

    def _advise(self, given):
        # a configuration gives the momentum too: only a person leaves it out
        if self.nesterov and "momentum" not in given and not self._in_use("momentum"):
            warn("SGD(nesterov=True) without momentum is plain SGD: give a momentum, such as 0.9")

    def _kernel(self):
        if not self._in_use("momentum"):
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton, 2012), optionally with momentum or centered (Graves, 2013).

    Formula:
        v <- rho v + (1 - rho) g^2
        w <- w - learning_rate g / sqrt(v + epsilon)

    Slots: `v`; `velocity` with momentum; `average`, of gradients, if centered.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        rho: decay of the averages, in [0, 1].
        momentum: in [0, 1].
        epsilon: >= 0.
        centered: divide by the estimated variance instead of the second moment.
        epsilon_outside: add epsilon to the root instead.
        rate_in_velocity: False applies the learning rate to the weight, not inside the velocity.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.RMSprop(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.6837724, 1.3162277], dtype=float32)
    """

    _rule = "rmsprop"
    learning_rate = Value(0.001)
    rho = fraction(0.9)
    momentum = fraction(0.0, also=0.9)
    epsilon = Value(1e-7)
    centered = Option(False)
    epsilon_outside = Option(False, keyword_only=True)
    rate_in_velocity = Option(True, keyword_only=True)
    cautious = cautious()
    styles = {
        "torch": {"learning_rate": 1e-2, "rho": 0.99, "epsilon": 1e-8, "epsilon_outside": True,
                  "rate_in_velocity": False, "coupled_weight_decay": True},
        "optax": {"epsilon": 1e-8},
    }
    _keras_slots = ({"v": "velocity"}, {"velocity": "momentum"}, {"average": "average_gradient"})

    def _kernel(self):
        return "rmsprop" + "_centered" * self.centered + "_momentum" * self._in_use("momentum")


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2014, arXiv 1412.6980), optionally AMSGrad (Reddi et al., 2018, arXiv 1904.09237).

    Formula:
        m <- m + (g - m)(1 - beta_1)
        v <- v + (g^2 - v)(1 - beta_2)
        alpha = learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t)
        w <- w - alpha m / (sqrt(v) + epsilon)

    Slots: `m`, `v`; `v_max` with amsgrad.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the first moment m, in [0, 1).
        beta_2: decay of the second moment v, in [0, 1).
        epsilon: >= 0, added to the uncorrected root (the paper's "epsilon hat").
        amsgrad: divide by the largest second moment so far.
        bias_correction: False leaves out the corrections: alpha = learning_rate.
        corrected_epsilon: add epsilon to the root of v / (1 - beta_2^t) instead, as in the paper's algorithm 1.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adam(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.90000033, 1.0999999 ], dtype=float32)
    """

    _rule = "adam"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-7)
    amsgrad = Option(False)
    bias_correction = Option(True, keyword_only=True)
    corrected_epsilon = Option(False, keyword_only=True)
    cautious = cautious()
    styles = {
        "torch": {"epsilon": 1e-8, "corrected_epsilon": True, "coupled_weight_decay": True, "decay_as_factor": True},
        "optax": {"epsilon": 1e-8, "corrected_epsilon": True},
    }
    _keras_slots = ({"m": "momentum", "v": "velocity"}, {"v_max": "velocity_hat"})

    def _kernel(self):
        return "amsgrad" if self.amsgrad else "adam"


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2017, arXiv 1711.05101).

    Formula:
        w <- w - weight_decay learning_rate w, before Adam's update

    Slots and arguments are Adam's, except that `weight_decay` is the second argument and must be a number.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.AdamW(0.1, weight_decay=0.5).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.8500003, 1.05     ], dtype=float32)
    """

    learning_rate = Value(0.001)
    weight_decay = Value(0.004)
    styles = {
        "torch": {"weight_decay": 1e-2, "epsilon": 1e-8, "corrected_epsilon": True, "decay_as_factor": True},
        "optax": {"weight_decay": 1e-4, "epsilon": 1e-8, "corrected_epsilon": True},
    }


class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011, JMLR 12).

    Formula:
        accumulator <- accumulator + g^2
        w <- w - learning_rate g / sqrt(accumulator + epsilon)

    Slots: `accumulator`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        initial_accumulator_value: initial value of the accumulator, >= 0.
        epsilon: >= 0.
        epsilon_outside: add epsilon to the root instead.
        learning_rate_decay: divide the learning rate by 1 + (t - 1) learning_rate_decay; >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adagrad(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.9046537, 1.099689 ], dtype=float32)
    """

    _rule = "adagrad"
    learning_rate = Value(0.001)
    initial_accumulator_value = Option(0.1, at_least_zero)
    epsilon = Value(1e-7)
    epsilon_outside = Option(False, keyword_only=True)
    learning_rate_decay = Value(0.0, keyword_only=True)
    styles = {
        "torch": {"learning_rate": 1e-2, "initial_accumulator_value": 0.0, "epsilon": 1e-10,
                  "epsilon_outside": True, "coupled_weight_decay": True},
        "optax": {},
    }
    _keras_slots = ({"accumulator": "accumulator"},)

    def _initial(self, slot, weight, group):
        return self.initial_accumulator_value


class RowwiseAdagrad(Optimizer):
    """Row-wise Adagrad (FBGEMM, Khudia et al., 2021, arXiv 2101.05615): one accumulator a row, for embeddings.

    Formula:
        row_accumulator <- row_accumulator + mean(g^2), over columns
        w <- w - learning_rate / (sqrt(row_accumulator) + epsilon) g

    A row is what shares its first index; a weight of one axis has rows of one element.  The mean is summed in eight
    lanes, and a step has the bits of FBGEMM's on a CPU.  Weights must be in C order.

    Slots: `row_accumulator`, of shape weight.shape[:1].

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        initial_accumulator_value: initial value of the accumulators, >= 0.
        epsilon: >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> table = np.zeros((1000, 2), np.float32)
        >>> grad = optimc.Rows([7], np.array([[1.0, 7.0]], np.float32))
        >>> opt = optimc.RowwiseAdagrad(learning_rate=0.5)
        >>> opt.apply([grad], [table])
        >>> table[7]
        array([-0.1, -0.7], dtype=float32)
        >>> opt.slots["row_accumulator"][0].shape
        (1000,)
    """

    _rule = "rowwise_adagrad"
    _elementwise = False
    learning_rate = Value(0.01)
    initial_accumulator_value = Option(0.0, at_least_zero)
    epsilon = Value(1e-8)

    def _initial(self, slot, weight, group):
        return self.initial_accumulator_value


class Adadelta(Optimizer):
    """Adadelta (Zeiler, 2012, arXiv 1212.5701), with a learning rate.

    Formula:
        accumulator <- rho accumulator + (1 - rho) g^2
        d = sqrt(delta + epsilon) g / sqrt(accumulator + epsilon)
        delta <- rho delta + (1 - rho) d^2
        w <- w - learning_rate d

    Slots: `accumulator`, `delta`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        rho: decay of the averages, in [0, 1].
        epsilon: >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adadelta(learning_rate=100.0).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.8585788, 1.1414213], dtype=float32)
    """

    _rule = "adadelta"
    learning_rate = Value(0.001)
    rho = fraction(0.95)
    epsilon = Value(1e-7)
    styles = {
        "torch": {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6, "coupled_weight_decay": True},
        "optax": {"rho": 0.9, "epsilon": 1e-6},
    }
    _keras_slots = ({"accumulator": "accumulated_grad", "delta": "accumulated_delta_var"},)


class Adamax(Optimizer):
    """Adamax (Kingma & Ba, 2014, arXiv 1412.6980, section 7.1): Adam with the infinity norm.

    Formula:
        m <- m + (g - m)(1 - beta_1)
        u <- max(beta_2 u, |g|)
        w <- w - learning_rate m / ((1 - beta_1^t)(u + epsilon))

    Slots: `m`, `u`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the mean, in [0, 1).
        beta_2: decay of the norm, in [0, 1].
        epsilon: >= 0.
        epsilon_in_norm: add epsilon to `|g|` in the norm instead.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adamax(learning_rate=0.5).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.50000006, 1.5       ], dtype=float32)
    """

    _rule = "adamax"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999)
    epsilon = Value(1e-7)
    epsilon_in_norm = Option(False, keyword_only=True)
    cautious = cautious()
    styles = {
        "torch": {"learning_rate": 2e-3, "epsilon": 1e-8, "epsilon_in_norm": True, "coupled_weight_decay": True},
        "optax": {"epsilon": 1e-8, "epsilon_in_norm": True},
    }
    _keras_slots = ({"m": "momentum", "u": "norm"},)


class Nadam(Optimizer):
    """Nadam (Dozat, 2016, ICLR workshop): Adam with Nesterov momentum.

    Formula:
        u_t = beta_1 (1 - 0.96^(t momentum_decay) / 2)
        U_t = U_(t-1) u_t, the product of all so far
        m <- m + (g - m)(1 - beta_1)
        v <- v + (g^2 - v)(1 - beta_2)
        m_hat = u_(t+1) m / (1 - U_(t+1)) + (1 - u_t) g / (1 - U_t)
        w <- w - learning_rate m_hat / (sqrt(v / (1 - beta_2^t)) + epsilon)

    Slots: `m`, `v`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the first moment m, in [0, 1).
        beta_2: decay of the second moment v, in [0, 1).
        epsilon: >= 0.
        momentum_decay: how fast the momentum grows to beta_1; >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Nadam(learning_rate=0.5).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.46860272, 1.5313973 ], dtype=float32)
    """

    _rule = "nadam"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-7)
    momentum_decay = Value(1.0, also=0.004, keyword_only=True)
    cautious = cautious()
    styles = {
        "torch": {"learning_rate": 2e-3, "epsilon": 1e-8, "momentum_decay": 4e-3, "coupled_weight_decay": True,
                  "decay_as_factor": True},
        "optax": {"epsilon": 1e-8, "momentum_decay": 1e6},      # its momentum is beta_1 from the start
    }
    _keras_slots = ({"m": "momentum", "v": "velocity"},)


class Ftrl(Optimizer):
    """FTRL-Proximal (McMahan et al., 2013, KDD), for sparse linear models; shrinkage as in TensorFlow.

    Formula:
        p = -learning_rate_power
        n = accumulator + g^2
        linear <- linear + (g + 2 l2_shrinkage w) - (n^p - accumulator^p) / learning_rate w
        accumulator <- n
        w <- (clip(linear, -l1, l1) - linear) / (n^p / learning_rate + 2 (l2 + beta / (2 learning_rate)))

    The weight is computed from the slots alone, so its value before the first step has no effect.  Slots:
    `accumulator`, `linear`.  With a power other than -0.5 the last bit depends on the C library.

    Args:
        learning_rate: > 0; a number, schedule or callable.
        learning_rate_power: <= 0.
        initial_accumulator_value: initial value of the accumulator, >= 0.
        l1_regularization_strength, l2_regularization_strength, l2_shrinkage_regularization_strength: >= 0.
        beta: >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.zeros(2, np.float32)
        >>> optimc.Ftrl(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([-0.09534626,  0.09968895], dtype=float32)
    """

    _rule = "ftrl"
    learning_rate = Value(0.001, open=LOW_OPEN)
    learning_rate_power = Value(-0.5, -math.inf, 0.0, also=-0.6)
    initial_accumulator_value = Option(0.1, at_least_zero)
    l1_regularization_strength = Value(0.0, also=0.5)
    l2_regularization_strength = Value(0.0, also=0.5)
    l2_shrinkage_regularization_strength = Value(0.0, also=0.5)
    beta = Value(0.0, also=0.5)
    _keras_slots = ({"accumulator": "accumulator", "linear": "linear"},)

    def _kernel(self):
        index = self._index["learning_rate_power"]
        powers = {self._get_value(group, index) for group in self._owners(index)}
        return "ftrl" if powers == {-0.5} else "ftrl_power"

    def _initial(self, slot, weight, group):
        return self.initial_accumulator_value if slot == "accumulator" else 0


class Lion(Optimizer):
    """Lion (Chen et al., 2023, arXiv 2302.06675): each element moves by learning_rate or not at all.

    Formula:
        w <- w - learning_rate sign(beta_1 m + (1 - beta_1) g)
        m <- beta_2 m + (1 - beta_2) g

    Slots: `m`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: weight of the momentum in the update, in (0, 1].
        beta_2: decay of the momentum, in [0, 1].

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Lion(learning_rate=0.25).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.75, 1.25], dtype=float32)
    """

    _rule = "lion"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=LOW_OPEN)
    beta_2 = fraction(0.99)
    cautious = cautious()
    styles = {"optax": {"weight_decay": 1e-3}}
    _keras_slots = ({"m": "momentum"},)


class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW (Defazio et al., 2024, arXiv 2405.15682): an average of weights replaces the schedule.

    Formula:
        v <- v + (g^2 - v)(1 - beta_2)
        z <- z - learning_rate g / (sqrt(v / (1 - beta_2^t)) + epsilon)
        x <- (1 - 1 / t) x + z / t
        w = (1 - beta_1) z + beta_1 x

    Compute gradients at w.  Evaluate with x: `with opt.averaged(): ...`.  Slots: `z`, which starts as the weight,
    and `v`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: share of x in the weight, in (0, 1).
        beta_2: decay of the second moment, in [0, 1).
        epsilon: >= 0.
        warmup_steps: steps over which the learning rate grows from 0; >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> opt = optimc.ScheduleFreeAdamW(learning_rate=0.5)
        >>> for _ in range(3):
        ...     opt.apply([w.copy()], [w])
        >>> with opt.averaged([w]):
        ...     print(w)
        [0.20830101 0.20830101]
    """

    _rule = "schedule_free"
    learning_rate = Value(0.0025)
    beta_1 = Value(0.9, 0.0, 1.0, open=LOW_OPEN | HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-8)
    warmup_steps = Value(0, also=3)
    _keras_slots = ({"z": "momentum", "v": "velocity"},)
    _late_slots = ("z",)

    def _initial(self, slot, weight, group):
        return weight if slot == "z" else 0

    @staticmethod
    def _average(w, z, beta_1):
        """x of w: of arrays, or of tensors, of the type of beta_1."""
        return (w - (1 - beta_1) * z) / beta_1

    def _evaluation_weights(self, weights):
        if self.use_ema:
            return super()._evaluation_weights(weights)
        beta_1 = self.beta_1
        return [self._average(w, z, w.dtype.type(beta_1))
                for w, z in zip(narrow.exact_weights(self), self._slots["z"], strict=True)]


class RAdam(Optimizer):
    """Rectified Adam (Liu et al., 2019, arXiv 1908.03265): momentum alone until the second moment is reliable.

    Formula:
        rho = 2 / (1 - beta_2) - 1
        rho_t = rho - 2 t beta_2^t / (1 - beta_2^t)
        r_t = sqrt((rho_t - 4)(rho_t - 2) rho / ((rho - 4)(rho - 2) rho_t))
        m <- m + (g - m)(1 - beta_1)
        v <- v + (g^2 - v)(1 - beta_2)
        alpha = learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t)
        w <- w - learning_rate m / (1 - beta_1^t), as long as rho_t <= 5
        w <- w - r_t alpha m / (sqrt(v) + epsilon), as soon as rho_t > 5

    Slots: `m`, `v`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the first moment m, in [0, 1).
        beta_2: decay of the second moment v, in [0, 1).
        epsilon: >= 0, added to the uncorrected root.
        corrected_epsilon: add epsilon to the root of v / (1 - beta_2^t) instead.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.RAdam(learning_rate=0.125).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.875, 1.5  ], dtype=float32)
    """

    _rule = "radam"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-7)
    corrected_epsilon = Option(False, keyword_only=True)
    cautious = cautious()
    styles = {
        "torch": {"epsilon": 1e-8, "coupled_weight_decay": True, "decay_as_factor": True},
        "optax": {"epsilon": 1e-8, "corrected_epsilon": True},
    }


class Yogi(Optimizer):
    """Yogi (Zaheer et al., 2018, NeurIPS): Adam with a second moment that grows slowly.

    Formula:
        m <- m + (g - m)(1 - beta_1)
        v <- v - (1 - beta_2) sign(v - g^2) g^2
        alpha = learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t)
        w <- w - alpha m / (sqrt(v) + epsilon)

    Slots: `m`, `v`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the first moment m, in [0, 1).
        beta_2: decay of the second moment v, in [0, 1).
        epsilon: >= 0, added to the uncorrected root.
        initial_accumulator_value: initial value of v, >= 0.
        initial_mean: initial value of m.
        bias_correction: False leaves out the corrections: alpha = learning_rate.
        corrected_epsilon: add epsilon to the root of v / (1 - beta_2^t) instead.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Yogi(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.9031123, 1.0992125], dtype=float32)
    """

    _rule = "yogi"
    learning_rate = Value(0.01)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-3)
    initial_accumulator_value = Option(1e-6, at_least_zero)
    initial_mean = Option(0.0, real, keyword_only=True)
    bias_correction = Option(True, keyword_only=True)
    corrected_epsilon = Option(False, keyword_only=True)
    cautious = cautious()
    styles = {"optax": {"initial_mean": 1e-6, "corrected_epsilon": True}}

    def _initial(self, slot, weight, group):
        return self.initial_accumulator_value if slot == "v" else self.initial_mean


class AdaBelief(Optimizer):
    """AdaBelief (Zhuang et al., 2020, arXiv 2010.07468): longer steps where gradients are close to their mean.

    Formula:
        m <- m + (g - m)(1 - beta_1)
        s <- s + ((g - m)^2 - s)(1 - beta_2) + epsilon
        w <- w - learning_rate m / (1 - beta_1^t) / (sqrt(s / (1 - beta_2^t)) + epsilon)

    Slots: `m`, `s`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the mean m, in [0, 1).
        beta_2: decay of the average s, in [0, 1).
        epsilon: >= 0.
        bias_correction: False leaves out the divisors 1 - beta_1^t and 1 - beta_2^t.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.AdaBelief(learning_rate=0.5).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.44444442, 1.5555556 ], dtype=float32)
    """

    _rule = "adabelief"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-16)
    bias_correction = Option(True, keyword_only=True)
    cautious = cautious()
    styles = {"optax": {}}


class Rprop(Optimizer):
    """iRprop- (Igel & Huesken, 2003), for full batches: a step size per element, from the signs of gradients.

    Formula:
        size <- min(eta_plus size, max_step), where the gradient keeps its sign
        size <- max(eta_minus size, min_step), where the sign changes; there the element stays
        w <- w - sign(g) size

    Slots: `previous` gradient and `size`.

    Args:
        learning_rate: the initial size, finite and >= 0; later changes have no effect.
        eta_minus: factor where the sign changes, in (0, 1).
        eta_plus: factor where the gradient keeps its sign, > 1.
        min_step: lower bound of the size, >= 0.
        max_step: upper bound of the size, >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> opt = optimc.Rprop(learning_rate=0.5)
        >>> for g in ([1, -1], [1, 1]):
        ...     opt.apply([np.array(g, np.float32)], [w])
        >>> w
        array([-0.10000002,  1.5       ], dtype=float32)
    """

    _rule = "rprop"
    learning_rate = Value(0.01)
    eta_minus = Value(0.5, 0.0, 1.0, open=LOW_OPEN | HIGH_OPEN)
    eta_plus = Value(1.2, 1.0, open=LOW_OPEN)
    min_step = Value(1e-6)
    max_step = Value(50.0)
    styles = {"torch": {}}
    _late_slots = ("size",)

    def _initial(self, slot, weight, group):
        return self._ask_value(group, self._index["learning_rate"]) if slot == "size" else 0


class ASGD(Optimizer):
    """Averaged gradient descent (Polyak & Juditsky, 1992), with Bottou's rates, as in torch.

    Formula:
        rate = learning_rate / (1 + lambd learning_rate (t - 1))^alpha
        w <- w (1 - lambd rate) - rate g

    From step t0 on `average` is the mean of the weights.  Evaluate with it: `with opt.averaged(): ...`.
    Slots: `average`.  With an alpha other than 0.75 the last bit of the rate depends on the C library.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        lambd: decay, >= 0.
        alpha: power of the rate's decay, >= 0.
        t0: the step at which averaging starts, >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(1, np.float32)
        >>> opt = optimc.ASGD(learning_rate=0.5, lambd=0.0, t0=0)
        >>> for _ in range(3):
        ...     opt.apply([np.ones(1, np.float32)], [w])
        >>> with opt.averaged([w]):
        ...     print(w)
        [-0.25]
    """

    _rule = "asgd"
    learning_rate = Value(0.01)
    lambd = Value(1e-4)
    alpha = Value(0.75, also=0.5)
    t0 = Value(1e6, also=2)
    styles = {"torch": {"coupled_weight_decay": True}}

    def _evaluation_weights(self, weights):
        return super()._evaluation_weights(weights) if self.use_ema else self._slots["average"]


class Adan(Optimizer):
    """Adan (Xie et al., 2022, arXiv 2208.06677): Nesterov momentum from differences of gradients.

    Formula:
        d = g - previous, 0 at first
        m <- m + (g - m)(1 - beta_1)
        v <- v + (d - v)(1 - beta_2)
        n <- n + ((g + beta_2 d)^2 - n)(1 - beta_3)
        u = m / (1 - beta_1^t) + beta_2 v / (1 - beta_2^t)
        w <- w - learning_rate u / (sqrt(n / (1 - beta_3^t)) + epsilon)

    Slots: `m`, `v`, `n`, `previous`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of m, the mean of gradients, in [0, 1).
        beta_2: decay of v, the mean of their differences, in [0, 1).
        beta_3: decay of n, the mean of squares, in [0, 1).
        epsilon: >= 0.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(2, np.float32)
        >>> optimc.Adan(learning_rate=0.5).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([0.5, 1.5], dtype=float32)
    """

    _rule = "adan"
    learning_rate = Value(0.001)
    beta_1 = fraction(0.98, open=HIGH_OPEN)
    beta_2 = fraction(0.92, open=HIGH_OPEN)
    beta_3 = fraction(0.99, open=HIGH_OPEN)
    epsilon = Value(1e-8)
    cautious = cautious()


class Lamb(Optimizer):
    """LAMB (You et al., 2019, arXiv 1904.00962), for large batches: Adam with steps scaled to the weight's norm.

    Formula:
        m <- m + (g - m)(1 - beta_1)
        v <- v + (g^2 - v)(1 - beta_2)
        u = m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
        w <- w - norm(w) / norm(u) learning_rate u

    The norms are of the whole weight; the ratio is 1 if either is 0.  Two passes: over w, g, m, v, u and over w, u.
    Slots: `m`, `v`; `update`, scratch for u.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_1: decay of the first moment m, in [0, 1).
        beta_2: decay of the second moment v, in [0, 1).
        epsilon: >= 0.
        bias_correction: False leaves out the divisors 1 - beta_1^t and 1 - beta_2^t.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.array([3.0, 4.0], np.float32)
        >>> optimc.Lamb(learning_rate=0.1).apply([np.array([1.0, -4.0], np.float32)], [w])
        >>> w
        array([2.6464467, 4.3535533], dtype=float32)
    """

    _rule = "lamb"
    _elementwise = False
    learning_rate = Value(0.001)
    beta_1 = fraction(0.9, open=HIGH_OPEN)
    beta_2 = fraction(0.999, open=HIGH_OPEN)
    epsilon = Value(1e-7)
    bias_correction = Option(True, keyword_only=True)
    _keras_slots = ({"m": "momentum", "v": "velocity"},)
    _scratch_slots = ("update",)


class LARS(Optimizer):
    """LARS (You et al., 2017, arXiv 1708.03888), for large batches: momentum with a rate for each weight.

    Formula:
        rate = learning_rate trust_coefficient norm(w) / (norm(g) + weight_decay norm(w) + epsilon)
        velocity <- momentum velocity - rate (g + weight_decay w)
        w <- w + velocity

    The norms are of the whole weight; the rate is learning_rate if one of them is 0.  Weight decay is in the gradient
    and in the norm.  Two passes: over w, g and over w, g, velocity.  Slots: `velocity`.  To exclude biases and scales
    from rate and decay, as is usual, give them a group with trust_coefficient=0 and weight_decay=0, which is plain
    momentum.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        momentum: in [0, 1].
        nesterov: look ahead along the velocity.
        trust_coefficient: length of a step at learning_rate 1, as a share of the weight's length; 0 makes the rate
            learning_rate.
        epsilon: >= 0.
        joint_norm: use the norm of g + weight_decay w instead of the sum of the two norms, as optax does.
        coupled_weight_decay: False keeps weight decay out of the gradient and the norm, and decays the weight as
            the other optimizers do.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.array([3.0, 4.0], np.float32)
        >>> optimc.LARS(trust_coefficient=0.1).apply([np.array([6.0, -8.0], np.float32)], [w])
        >>> w
        array([2.7, 4.4], dtype=float32)
    """

    _rule = "lars"
    _elementwise = False
    learning_rate = Value(1.0)
    momentum = fraction(0.9)
    nesterov = Option(False)
    trust_coefficient = Value(1e-3)
    epsilon = Value(0.0)
    joint_norm = Option(False, keyword_only=True)
    coupled_weight_decay = Option(True, core="_coupled", fixed=False, keyword_only=True)
    cautious = cautious()
    styles = {"optax": {"joint_norm": True}}

    def _kernel(self):
        return "lars_nesterov" if self.nesterov else "lars"


class Adafactor(Optimizer):
    """Adafactor (Shazeer & Stern, 2018, arXiv 1804.04235): a second moment from its row and column means.

    Formula:
        b = 1 - t^beta_2_decay
        row <- b row + (1 - b) mean(g^2 + epsilon_1), over columns
        column <- b column + (1 - b) mean(g^2 + epsilon_1), over rows
        velocity = row / mean(row) column
        u = g / sqrt(velocity)
        alpha = max(epsilon_2, RMS(w)) min(learning_rate, 1 / sqrt(t))
        w <- w - alpha u / max(1, RMS(u) / clip_threshold)

    Rows and columns are the last two axes.  A weight with fewer axes keeps the average of g^2 + epsilon_1 itself as
    `velocity`.  Three passes over g and velocity, two over w.  Slots: `velocity`; for matrices `row` and `column`.
    Weights with two or more axes must be in C order.

    With epsilon_as_floor, as in torch, nothing is added to g^2.  sqrt(velocity) and mean(row) are epsilon_1 or more,
    RMS(w) is that before weight decay, and matrices have no slot `velocity`.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        beta_2_decay: power of the decay, <= 0.
        epsilon_1: added to squared gradients, >= 0.  None: the distance from 1 to the next number of the type in
            which the weight is computed.
        epsilon_2: lower bound of RMS(w), >= 0.
        clip_threshold: upper bound of RMS(u), > 0.
        relative_step: has no effect, as in Keras.
        epsilon_as_floor: epsilon_1 is a lower bound instead.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones((2, 2), np.float32)
        >>> optimc.Adafactor(learning_rate=0.1).apply([np.array([[1.0, -1.0], [2.0, -2.0]])], [w])
        >>> w
        array([[0.9, 1.1],
               [0.9, 1.1]], dtype=float32)
    """

    _rule = "adafactor"
    _elementwise = False
    learning_rate = Value(0.001)
    beta_2_decay = Value(-0.8, -math.inf, 0.0)
    epsilon_1 = Value(1e-30, optional=True)
    epsilon_2 = Value(1e-3)
    clip_threshold = Value(1.0, open=LOW_OPEN)
    relative_step = Option(True)
    epsilon_as_floor = Option(False, keyword_only=True)
    styles = {
        "torch": {"learning_rate": 1e-2, "epsilon_1": None, "epsilon_as_floor": True, "decay_as_factor": True},
    }
    _keras_slots = ({"row": "r", "column": "c", "velocity": "v"},)

    def _kernel(self):
        return "adafactor_rebuilt" if self.epsilon_as_floor else "adafactor"

    def _possible_kernels(self):
        return self._kernel(), "adafactor_vector_late" if self.epsilon_as_floor else "adafactor_vector"

    def _kernel_of(self, name, weight):
        matrix, vector = self._possible_kernels()
        if weight.ndim < 2 or not weight.size:
            return vector
        if not weight.flags.c_contiguous:
            raise ValueError(f"weights: Adafactor needs weights of two axes or more in C order, got strides "
                             f"{weight.strides} for shape {weight.shape}")
        return matrix


__all__ = [name for name, value in registry.classes.items() if value.__module__ == __name__]
