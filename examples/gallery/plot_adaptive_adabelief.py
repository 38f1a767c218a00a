"""
AdaBelief takes long steps where gradients agree
================================================

Adam divides by the size of the gradients, AdaBelief by their distance from their own
mean.  Where one gradient is like the next, AdaBelief goes far; where they are mostly
noise, both are equally careful.

.. alt text: Average step length as a multiple of the learning rate, by the noise of the
   gradients, both logarithmic.  For little noise Adam's steps have length 1 and those
   of AdaBelief are up to 85 times as long.  The curves meet where noise and mean are
   equal.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

noise = np.logspace(-2, 2, 17)
rng = np.random.default_rng(0)

# %%
# The gradients have mean 1 and a standard deviation from 0.01 to 100, a column for
# each.

lengths = {}
for opt in optimc.Adam(0.001), optimc.AdaBelief(0.001):
    w = np.zeros((100, 17))
    for step in range(5000):
        if step == 4000:
            before = w.copy()
        opt.apply([1 + noise * rng.normal(size=w.shape)], [w])
    name = type(opt).__name__
    lengths[name] = (before - w).mean(axis=0) / 1000 / 0.001
    print(f"{name}: from {lengths[name][0]:.1f} to {lengths[name][-1]:.3f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (name, length), color in zip(lengths.items(), ("C1", "C0"), strict=True):
    ax.loglog(noise, length, ".-", color=color, label=name)
ax.legend(loc="upper right")
ax.set(xlabel="noise of the gradients / their mean", ylabel="progress / learning rate")
fig.suptitle("AdaBelief takes long steps where gradients agree")
plt.show()
