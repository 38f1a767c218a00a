"""
Schedule-free training needs no end date
========================================

A cosine schedule must know the last step before the first.  Before its end the learning
rate is still high, and after it there is nothing left to learn with.  ScheduleFreeAdamW
averages the weights instead.  One run of it is as good as each of these schedules at
its end.

.. alt text: Loss on test data by step.  Three cosine schedules of 250, 500 and 1000
   steps each fall to their end.  The curve of schedule-free AdamW runs just below these
   ends.
"""
from contextlib import nullcontext

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optimc

x, labels = load_digits(return_X_y=True)
x, x_test, labels, labels_test = train_test_split(x / 16, labels, random_state=0)


def probabilities(w, x):
    p = np.exp(x @ w)
    return p / p.sum(axis=1, keepdims=True)


def test_loss(w):
    return -np.log(probabilities(w, x_test)[range(len(x_test)), labels_test]).mean()


def train(opt, steps):
    rng, w, losses = np.random.default_rng(0), np.zeros((64, 10)), []
    for step in range(steps):
        batch = rng.integers(len(x), size=8)
        error = probabilities(w, x[batch]) - np.eye(10)[labels[batch]]
        opt.apply([x[batch].T @ error / 8], [w])
        if step % 10 == 9:
            with opt.averaged([w]) if opt.keeps_averages else nullcontext():
                losses.append(test_loss(w))
    return losses


# %%
# Softmax regression on batches of 8 images.  The learning rate is 0.03 for all.

free = train(optimc.ScheduleFreeAdamW(0.03), 1000)
cosine = {steps: train(optimc.AdamW(optimc.schedules.CosineDecay(0.03, steps)), steps)
          for steps in (250, 500, 1000)}
for steps, losses in cosine.items():
    print(f"{steps}: cosine {losses[-1]:.3f}, free {free[steps // 10 - 1]:.3f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (steps, losses), color in zip(cosine.items(), ("C1", "C5", "C3"), strict=True):
    ax.plot(np.arange(10, steps + 1, 10), losses, color=color, lw=1.5,
            label=f"cosine schedule of {steps} steps")
    ax.plot(steps, losses[-1], "o", color=color, ms=8)
ax.plot(np.arange(10, 1001, 10), free, color="C0", label="schedule-free")
ax.legend()
ax.set(xlabel="step", ylabel="loss on test data", yscale="log", xlim=(0, 1020))
ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
ax.minorticks_off()
fig.suptitle("Schedule-free training needs no end date")
plt.show()
