"""
Nadam and Adan turn round one step sooner than Adam
===================================================

When a gradient changes its sign, Adam's average of gradients still points the old way.
Nadam adds more of the newest gradient to it.  Adan adds an average of the *changes* of
the gradient.  Both are ways to write Nesterov's look ahead, and both gain one step.

.. alt text: The length and direction of the update, by steps since the gradient changed
   its sign.  The curves of Nadam and Adan run together, one step ahead of Adam's all
   the way from minus 1 to plus 1.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# The gradient is 1 for 200 steps, then -1.  Adan's default ``beta_1``, 0.98, remembers
# five times as many steps as 0.9, so all three get 0.9 here.

gradient = np.where(np.arange(250) < 200, 1.0, -1.0)
moves = {}
for cls in optimc.Adam, optimc.Nadam, optimc.Adan:
    opt = cls(learning_rate=0.001, beta_1=0.9)
    w = np.zeros(1)
    path = [0.0]
    for g in gradient:
        opt.apply([np.array([g])], [w])
        path.append(w[0])
    name = cls.__name__
    moves[name] = np.diff(path) / 0.001
    turned = np.flatnonzero(moves[name] > 0)[0] - 200
    print(f"{name}: turned round {turned} steps after the change of sign")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
steps = np.arange(-199, 51)
ax.step(steps, -gradient, where="mid", color="0.75", label="minus the gradient")
for (name, move), style in zip(moves.items(), ("C1o-", "C2s-", "C0.-"), strict=True):
    ax.plot(steps, move, style, lw=1, ms=5, label=name)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.set(xlabel="steps since the change of sign", ylabel="move / learning rate",
       xlim=(-3, 16), xticks=range(-2, 17, 2))
fig.suptitle("Nadam and Adan turn round one step sooner than Adam")
plt.show()
