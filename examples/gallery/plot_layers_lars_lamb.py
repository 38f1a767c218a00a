"""
LARS and LAMB take steps in proportion to the weights
=====================================================

Large batches want large learning rates, and one rate for all layers is then too large
for the layer with the smallest weights.  LARS and LAMB make the step of each layer a
fixed share of its weights' length.

.. alt text: Length of a step as a share of the weights' length, by the length of the
   weights, both logarithmic.  The lines of SGD and Adam fall: small weights move by
   many times their length.  The lines of LARS and LAMB are level at a small share.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

sizes = np.logspace(-3, 2, 21)
rng = np.random.default_rng(0)
direction = rng.normal(size=100) / 10
gradient = rng.normal(size=100) / 10

# %%
# 21 layers have weights of different lengths, and the same gradient.

shares = {}
for name, opt in (("SGD", optimc.SGD(0.01)), ("Adam", optimc.Adam(0.01)),
                  ("LARS", optimc.LARS(0.01, momentum=0.0, trust_coefficient=1.0)),
                  ("LAMB", optimc.Lamb(0.01))):
    layers = [size * direction / np.linalg.norm(direction) for size in sizes]
    before = [layer.copy() for layer in layers]
    opt.apply([gradient] * 21, layers)
    steps = [np.linalg.norm(new - old) for new, old in zip(layers, before, strict=True)]
    shares[name] = steps / sizes
    print(f"{name}: {shares[name].min():.1%} to {shares[name].max():.1%} of the length")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
styles = "C1-", "C3-", "C2-", "C0--"
for (name, share), style in zip(shares.items(), styles, strict=True):
    ax.loglog(sizes, share, style, lw=3 if name == "LARS" else 2, label=name)
ax.legend(loc="upper right")
ax.set(xlabel="length of a layer's weights", ylabel="step / length of the weights")
fig.suptitle("LARS and LAMB take steps in proportion to the weights")
plt.show()
