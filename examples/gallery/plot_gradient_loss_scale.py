"""
The loss scale finds its own height
===================================

Gradients in float16 become 0 when they are small and infinite when they are large, so
the loss is multiplied by a scale first.  ``LossScaleOptimizer`` halves the scale when a
gradient overflows, and skips the step.  After enough good steps it doubles the scale.

.. alt text: The loss scale by step, logarithmic, below a rough line above which
   gradients overflow.  The scale starts far above the line and falls below it at once.
   Then it rises with the line by factors of 2; now and then it touches the line and
   halves.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# The gradients of this run get smaller and smaller, by 0.5 % a step.  The optimizer
# gets them in float16, multiplied by the scale.

rng = np.random.default_rng(0)
opt = optimc.LossScaleOptimizer(optimc.Adam(0.01), initial_scale=2.0**24,
                                dynamic_growth_steps=50)
w = np.ones(1000, np.float32)
scales, highest = [], []
for step in range(1000):
    grad = w * rng.normal(0, 0.3, 1000) * 0.995**step
    scales.append(opt.dynamic_scale)
    highest.append(65504 / np.abs(grad).max())
    with np.errstate(over="ignore"):
        opt.apply([(grad * opt.dynamic_scale).astype(np.float16)], [w])

# %%

print(f"skipped steps: {1000 - opt.iterations} of 1000")
print(f"scale: {scales[0]:.0f} at first, {min(scales):.0f} at the lowest")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
ax.plot(highest, color="0.7", lw=1, label="gradients overflow above this")
ax.step(range(1000), scales, where="post", color="C0", label="loss scale")
ax.legend(loc="lower right")
ax.set_yscale("log", base=2)
ax.set(xlabel="step", ylabel="scale")
fig.suptitle("The loss scale finds its own height")
plt.show()
