"""
After an outlier Adam's steps are short for thousands of steps
==============================================================

One batch has a gradient 100 times as large as usual, as a faulty row of data may give.
Adam and Adamax forget it slowly, Yogi more slowly, AMSGrad never.  Clip the gradients
if you expect such outliers.

.. alt text: Step length as a multiple of the learning rate, by steps since the outlier.
   All curves drop from 1, Adamax to 0.01, the others to 0.3.  Adam and Adamax are back
   near 1 after 4500 steps, Yogi after 10 000.  AMSGrad stays at 0.3.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# The gradient is 1, but 100 at step 3000.  A step is short below 0.95 times the
# learning rate.

gradient = np.ones(16_000)
gradient[3000] = 100
lengths = {}
for name, opt in (("Adam", optimc.Adam(0.001)), ("Adamax", optimc.Adamax(0.001)),
                  ("Yogi", optimc.Yogi(0.001)),
                  ("AMSGrad", optimc.Adam(0.001, amsgrad=True))):
    w = np.zeros(1)
    path = [0.0]
    for g in gradient:
        opt.apply([np.array([g])], [w])
        path.append(w[0])
    lengths[name] = -np.diff(path) / 0.001
    long = np.flatnonzero(lengths[name][3000:] < 0.95).max()
    print(f"{name}: short for {long} steps, the last is {lengths[name][-1]:.2f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for name, length in lengths.items():
    ax.plot(np.arange(-3000, 13_000), length, label=name)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.set(xlabel="steps since the outlier", ylabel="step length / learning rate",
       xlim=(-500, 13_000), ylim=(0, 1.1))
fig.suptitle("After an outlier Adam's steps are short for thousands of steps")
plt.show()
