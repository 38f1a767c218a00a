"""
Ftrl with l1 sets useless weights to exactly zero
=================================================

Gradient descent with Adagrad's rates gives every column of a table some weight, noise
included.  Ftrl computes each weight from its state, and sets it to 0 where the evidence
is weaker than ``l1_regularization_strength``: the model gets sparse.

.. alt text: Two panels with the 90 weights of a linear model, 30 for columns of data,
   then 60 for columns of noise.  With Adagrad none is 0 and those of the noise are as
   large as the others.  With Ftrl most weights of the noise are 0.
"""
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import optimc

rng = np.random.default_rng(0)
x, t = load_breast_cancer(return_X_y=True)
x = np.c_[(x - x.mean(axis=0)) / x.std(axis=0), rng.normal(size=(len(x), 60))]
x, x_test, t, t_test = train_test_split(x, t, test_size=0.5, random_state=0)

# %%
# Logistic regression on 30 columns of data and 60 of noise, on half of the rows.

weights = {}
for opt in optimc.Adagrad(0.1), optimc.Ftrl(0.1, l1_regularization_strength=20.0):
    w = np.zeros(90)
    for _ in range(2000):
        rows = rng.integers(len(x), size=32)
        p = 1 / (1 + np.exp(-x[rows] @ w))
        opt.apply([x[rows].T @ (p - t[rows]) / 32], [w])
    name = type(opt).__name__
    weights[name] = w
    right = np.mean((x_test @ w > 0) == t_test)
    print(f"{name}: {np.sum(w[30:] == 0)} of 60 weights of noise are 0;",
          f"{right:.1%} of the other rows are classified correctly")

# %%

fig, axes = plt.subplots(2, 1, figsize=(7.5, 4.4), sharex=True, layout="constrained")
for ax, (name, w) in zip(axes, weights.items(), strict=True):
    ax.axvspan(29.5, 89.5, color="0.93")
    ax.vlines(range(90), 0, w, color="C0", lw=1)
    ax.plot(w, ".", color="C0")
    ax.set(title=f"{name}: {np.sum(w == 0)} of 90 weights are 0", ylabel="weight")
axes[1].set_xlabel("column of the table (grey: noise)")
fig.suptitle("Ftrl with l1 sets useless weights to exactly zero")
plt.show()
