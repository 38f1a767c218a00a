"""
Muon moves a matrix in all directions nearly alike
==================================================

The gradient of a weight matrix is dominated by a few directions: its singular values
differ by orders of magnitude.  Muon makes the update nearly orthogonal, with singular
values that are nearly equal, so that rare directions are learnt as fast as common ones.

.. alt text: The 32 singular values of an update, largest first, relative to the
   largest, on a logarithmic axis.  For SGD they fall below 0.01, for Adam to 0.03.  For
   Muon all but the last are between 0.4 and 1.
"""
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import optimc

x, labels = load_digits(return_X_y=True)
x, targets = x / 16, np.eye(10)[labels]


def gradients(weights, x, targets):
    hidden = np.tanh(x @ weights[0])
    p = np.exp(hidden @ weights[1])
    error = (p / p.sum(axis=1, keepdims=True) - targets) / len(x)
    return [x.T @ (error @ weights[1].T * (1 - hidden**2)), hidden.T @ error]


# %%
# Each optimizer trains the first layer of a network for digits; its 20th step is
# measured.

values = {}
for opt in (optimc.SGD(0.1, momentum=0.9), optimc.Adam(0.001), optimc.Muon(0.001)):
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, (64, 32)), rng.normal(0, 0.2, (32, 10))]
    for _ in range(20):
        batch = rng.integers(len(x), size=128)
        before = weights[0].copy()
        opt.apply(gradients(weights, x[batch], targets[batch]), weights)
    name = type(opt).__name__
    value = np.linalg.svd(weights[0] - before, compute_uv=False)
    values[name] = value / value[0]
    print(f"{name}: shares of the tenth and the last", *values[name][[9, -1]].round(4))

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (name, value), color in zip(values.items(), ("C1", "C2", "C0"), strict=True):
    ax.semilogy(np.arange(1, 33), value, ".-", color=color, label=name)
ax.legend(loc="lower left")
ax.set(xlabel="singular value of the update, by rank", ylabel="share of the largest")
fig.suptitle("Muon moves a matrix in all directions nearly alike")
plt.show()
