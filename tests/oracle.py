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
    inside = o.rate_in_velocity
    d = g * lane(lr) if inside else g * lane(o.dampening - 1 if t > 1 else -1)
    slots["velocity"] = slots["velocity"] * lane(o.momentum) - d
    step = slots["velocity"] * lane(o.momentum) - d if o.nesterov else slots["velocity"]
    return w + step * (lane(1) if inside else lane(-lr))


def rmsprop(w, g, slots, o, lr, t):
    lane = w.dtype.type
    rho, one_minus_rho = lane(o.rho), lane(1 - o.rho)
    slots["v"] = rho * slots["v"] + one_minus_rho * (g * g)
    variance = slots["v"]
    if o.centered:
        slots["average"] = rho * slots["average"] + one_minus_rho * g
        variance = variance - slots["average"] * slots["average"]
    inside = o.rate_in_velocity or "velocity" not in slots
    root = np.sqrt(variance) + lane(o.epsilon) if o.epsilon_outside else np.sqrt(variance + lane(o.epsilon))
    step = (lane(lr) if inside else lane(1)) * g / root
    if "velocity" in slots:
        slots["velocity"] = lane(o.momentum) * slots["velocity"] + step
        step = slots["velocity"] * (lane(1) if inside else lane(lr))
    return w - step


def hat(epsilon, o, beta, t):
    """Epsilon for the uncorrected root, if it is meant for the corrected one."""
    return epsilon * math.sqrt(1 - power(beta, t)) if o.corrected_epsilon else epsilon


def corrections(o, t):
    """The divisors of the moments: 1 - beta^t of each, or 1 without bias correction."""
    return (1 - power(o.beta_1, t), 1 - power(o.beta_2, t)) if o.bias_correction else (1.0, 1.0)


def adam(w, g, slots, o, lr, t):
    lane = w.dtype.type
    correction_1, correction_2 = corrections(o, t)
    alpha = lr * math.sqrt(correction_2) / correction_1
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    slots["v"] = slots["v"] + (g * g - slots["v"]) * lane(1 - o.beta_2)
    second = slots["v"]
    if o.amsgrad:
        second = slots["v_max"] = np.maximum(slots["v_max"], slots["v"])
    return w - slots["m"] * lane(alpha) / (np.sqrt(second) + lane(hat(o.epsilon, o, o.beta_2, t)))


def adagrad(w, g, slots, o, lr, t):
    lane = w.dtype.type
    rate, total = lane(lr / (1 + (t - 1) * o.learning_rate_decay)), slots["accumulator"] + g * g
    slots["accumulator"] = total
    root = np.sqrt(total) + lane(o.epsilon) if o.epsilon_outside else np.sqrt(total + lane(o.epsilon))
    return w - rate * g / root


def rowwise_adagrad(w, g, slots, o, lr, t):
    lane, rows = w.dtype.type, g.reshape(math.prod(g.shape[:1]), math.prod(g.shape[1:]))
    lanes = np.zeros((8, len(rows)), w.dtype)
    for j in range(rows.shape[1]):
        lanes[j % 8] = lanes[j % 8] + rows[:, j] * rows[:, j]
    while len(lanes) > 1:
        lanes = lanes[::2] + lanes[1::2]
    number = slots["row_accumulator"]
    slots["row_accumulator"] = number + (lanes[0] / lane(rows.shape[1])).reshape(number.shape)
    factor = lane(lr) / (np.sqrt(slots["row_accumulator"]) + lane(o.epsilon))
    return w - (rows * factor.reshape(-1, 1)).reshape(w.shape)


def adadelta(w, g, slots, o, lr, t):
    lane = w.dtype.type
    rho, one_minus_rho, epsilon = lane(o.rho), lane(1 - o.rho), lane(o.epsilon)
    slots["accumulator"] = rho * slots["accumulator"] + one_minus_rho * (g * g)
    d = np.sqrt(slots["delta"] + epsilon) * g / np.sqrt(slots["accumulator"] + epsilon)
    slots["delta"] = rho * slots["delta"] + one_minus_rho * (d * d)
    return w - lane(lr) * d


