"""
Adadelta wants a learning rate of 1
===================================

Adadelta computes its own step length, so its paper has no learning rate, and 1 leaves
the step as it is.  The default of Keras and optimc is 0.001, with which Adadelta hardly
moves.  Set it to 1, or use ``style="torch"``, whose default is 1.

.. alt text: Loss by step for three learning rates.  With 0.001 the loss stays at 2.3,
   that of guessing.  With 0.1 it falls a little, with 1 to 0.4 in 1000 steps.
"""
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import optimc

x, labels = load_digits(return_X_y=True)
x, targets = x / 16, np.eye(10)[labels]

# %%
# Softmax regression on batches of 32 images.

losses = {}
for rate in 0.001, 0.1, 1.0:
    opt = optimc.Adadelta(learning_rate=rate)
    rng, w = np.random.default_rng(0), np.zeros((64, 10))
    losses[rate] = []
    for _ in range(1000):
        batch = rng.integers(len(x), size=32)
        p = np.exp(x[batch] @ w)
        p /= p.sum(axis=1, keepdims=True)
        losses[rate].append(-np.log((p * targets[batch]).sum(axis=1)).mean())
        opt.apply([x[batch].T @ (p - targets[batch]) / 32], [w])
    late = np.mean(losses[rate][-100:])
    print(f"{rate}: mean loss of the last 100 steps {late:.2f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (rate, loss), color in zip(losses.items(), ("C1", "C2", "C0"), strict=True):
    ax.plot(loss, color=color, lw=1, label=f"learning rate {rate}")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.set(xlabel="step", ylabel="loss on the batch", ylim=(0, None))
fig.suptitle("Adadelta wants a learning rate of 1")
plt.show()
