"""
Lion moves every weight by the same length
==========================================

Lion uses only the sign of its momentum: each weight moves by the learning rate, up or
down, however large its gradient.  Its paths on a map therefore run along the diagonals.
The steps do not shrink near the minimum, so Lion needs a small learning rate or a
schedule.

.. alt text: Contours of an oval bowl and two paths to its centre.  Gradient descent
   takes long steps at first, shorter and shorter ones later.  Lion takes steps of one
   length, all along the two diagonals, and dances around the minimum at the end.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

steepness = np.array([0.2, 1.0])

# %%

paths = {}
for opt in optimc.SGD(learning_rate=0.5), optimc.Lion(learning_rate=0.2):
    w = np.array([-4.0, 1.7])
    path = [w.copy()]
    for _ in range(40):
        opt.apply([steepness * w], [w])
        path.append(w.copy())
    name = type(opt).__name__
    paths[name] = np.array(path)
    moves = np.abs(np.diff(path, axis=0))
    print(f"{name}: a weight moves by {moves.min():.4f} to {moves.max():.4f} a step")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
x, y = np.meshgrid(np.linspace(-4.5, 2.5, 200), np.linspace(-1.2, 2, 200))
ax.contour(x, y, 0.1 * x**2 + 0.5 * y**2, 12, colors="0.85")
for (name, path), color in zip(paths.items(), ("C1", "C0"), strict=True):
    ax.plot(*path.T, ".-", color=color, lw=1.2, label=name)
ax.plot(0, 0, "k*", ms=12, label="minimum")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.set(xlabel="first weight", ylabel="second weight", aspect="equal")
fig.suptitle("Lion moves every weight by the same length")
plt.show()
