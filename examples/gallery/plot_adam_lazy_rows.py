r"""
A lazy Adam is calmer, and slower in rare rows
==============================================

A row of an embedding has a gradient only where it occurs.  A lazy step leaves absent
rows alone.  A dense step takes their gradient for 0: momentum moves them on, and v, the
average of squares, shrinks to the share p of the steps in which a row occurs.  So dense
Adam moves a row by about :math:`1/\sqrt p` learning rates for each occurrence, at most
32.  Lazy Adam moves it by 3 to 7 at first, later by about one.  Adagrad's steps are the
same, lazy or dense, and one accumulator a row does as well as one a weight.

.. alt text: Distance from the optimum by how often a row occurred in 10 000 steps, both
   logarithmic.  Dense and lazy Adam end at the same distance for rows of every step.
   Down to a hundred occurrences lazy Adam is closer.  With ten occurrences it has gone
   half the way, dense Adam four fifths.  Adagrad, by weight or by row, begins like
   dense Adam and ends closest.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# A table of 256 rows begins at 1, and noisy gradients pull it to 0.  Groups of 32 rows
# occur in every step, in a third of the steps, and so on down to 3 steps of 10 000.

steps = 10_000
chances = np.logspace(0, -3.5, 8)
dense, adam = optimc.Adam(0.01), optimc.Adam(0.01)
optimizers = {"dense Adam": dense, "lazy Adam": adam, "Adagrad": optimc.Adagrad(0.3),
              "row-wise Adagrad": optimc.RowwiseAdagrad(0.3)}
tables = {name: np.ones((256, 16), np.float32) for name in optimizers}
rng = np.random.default_rng(0)
for _ in range(steps):
    present = np.flatnonzero(rng.random(256) < chances.repeat(32))
    noise = rng.normal(0, 0.3, (len(present), 16)).astype(np.float32)
    for name, opt in optimizers.items():
        table = tables[name]
        gradient = optimc.Rows(present, table[present] + noise)
        if opt is dense:
            gradient = np.zeros_like(table)
            gradient[present] = table[present] + noise
        opt.apply([gradient], [table])

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
looks = ("C0o-", "C1s--", "C2^:", "C3v-.")
for (name, table), look in zip(tables.items(), looks, strict=True):
    distance = np.sqrt((table**2).reshape(8, -1).mean(1))
    print(f"{name}: {', '.join(f'{d:.3f}' for d in distance)}")
    ax.plot(chances * steps, distance, look, label=name)
ax.axhline(1, color="0.6", lw=0.8)
ax.text(steps, 0.95, "first value", ha="right", va="top", color="0.4")
ax.legend(loc="lower left")
ax.set(xscale="log", yscale="log", xlabel="occurrences of a row in 10 000 steps",
       ylabel="root mean square distance")
fig.suptitle("A lazy Adam is calmer, and slower in rare rows")
plt.show()
