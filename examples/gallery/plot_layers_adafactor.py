"""
A row and a column describe most of a matrix of squared gradients
=================================================================

Adam averages the squared gradient of each weight.  Adafactor averages its means by row
and by column, here 96 numbers instead of 2048, and divides by their product.  That
saves memory only if the product is computed anew at each step.  optimc keeps it in the
slot ``velocity``, as Keras does.

.. alt text: Two heat maps of 64 by 32 cells.  Above, Adam's second moment of a weight
   matrix; below, the product of Adafactor's row and column.  Both show the same bright
   rows and columns; fine detail is lost below.
"""
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import optimc

x, labels = load_digits(return_X_y=True)
x, targets = x / 16, np.eye(10)[labels]
rng = np.random.default_rng(0)
start = [rng.normal(0, 0.2, (64, 32)), rng.normal(0, 0.2, (32, 10))]


def gradients(weights, x, targets):
    hidden = np.maximum(x @ weights[0], 0)
    p = np.exp(hidden @ weights[1])
    error = (p / p.sum(axis=1, keepdims=True) - targets) / len(x)
    return [x.T @ (error @ weights[1].T * (hidden > 0)), hidden.T @ error]


# %%
# Both optimizers see the same 200 gradients of the first layer of a network for digits.

adam, adafactor = optimc.Adam(0.0), optimc.Adafactor(0.0)
for _ in range(200):
    batch = rng.integers(len(x), size=32)
    grads = gradients(start, x[batch], targets[batch])
    adam.apply(grads, start)
    adafactor.apply(grads, start)
row, column = adafactor.slots["row"][0], adafactor.slots["column"][0]
full, product = adam.slots["v"][0], np.outer(row, column) / row.mean()
print(f"Adam: {full.size} averages, Adafactor {row.size} + {column.size};",
      f"correlation {np.corrcoef(full.ravel(), product.ravel())[0, 1]:.2f}")

# %%

fig, axes = plt.subplots(2, 1, figsize=(7.5, 5.2), sharex=True, layout="constrained")
titles = "Adam: 64 x 32 averages", "Adafactor: 64 + 32 averages, multiplied"
for ax, matrix, title in zip(axes, (full, product), titles, strict=True):
    ax.imshow(np.sqrt(matrix / matrix.mean()).T, cmap="viridis", aspect="auto")
    ax.set(title=title, ylabel="hidden unit")
axes[1].set_xlabel("pixel")
fig.suptitle("A row and a column describe most of a matrix of squared gradients")
plt.show()
