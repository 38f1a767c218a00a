r"""
Epsilon decides which gradients are too small to count
======================================================

Adam's steps do not depend on the size of the gradient, until it comes near epsilon.
RMSprop adds epsilon *inside* the root, so its 1e-7 acts like a number near its own
root: at gradients of 1.8e-4 the step is half as long.  The same number means something
else.

.. alt text: Step length as a multiple of the learning rate, by size of the gradient
   from 1e-10 to 1, for three optimizers.  Each curve is flat at 1 for large gradients
   and falls for small ones.  Adam with epsilon 1e-7 falls around 1e-7, with 1e-4 around
   1e-4; RMSprop with epsilon 1e-7 falls around 2e-4.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# 61 weights have constant gradients of 61 sizes.  After 10 000 steps the averages have
# settled.

gradient = np.logspace(-10, 0, 61)
lengths = {}
for name, opt in (("Adam, epsilon 1e-7", optimc.Adam(0.001, epsilon=1e-7)),
                  ("Adam, epsilon 1e-4", optimc.Adam(0.001, epsilon=1e-4)),
                  ("RMSprop, epsilon 1e-7", optimc.RMSprop(0.001, epsilon=1e-7))):
    w = np.zeros(61)
    for _ in range(10_000):
        opt.apply([gradient], [w])
    before = w.copy()
    opt.apply([gradient], [w])
    lengths[name] = (before - w) / 0.001
    half = np.interp(0.5, lengths[name], gradient)
    print(f"{name}: half the step at a gradient of {half:.1e}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (name, length), color in zip(lengths.items(), ("C0", "C2", "C1"), strict=True):
    ax.plot(gradient, length, color=color, label=name)
ax.legend(loc="upper left")
ax.set(xscale="log", xlabel="size of the gradient",
       ylabel="step length / learning rate")
fig.suptitle("Epsilon decides which gradients are too small to count")
plt.show()
