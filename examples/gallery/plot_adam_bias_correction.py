"""
Bias correction keeps Adam's first steps from being too large
=============================================================

Adam's two averages start at 0 and need time to fill: the first takes about 10 steps,
the second, by which the step is divided, about 1000.  Without correction the second one
is far too small at first, and the steps are too large.

.. alt text: Length of a step, as a multiple of the learning rate, by step on a
   logarithmic axis, for a constant gradient.  With bias correction it is 1 throughout.
   Without, it starts at 3, peaks near 7 after about 12 steps and returns to 1 after a
   few thousand.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# With a constant gradient, Adam should move by exactly the learning rate each time.

lengths = {}
for name, opt in (("without", optimc.Adam(0.001, bias_correction=False)),
                  ("with bias correction", optimc.Adam(0.001))):
    w = np.zeros(1)
    path = [0.0]
    for _ in range(5000):
        opt.apply([np.ones(1)], [w])
        path.append(w[0])
    lengths[name] = -np.diff(path) / 0.001
    first, longest = lengths[name][0], lengths[name].max()
    print(f"{name}: first step {first:.2f}, longest {longest:.2f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (name, length), color in zip(lengths.items(), ("C1", "C0"), strict=True):
    ax.plot(np.arange(1, 5001), length, color=color, label=name)
ax.legend(loc="upper right")
ax.set(xscale="log", xlabel="step", ylabel="step length / learning rate", ylim=(0, 7.5))
fig.suptitle("Bias correction keeps Adam's first steps from being too large")
plt.show()
