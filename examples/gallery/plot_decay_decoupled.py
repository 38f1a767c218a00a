"""
Decoupled weight decay shrinks all weights alike, coupled decay does not
========================================================================

Weight decay that is added to the gradient (``coupled_weight_decay``, or L2
regularisation) is divided by the size of the gradients, like the gradient itself.
Weights with large gradients then hardly decay.  Decoupled decay, as in AdamW, shrinks
every weight by the same factor.  In optimc ``weight_decay`` is decoupled unless you set
``coupled_weight_decay``.

.. alt text: Share of a weight that is left after 2000 steps, by size of its gradients
   on a logarithmic axis.  With AdamW it is 0.37 for all sizes.  With Adam and coupled
   decay weights with gradients below 0.1 have shrunk nearly to 0, those with gradients
   above 10 hardly at all.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

sizes = np.logspace(-4, 2, 25)
rng = np.random.default_rng(0)

# %%
# Each column of weights has gradients of another size.  They are noise, 200 draws a
# step, so that on average only the decay moves the weights.

left = {}
for name, opt in (("decoupled: AdamW", optimc.AdamW(0.001, weight_decay=0.5)),
                  ("coupled: Adam", optimc.Adam(0.001, weight_decay=0.5,
                                                coupled_weight_decay=True))):
    w = np.ones((200, 25))
    for _ in range(2000):
        opt.apply([rng.normal(size=w.shape) * sizes], [w])
    left[name] = w.mean(axis=0)
    print(f"{name}: {left[name].min():.2f} to {left[name].max():.2f} are left")
print(f"(1 - 0.001 * 0.5) ** 2000 = {(1 - 0.001 * 0.5) ** 2000:.2f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
for (name, share), color in zip(left.items(), ("C0", "C1"), strict=True):
    ax.plot(sizes, share, ".-", color=color, label=name)
ax.legend(loc="center right")
ax.set(xscale="log", xlabel="size of the gradients", ylabel="share of the weight left",
       ylim=(-0.05, 1.05))
fig.suptitle("Decoupled weight decay shrinks all weights alike, coupled decay does not")
plt.show()