def adamax(w, g, slots, o, lr, t):
    lane = w.dtype.type
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    inside, outside = (o.epsilon, 0.0) if o.epsilon_in_norm else (0.0, o.epsilon)
    slots["u"] = np.maximum(lane(o.beta_2) * slots["u"], np.abs(g) + lane(inside))
    correction = lane(1 - power(o.beta_1, t))
    return w - lane(lr) * slots["m"] / (correction * (slots["u"] + lane(outside)))


def nadam(w, g, slots, o, lr, t):
    lane = w.dtype.type
    base = 0.96 if o.momentum_decay == 1 else math.pow(0.96, o.momentum_decay)
    product = 1.0
    for k in range(1, t + 1):
        u = o.beta_1 * (1 - 0.5 * power(base, k))
        product *= u
    u_next = o.beta_1 * (1 - 0.5 * power(base, t + 1))
    as_keras = o.momentum_decay == 1
    slots["m"] = slots["m"] + (g - slots["m"]) * (1 - lane(o.beta_1) if as_keras else lane(1 - o.beta_1))
    slots["v"] = slots["v"] + (g * g - slots["v"]) * (1 - lane(o.beta_2) if as_keras else lane(1 - o.beta_2))
    m_hat = lane(u_next) * slots["m"] / lane(1 - product * u_next) + lane(1 - u) * g / lane(1 - product)
    correction = lane(1 - power(o.beta_2, t))
    return w - m_hat * lane(lr) / (np.sqrt(slots["v"] / correction) + lane(o.epsilon))


def ftrl(w, g, slots, o, lr, t):
    lane = w.dtype.type
    p, l1, rate = -o.learning_rate_power, lane(o.l1_regularization_strength), lane(lr)

    def root(x):
        return np.sqrt(x) if p == 0.5 else np.power(x.astype(np.float64), float(lane(p))).astype(lane)

    n = slots["accumulator"] + g * g
    shrunk = g + lane(2 * o.l2_shrinkage_regularization_strength) * w
    slots["linear"] = slots["linear"] + (shrunk - (root(n) - root(slots["accumulator"])) / rate * w)
    l2 = 2 * lane(o.l2_regularization_strength + o.beta / (2 * lr))
    w = (np.clip(slots["linear"], -l1, l1) - slots["linear"]) / (root(n) / rate + l2)
    slots["accumulator"] = n
    return w


def lion(w, g, slots, o, lr, t):
    lane = w.dtype.type
    beta_1, beta_2 = lane(o.beta_1), lane(o.beta_2)
    w = w - lane(lr) * np.sign(slots["m"] * beta_1 + g * (1 - beta_1))
    slots["m"] = slots["m"] * beta_2 + g * (1 - beta_2)
    return w


def schedule_free(w, g, slots, o, lr, t):
    lane = w.dtype.type
    beta_1, beta_2, share = lane(o.beta_1), lane(o.beta_2), lane(1 / t)
    lr = lr * (t / o.warmup_steps if t < o.warmup_steps else 1)
    slots["v"] = slots["v"] + (g * g - slots["v"]) * (1 - beta_2)
    z_old, denominator = slots["z"], np.sqrt(slots["v"] / lane(1 - power(o.beta_2, t))) + lane(o.epsilon)
    slots["z"] = slots["z"] - lane(lr) * g / denominator
    x_old = (w - (1 - beta_1) * z_old) / beta_1
    x = (1 - share) * x_old + share * slots["z"]
    return (1 - beta_1) * slots["z"] + beta_1 * x


