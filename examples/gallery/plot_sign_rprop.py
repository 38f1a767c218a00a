"""
Rprop is fast on full batches and stops early on small ones
===========================================================

Rprop gives each weight its own step size, which grows while the gradient keeps its sign
and shrinks when it changes.  With all data in each gradient a change of sign means that
the minimum has been passed.  In small batches it often means noise, and the sizes
shrink until Rprop stands still.

.. alt text: Two panels with the loss on all rows by step, for Rprop and Adam.  On full
   batches Rprop falls faster.  On batches of 16 Rprop falls, then stays level from step
   30 on; Adam jumps up and down but gets lower.
"""
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

import optimc

x, t = load_breast_cancer(return_X_y=True)
x = np.c_[(x - x.mean(axis=0)) / x.std(axis=0), np.ones(len(x))]


def probability(w, x):
    return 1 / (1 + np.exp(-x @ w))


# %%
# Logistic regression on 569 rows.

losses = {}
for size in 569, 16:
    for opt in optimc.Adam(learning_rate=0.1), optimc.Rprop(learning_rate=0.1):
        rng, w = np.random.default_rng(0), np.zeros(31)
        run = losses[size, type(opt).__name__] = []
        for _ in range(150):
            rows = rng.permutation(569)[:size]
            opt.apply([x[rows].T @ (probability(w, x[rows]) - t[rows]) / size], [w])
            p = probability(w, x)
            run.append(-np.log(np.where(t == 1, p, 1 - p) + 1e-12).mean())
        print(f"{size} rows, {type(opt).__name__}: loss {run[-1]:.4f}")

# %%

fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
for ax, size in zip(axes, (569, 16), strict=True):
    for name, color in ("Adam", "C1"), ("Rprop", "C0"):
        ax.plot(losses[size, name], color=color, label=name)
    ax.set(title=f"batches of {size} of 569 rows", xlabel="step", ylim=(0, 0.2))
axes[0].set_ylabel("loss on all rows")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
fig.suptitle("Rprop is fast on full batches and stops early on small ones")
plt.show()
