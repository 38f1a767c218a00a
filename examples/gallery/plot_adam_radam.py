r"""
RAdam has its warm-up built in
==============================

Adam's estimate of the gradient's size is unreliable at first, so people raise the
learning rate slowly over the first steps.  RAdam computes how reliable the estimate is
and shortens its own steps by as much.  That is much like a linear warm-up over 2000
steps.

In its first five steps RAdam does not divide by the estimate at all: it is momentum,
whose steps are as long as the gradient times the learning rate.  The gradient is 1
here.

.. alt text: Length of a step, as a multiple of the learning rate, by step.  Adam's is 1
   throughout.  Adam with a linear warm-up grows from 0 to 1 over 2000 steps.  RAdam
   makes a few steps of length 1, drops near 0 and then grows to 1, at first faster than
   the warm-up and later more slowly.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# The rule of thumb for the warm-up is :math:`2 / (1 - \beta_2)` steps.  The gradient is
# constant and 1, so that only the rule itself changes the length of a step.

warmup = optimc.schedules.join([optimc.schedules.PolynomialDecay(
    0.0, decay_steps=2000, end_learning_rate=0.001), 0.001], [2000])
lengths = {}
for name, opt in (("Adam", optimc.Adam(0.001)),
                  ("Adam with a linear warm-up", optimc.Adam(warmup)),
                  ("RAdam", optimc.RAdam(0.001))):
    w = np.zeros(1)
    path = [0.0]
    for _ in range(6000):
        opt.apply([np.ones(1)], [w])
        path.append(w[0])
    lengths[name] = -np.diff(path) / 0.001
    print(f"{name}: at steps 5, 10 and 1000", *lengths[name][[4, 9, 999]].round(3))

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (name, length), color in zip(lengths.items(), ("0.6", "C1", "C0"), strict=True):
    ax.plot(np.arange(1, 6001), length, color=color, label=name)
ax.legend(loc="center left", bbox_to_anchor=(0.5, 0.4))
ax.set(xlabel="step", xlim=(-60, 6000), ylim=(0, 1.05),
       ylabel="step length / learning rate")
fig.suptitle("RAdam has its warm-up built in")
plt.show()