def radam(w, g, slots, o, lr, t):
    lane = w.dtype.type
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    slots["v"] = slots["v"] + (g * g - slots["v"]) * lane(1 - o.beta_2)
    decayed, rho = power(o.beta_2, t), 2 / (1 - o.beta_2) - 1
    rho_t = rho - 2 * t * decayed / (1 - decayed)
    if rho_t <= 5:
        return w - slots["m"] * lane(lr / (1 - power(o.beta_1, t))) / (np.sqrt(slots["v"]) * lane(0) + lane(1))
    r = math.sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t))
    alpha = lr * (r * math.sqrt(1 - decayed)) / (1 - power(o.beta_1, t))
    return w - slots["m"] * lane(alpha) / (np.sqrt(slots["v"]) + lane(hat(o.epsilon, o, o.beta_2, t)))


def yogi(w, g, slots, o, lr, t):
    lane = w.dtype.type
    correction_1, correction_2 = corrections(o, t)
    alpha = lr * math.sqrt(correction_2) / correction_1
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    slots["v"] = slots["v"] - lane(1 - o.beta_2) * np.sign(slots["v"] - g * g) * (g * g)
    return w - slots["m"] * lane(alpha) / (np.sqrt(slots["v"]) + lane(hat(o.epsilon, o, o.beta_2, t)))


def adabelief(w, g, slots, o, lr, t):
    lane = w.dtype.type
    correction_1, correction_2 = corrections(o, t)
    root = math.sqrt(correction_2)
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    surprise = g - slots["m"]
    slots["s"] = slots["s"] + (surprise * surprise - slots["s"]) * lane(1 - o.beta_2) + lane(o.epsilon)
    alpha = lr * root / correction_1
    return w - slots["m"] * lane(alpha) / (np.sqrt(slots["s"]) + lane(o.epsilon * root))


def rprop(w, g, slots, o, lr, t):
    lane = w.dtype.type
    s = g * slots["previous"]
    factor = np.where(s < 0, lane(o.eta_minus), np.where(s > 0, lane(o.eta_plus), lane(1)))
    size = slots["size"] * factor
    slots["size"] = np.minimum(np.maximum(size, lane(o.min_step)), lane(o.max_step))
    slots["previous"] = np.where(s < 0, lane(0), g)
    return w - np.sign(slots["previous"]) * slots["size"]


def asgd(w, g, slots, o, lr, t):
    lane = w.dtype.type
    eta, mu = o.left.get(t - 1, (lr, 1.0))          # what the update before left, for all weights alike
    x = 1 + o.lambd * lr * t
    root = math.sqrt(x) * math.sqrt(math.sqrt(x)) if o.alpha == 0.75 else math.pow(x, o.alpha)
    o.left[t] = lr / root, 1 / max(1.0, t - o.t0)
    w = w * lane(1 - o.lambd * eta)
    w = w - lane(eta) * g
    slots["average"] = slots["average"] + (w - slots["average"]) * lane(mu)
    return w


def adan(w, g, slots, o, lr, t):
    lane = w.dtype.type
    root = math.sqrt(1 - power(o.beta_3, t))
    alpha, gamma = lr * root / (1 - power(o.beta_1, t)), lr * o.beta_2 * root / (1 - power(o.beta_2, t))
    d = (g - slots["previous"]) * lane(t > 1)
    ahead = g + lane(o.beta_2) * d
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    slots["v"] = slots["v"] + (d - slots["v"]) * lane(1 - o.beta_2)
    slots["n"] = slots["n"] + (ahead * ahead - slots["n"]) * lane(1 - o.beta_3)
    slots["previous"] = g
    return w - (slots["m"] * lane(alpha) + slots["v"] * lane(gamma)) \
        / (np.sqrt(slots["n"]) + lane(o.epsilon * root))


