"""
One run finds the range of learning rates
=========================================

A learning-rate range test (Smith, 2015) raises the rate at every step, from far too
small to far too large.  Rates are good where the loss falls fast, well below the rate
at which it explodes.  Eleven runs at constant rates, each as long as the test, confirm
it here.

.. alt text: Loss by learning rate, which is logarithmic.  The curve of the range test
   is level, falls steeply around 0.02, is lowest at 0.2 and explodes above 0.5.  Dots
   for the final loss of the other runs form a valley that is lowest at 0.3 and ends
   between 0.3 and 1.
"""
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import optimc

x, labels = load_digits(return_X_y=True)
x, targets = x / 16, np.eye(10)[labels]


def train(rate, steps=400):
    opt, rng = optimc.SGD(learning_rate=rate, momentum=0.9), np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, (64, 32)), rng.normal(0, 0.2, (32, 10))]
    losses = []
    for _ in range(steps):
        batch = rng.integers(len(x), size=64)
        hidden = np.maximum(x[batch] @ weights[0], 0)
        scores = hidden @ weights[1]
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log((p * targets[batch]).sum(axis=1) + 1e-12).mean())
        error = (p - targets[batch]) / 64
        back = error @ weights[1].T * (hidden > 0)
        opt.apply([x[batch].T @ back, hidden.T @ error], weights)
    return losses


# %%

growing = optimc.schedules.ExponentialDecay(1e-4, decay_steps=400, decay_rate=1e5)
test = train(growing)
rates = np.logspace(-4, 1, 11)
ends = [np.mean(train(rate)[-50:]) for rate in rates]
for rate, end in zip(rates, ends, strict=True):
    print(f"{rate:.4f}: loss of the last 50 steps {end:.3f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
ax.plot([growing(step) for step in range(400)], test, color="C0", label="range test")
ax.plot(rates, ends, "o", color="C1", label="end of a run at this rate")
ax.legend(loc="upper left")
ax.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, 4))
fig.suptitle("One run finds the range of learning rates")
plt.show()
