"""
Noise keeps the weights moving, their average settles
=====================================================

Near the minimum, gradients of small batches are mostly noise, and with a constant
learning rate the weights wander about.  ASGD keeps the average of the weights, from
step ``t0`` on.  ``averaged`` puts it into the weights for as long as you test them.

.. alt text: A cloud of 1000 grey dots around a minimum, the weights after each step.  A
   blue line, the average of the weights, starts outside the cloud, moves to its centre
   and stays there.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# The loss is a bowl with its minimum at (0, 0).  The gradient has noise of size 1.

rng = np.random.default_rng(2)
opt = optimc.ASGD(learning_rate=0.3, lambd=0.0, t0=10)
w = np.array([3.0, 2.0])
weights, averages = [], []
for _ in range(1000):
    opt.apply([w * [0.5, 1.0] + rng.normal(size=2)], [w])
    weights.append(w.copy())
    with opt.averaged([w]):
        averages.append(w.copy())

# %%

for name, path in ("weights", weights), ("average", averages):
    print(f"{name}: {np.hypot(*np.transpose(path[-100:])).mean():.2f} from the minimum")

fig, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
ax.plot(*np.transpose(weights), ".", color="0.7", ms=4, label="weights")
ax.plot(*np.transpose(averages), ".-", color="C0", lw=1, ms=4, label="their average")
ax.plot(0, 0, "k*", ms=12, label="minimum")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.set(xlabel="first weight", ylabel="second weight", aspect="equal")
fig.suptitle("Noise keeps the weights moving, their average settles")
plt.show()