def lamb(w, g, slots, o, lr, t):
    lane = w.dtype.type
    slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.beta_1)
    slots["v"] = slots["v"] + (g * g - slots["v"]) * lane(1 - o.beta_2)
    correction_1, correction_2 = map(lane, corrections(o, t))
    u = slots["m"] / correction_1 / (np.sqrt(slots["v"] / correction_2) + lane(o.epsilon))
    weight_norm, step_norm = lane(math.sqrt(sum_of_squares(w))), lane(math.sqrt(sum_of_squares(u)))
    ratio = weight_norm / step_norm if weight_norm > 0 and step_norm > 0 else lane(1)
    return o.settled(w) - ratio * lane(lr) * u


def lars_before_decay(w, g, o, decay):
    """The weight's rate as a share of the learning rate's."""
    lane = w.dtype.type
    weight_norm = lane(math.sqrt(sum_of_squares(w)))
    gradient_norm = lane(math.sqrt(sum_of_squares(g + decay * w if o.joint_norm else g)))
    rate = lane(o.learning_rate)
    if o.trust_coefficient > 0 and weight_norm > 0 and gradient_norm > 0:
        added = (lane(0) if o.joint_norm else decay) * weight_norm
        rate = rate * lane(o.trust_coefficient) * weight_norm / (gradient_norm + added + lane(o.epsilon))
    return rate


def lars(w, g, slots, o, lr, t):
    lane = w.dtype.type
    d = g * o.measured
    slots["velocity"] = slots["velocity"] * lane(o.momentum) - d
    return w + (slots["velocity"] * lane(o.momentum) - d if o.nesterov else slots["velocity"])


def root_mean_square(x):
    return np.sqrt(x.dtype.type(sum_of_squares(x) / x.size if x.size else np.nan))


def adafactor_before_decay(w, g, o, decay):
    return root_mean_square(w)


def adafactor(w, g, slots, o, lr, t):
    lane = w.dtype.type
    beta_2, rate = lane(1 - math.pow(t, o.beta_2_decay)), lane(min(lr, 1 / math.sqrt(t)))
    epsilon = np.finfo(lane).eps if o.epsilon_1 is None else lane(o.epsilon_1)
    q = g * g + (lane(0) if o.epsilon_as_floor else epsilon)
    floor = epsilon if o.epsilon_as_floor else lane(0)
    if "row" in slots:
        matrices = q.reshape(-1, *q.shape[-2:])
        rows, columns = slots["row"].reshape(len(matrices), -1), slots["column"].reshape(len(matrices), -1)
        velocity = np.empty_like(matrices)
        for k, matrix in enumerate(matrices):
            row_means = np.array([lane(sum_of_lanes(row) / row.size) for row in matrix])
            column_sums = np.zeros(matrix.shape[1])
            for row in matrix:
                column_sums += row
            rows[k] = beta_2 * rows[k] + (1 - beta_2) * row_means
            columns[k] = beta_2 * columns[k] + (1 - beta_2) * (column_sums / len(matrix)).astype(lane)
            mean = lane(sum_of_lanes(rows[k]) / rows[k].size)
            velocity[k] = (rows[k] / np.maximum(mean, floor))[:, None] * columns[k][None, :]
        velocity = velocity.reshape(w.shape)
    else:
        velocity = beta_2 * slots["velocity"] + (1 - beta_2) * q
    if "velocity" in slots:
        slots["velocity"] = velocity
    u = g / np.maximum(np.sqrt(velocity), floor)
    alpha = np.maximum(o.measured if o.epsilon_as_floor else root_mean_square(w), lane(o.epsilon_2)) * rate
    limit = np.maximum(lane(1), root_mean_square(u) / lane(o.clip_threshold))
    return (w if o.epsilon_as_floor else o.settled(w)) - alpha * (u / limit)


