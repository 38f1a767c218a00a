r"""
An average of squares must be rounded at random
===============================================

Adam's v moves a thousandth of the way to the squared gradient at each step.  Neighbours
in bfloat16 are four to eight thousandths apart.  So v, rounded to the nearest of them,
can no longer fall: it is always rounded back to where it was.  Rounded at random, up or
down with the chances that make it right on average, it follows, in 16 bits and in 8.

.. alt text: Mean second moment by step, on a logarithmic axis.  After 2000 steps the
   gradients become ten times smaller.  float32 falls a hundredfold over the next 6000
   steps, and the two curves that are rounded at random lie on it.  The curve that is
   rounded to nearest stays where it was.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# 1024 weights have random gradients.  Their size falls from 1 to 0.1 after 2000 steps.
# The dotted curve is v in NumPy, rounded to the nearest bfloat16 after each step.


def nearest(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


stored = {"float32": None, "bfloat16, at random": {"v": "bfloat16"},
          "8 bits, at random": {"v": "int8"}}
optimizers = {name: optimc.Adam(0.0, state_dtype=v) for name, v in stored.items()}
rng, w, v = np.random.default_rng(0), *np.zeros((2, 1024), np.float32)
means = {name: [] for name in (*stored, "bfloat16, to nearest")}
for step in range(8000):
    gradient = rng.normal(0, 1 if step < 2000 else 0.1, 1024).astype(np.float32)
    v = nearest(v + (gradient**2 - v) * np.float32(0.001))
    means["bfloat16, to nearest"].append(v.mean())
    for name, opt in optimizers.items():
        opt.apply([gradient], [w])
        means[name].append(opt.slots["v"][0].mean())
for name, mean in means.items():
    print(f"{name}: v is {mean[1999]:.2f}, and {mean[-1]:.4f} at the end")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
looks = ("C0-", "C1--", "C2-.", "C3:")
for (name, mean), look in zip(means.items(), looks, strict=True):
    ax.plot(mean, look, label=name)
ax.legend(loc="lower left")
ax.set(yscale="log", xlabel="step", ylabel="mean of v")
fig.suptitle("An average of squares must be rounded at random")
plt.show()
