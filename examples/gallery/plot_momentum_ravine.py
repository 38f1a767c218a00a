"""
Momentum runs along a ravine where gradient descent zigzags
===========================================================

This loss is 40 times as steep across the ravine as along it.  Gradient descent spends
its steps on jumping from wall to wall.  With momentum the jumps cancel out in the
velocity, while the small slopes along the ravine add up.

.. alt text: Contour lines of a long, narrow ravine, with two paths of 40 steps that
   start on its wall.  Plain gradient descent zigzags from wall to wall and ends short
   of the minimum.  The path with momentum swings a few times, straightens and ends at
   the minimum.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

steepness = np.array([0.05, 2.0])                  # along the ravine, and across


def loss(w):
    return 0.5 * (steepness * w**2).sum(-1)


# %%
# Gradient descent diverges at a learning rate of 1.  It goes nearly as fast as it can
# here.

paths = {}
for name, opt in (("gradient descent", optimc.SGD(0.96)),
                  ("momentum 0.8", optimc.SGD(0.3, momentum=0.8))):
    w = np.array([-9.0, 1.5])
    path = [w.copy()]
    for _ in range(40):
        opt.apply([steepness * w], [w])            # the gradient of the loss
        path.append(w.copy())
    paths[name] = np.array(path)
    print(f"{name}: loss {loss(path[0]):.2f} -> {loss(path[-1]):.4f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
x, y = np.meshgrid(np.linspace(-10, 2.5, 200), np.linspace(-2.2, 2.2, 200))
ax.contour(x, y, loss(np.stack([x, y], -1)), 12, colors="0.85")
for (name, path), color in zip(paths.items(), ("C1", "C0"), strict=True):
    ax.plot(*path.T, ".-", color=color, lw=1.2, ms=5, label=name)
ax.plot(0, 0, "k*", ms=12, label="minimum")
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
ax.set(xlabel="weight along the ravine", ylabel="weight across the ravine")
fig.suptitle("Momentum runs along a ravine where gradient descent zigzags")
plt.show()