def muon(w, g, slots, o, lr, t):
    lane = w.dtype.type
    if "v" in slots:
        alpha = lr * o.adam_lr_ratio * math.sqrt(1 - power(o.adam_beta_2, t)) / (1 - power(o.adam_beta_1, t))
        slots["m"] = slots["m"] + (g - slots["m"]) * lane(1 - o.adam_beta_1)
        slots["v"] = slots["v"] + (g * g - slots["v"]) * lane(1 - o.adam_beta_2)
        return w - slots["m"] * lane(alpha) / (np.sqrt(slots["v"]) + lane(o.epsilon))
    slots["m"] = slots["m"] + (g + slots["m"] * lane(o.momentum - 1))
    y = (g + lane(o.momentum) * slots["m"] if o.nesterov else slots["m"]).astype(np.float64)
    y = y.T if y.shape[0] > y.shape[1] else y
    y = y / (np.sqrt(np.sum(y * y)) + 1e-7)
    for _ in range(o.ns_steps):
        gram = y @ y.T
        y = o.muon_a * y + (o.muon_b * gram + o.muon_c * gram @ gram) @ y
    y = (y.T if y.shape != w.shape else y).astype(w.dtype)
    scaled = lane(lr) * y
    if o.rms_rate is not None:
        scaled = scaled * lane(math.sqrt(max(w.shape))) * lane(o.rms_rate)
    return w - scaled


def initial(slot, w, o):
    """The values that a slot starts from."""
    if slot == "row_accumulator":
        return np.full(w.shape[:1], o.initial_accumulator_value, w.dtype)
    if slot == "row":
        return np.zeros(w.shape[:-1], w.dtype)
    if slot == "column":
        return np.zeros(w.shape[:-2] + w.shape[-1:], w.dtype)
    if slot in ("accumulator", "v") and hasattr(o, "initial_accumulator_value"):
        return np.full_like(w, o.initial_accumulator_value)
    if slot == "m" and hasattr(o, "initial_mean"):
        return np.full_like(w, o.initial_mean)
    if slot == "z":
        return w.copy()
    if slot == "size":
        return np.full_like(w, o.learning_rate)
    return np.zeros_like(w)


def sum_of_lanes(x):
    """The sum in double: 16 lanes, folded in halves."""
    lanes = np.zeros(16)
    for start in range(0, x.size, 16):
        part = x[start:start + 16]
        lanes[:part.size] += part
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def sum_of_squares(g):
    """Squares in the dtype, summed in double: lanes over blocks of 2048, blocks in order."""
    squares = (g * g).ravel()
    total = 0.0
    for start in range(0, squares.size, 2048):
        total += sum_of_lanes(squares[start:start + 2048])
    return total


