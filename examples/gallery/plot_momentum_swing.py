"""
Nesterov momentum looks ahead and overshoots less
=================================================

Momentum rolls past the minimum and back, like a ball in a bowl.  Nesterov's variant
measures the slope at the place where the velocity is about to carry the weight, so it
brakes before it gets there.

.. alt text: The weight by step, for momentum 0.95.  Both curves swing around the
   minimum, drawn as a line at 0.  Classical momentum swings for all 150 steps.
   Nesterov momentum is close to the minimum after about 40 steps.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# A weight rolls down the loss :math:`w^2 / 2`, whose gradient is the weight itself.

paths = {}
for name, nesterov in ("classical momentum", False), ("Nesterov momentum", True):
    opt = optimc.SGD(learning_rate=0.05, momentum=0.95, nesterov=nesterov)
    w = np.ones(1)
    path = [1.0]
    for _ in range(150):
        opt.apply([w.copy()], [w])
        path.append(w[0])
    paths[name] = np.array(path)
    late = np.flatnonzero(np.abs(path) > 0.1).max()
    print(f"{name}: lowest {min(path):.2f}, within 0.1 of 0 after {late} steps")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
ax.axhline(0, color="0.6", lw=1)
for (name, path), color in zip(paths.items(), ("C1", "C0"), strict=True):
    ax.plot(path, color=color, label=name)
ax.legend(loc="upper right")
ax.set(xlabel="step", ylabel="weight (the minimum is at 0)", xlim=(0, 150))
fig.suptitle("Nesterov momentum looks ahead and overshoots less")
plt.show()
