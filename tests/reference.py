"""The oracle: every update rule in NumPy, one function each, one rounding per written operation.

A rule is `rule(w, g, slots, o, lr, t)`: it changes `slots` (a dict of arrays) and returns the new weight.
`o` are the optimizer's arguments, `lr` the learning rate and `t` the step, 1 for the first.  Coefficients
are Python floats, so in double, until `lane` rounds them to the weight's dtype - once.

Kernels must equal this bit for bit.  Nothing here is fast, and nothing here may use optimc.
"""

import math

import numpy as np


def power(x, t):
    """x ** t in the order of multiplications the kernels use."""
    def square_up(t):
        result, factor = 1.0, x
        while t:
            if t & 1:
                result *= factor
            t >>= 1
            if t:
                factor *= factor
        return result
    return square_up(t - t % 64) * square_up(t % 64)


def sgd(w, g, slots, o, lr, t):
    lane = w.dtype.type
    if "velocity" not in slots:
        return w - g * lane(lr)
    slots["velocity"] = slots["velocity"] * lane(o.momentum) - g * lane(lr)
    if o.nesterov:
        return w + (slots["velocity"] * lane(o.momentum) - g * lane(lr))
    return w + slots["velocity"]


def rmsprop(w, g, slots, o, lr, t):
    lane = w.dtype.type
    rho, one_minus_rho = lane(o.rho), lane(1 - o.rho)
    slots["v"] = rho * slots["v"] + one_minus_rho * (g * g)
    variance = slots["v"]
    if o.centered:
        slots["average"] = rho * slots["average"] + one_minus_rho * g
        variance = variance - slots["average"] * slots["average"]
    step = lane(lr) * g / np.sqrt(variance + lane(o.epsilon))
    if "velocity" in slots:
        slots["velocity"] = lane(o.momentum) * slots["velocity"] + step
        step = slots["velocity"]
    return w - step


def adam(w, g, slots, o, lr, t):
    lane = w.dtype.type
    alpha = lr
    if o.bias_correction:
        alpha = lr * math.sqrt(1 - power(o.beta_2, t)) / (1 - power(o.beta_1, t))
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    slots["v"] = slots["v"] + (g * g - slots["v"]) * lane(1 - o.beta_2)
    second = slots["v"]
    if o.amsgrad:
        second = slots["v_max"] = np.maximum(slots["v_max"], slots["v"])
    return w - slots["m"] * lane(alpha) / (np.sqrt(second) + lane(o.epsilon))


def adagrad(w, g, slots, o, lr, t):
    lane = w.dtype.type
    slots["accumulator"] = slots["accumulator"] + g * g
    return w - lane(lr) * g / np.sqrt(slots["accumulator"] + lane(o.epsilon))


def initial(rule, slot, w, o):
    """What a slot starts from."""
    if rule == "adagrad":
        return np.full_like(w, o.initial_accumulator_value)
    return np.zeros_like(w)


class Reference:
    """An optimizer made of a rule and the options around it; the slow twin of an `optimc.Optimizer`."""

    def __init__(self, optimizer, slots):
        self.rule, self.slots = optimizer.rule, slots
        self.o = type("Arguments", (), optimizer._arguments())
        self.t = 0

    def step(self, weights, grads):
        """The new weights; slots are kept per index."""
        self.t += 1
        if self.t == 1:
            self.state = [{slot: initial(self.rule, slot, w, self.o) for slot in self.slots}
                          for w in weights]
        with np.errstate(all="ignore"):
            return [self.update(w, g.astype(w.dtype), state)
                    for w, g, state in zip(weights, grads, self.state, strict=True)]

    def update(self, w, g, state):
        lane = w.dtype.type
        if self.o.weight_decay is not None:
            w = w - w * lane(self.o.weight_decay) * lane(self.o.learning_rate)
        return globals()[self.rule](w, g, state, self.o, self.o.learning_rate, self.t)