class Reference:
    """The slow twin of an `optimc.Optimizer`: a rule and, around it, Keras's sequence of options.

    `step` takes lists with None for a missing gradient and returns the new weights.  A function called
    `<rule>_before_decay(w, g, o, decay)` is asked first, if there is one; the rule finds its result in `o.measured`.
    A rule that measures whole weights changes `o.settled(w)`, the weight as it is stored once they are decayed.
    """

    def __init__(self, optimizer, slots_of):
        self.rule, self.slots_of = optimizer._rule, slots_of
        self.o = type("Arguments", (), {**optimizer._given(), "left": {}, "settled": lambda w: w})
        self.calls, self.state, self.norm = 0, None, None

    @property
    def t(self):
        """Updates so far."""
        return self.calls // (self.o.gradient_accumulation_steps or 1)

    @t.setter
    def t(self, updates):
        self.calls = updates * (self.o.gradient_accumulation_steps or 1)

    def build(self, weights):
        """Makes the slots; the first step does it by itself.  After updates, averages start at the weights."""
        self.state = [{slot: initial(slot, w, self.o) for slot in self.slots_of(w)}
                      for w in weights]
        self.averages = [w.copy() if self.t else np.zeros_like(w) for w in weights]
        self.accumulators = [None for w in weights]

    def step(self, weights, grads, excluded=()):
        if self.state is None:
            self.build(weights)
        with np.errstate(all="ignore"):
            return self.sequence(list(weights), grads, excluded)

    def sequence(self, weights, grads, excluded):
        o, before, steps = self.o, self.t, self.o.gradient_accumulation_steps or 1
        self.calls += 1
        grads = [None if g is None else g.astype(w.dtype) for w, g in zip(weights, grads, strict=True)]
        divisor = (1 if o.loss_scale_factor is None else o.loss_scale_factor) * (-1 if o.maximize else 1)
        if divisor != 1:
            grads = [None if g is None else g / g.dtype.type(divisor) for g in grads]
        if steps > 1 and self.calls % steps:
            for i, g in enumerate(grads):
                if g is not None:
                    held = self.accumulators[i]
                    self.accumulators[i] = g + (np.zeros_like(g) if held is None else held)
        else:
            if steps > 1:
                for i, g in enumerate(grads):
                    held = self.accumulators[i]
                    if g is not None or held is not None:
                        zero = np.zeros_like(weights[i])
                        grads[i] = ((zero if g is None else g) + (zero if held is None else held)) \
                            / zero.dtype.type(steps)
                self.accumulators = [None for w in weights]
            grads = self.clip(grads)
            for i, g in enumerate(grads):
                if g is not None:
                    weights[i] = self.update(i, weights[i], g, i in excluded, before + 1)
        if o.use_ema:
            self.average(weights, before)
        return weights

    def clip(self, grads):
        o = self.o
        given = [g for g in grads if g is not None]
        if o.clipnorm is not None and o.clipnorm > 0:
            def clipped(g):
                lane = g.dtype.type
                norm = lane(math.sqrt(sum_of_squares(g)))
                return g * lane(o.clipnorm) / np.maximum(norm, lane(o.clipnorm))
        elif o.global_clipnorm is not None and o.global_clipnorm > 0:
            total = 0.0
            for g in given:
                total += sum_of_squares(g)
            self.norm = math.sqrt(total)

            def clipped(g):
                lane = g.dtype.type
                norm, c = lane(self.norm), lane(o.global_clipnorm)
                scale = c * np.minimum(lane(1) / norm, lane(1 / o.global_clipnorm)) + (norm - norm)
                return g * scale
        elif o.clipvalue is not None and o.clipvalue > 0:
            def clipped(g):
                return np.clip(g, -g.dtype.type(o.clipvalue), g.dtype.type(o.clipvalue))
        else:
            return grads
        return [None if g is None else clipped(g) for g in grads]

    def update(self, i, w, g, excluded, t):
        lane, lr, rule, state = w.dtype.type, self.o.learning_rate, globals()[self.rule], self.state[i]
        decay = self.o.adam_weight_decay if self.rule == "muon" and "v" in state else self.o.weight_decay
        measure = globals().get(f"{self.rule}_before_decay")
        if measure:
            added = self.o.coupled_weight_decay and not excluded
            self.o.measured = measure(w, g, self.o, lane(decay or 0 if added else 0))
        if decay is not None and not excluded:
            if self.o.coupled_weight_decay:
                g = g + lane(decay) * w
            elif self.o.decay_as_factor:
                w = w * lane(1 - lr * decay)
            else:
                w = w - w * lane(decay) * lane(lr)
        if not getattr(self.o, "cautious", False):
            return rule(w, g, state, self.o, lr, t)
        step = -rule(np.zeros_like(w), g, state, self.o, lr, t)
        agrees = step * g > 0
        return w - np.where(agrees, step * lane(w.size / (int(agrees.sum()) + 1)), lane(0))

    def average(self, weights, before):
        for i, w in enumerate(weights):
            lane = w.dtype.type
            momentum = lane(self.o.ema_momentum) if before else lane(0)
            self.averages[i] = momentum * self.averages[i] + (1 - momentum) * w
            if self.o.ema_overwrite_frequency and (before + 1) % self.o.ema_overwrite_frequency == 0:
                weights[i] = self.averages[i].copy()
