"""
RMSprop follows a moving minimum, Adagrad falls behind
======================================================

Adagrad divides by the root of the sum of *all* squared gradients, so its steps shrink
for ever.  RMSprop divides by an average that forgets.  That matters when the best
weights keep changing, as in reinforcement learning or on streams of data.

.. alt text: Two panels with a minimum that moves as a wave, and two weights that follow
   it.  In the first 2000 steps both stay close to the wave.  After 30 000 steps RMSprop
   still does, while Adagrad's wave is flatter and comes late.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

minimum = np.sin(np.arange(32_000) / 150) * 2
noise = np.random.default_rng(0).normal(0, 2, 32_000)


def follow(cls, rate, steps):
    opt, w = cls(learning_rate=rate), np.zeros(1)
    path = []
    for target, error in zip(minimum[:steps], noise[:steps], strict=True):
        opt.apply([w - target + error], [w])
        path.append(w[0])
    return np.array(path)


# %%
# Each rule gets the learning rate that keeps it closest to the minimum in the first
# 2000 steps.

paths = {}
for cls in optimc.Adagrad, optimc.RMSprop:
    rate = min((0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
               key=lambda rate: np.abs(follow(cls, rate, 2000) - minimum[:2000]).mean())
    paths[cls] = follow(cls, rate, 32_000)
    far = np.abs(paths[cls] - minimum)
    print(f"{cls.__name__}({rate}): {far[:2000].mean():.2f} from the minimum at first,",
          f"{far[-2000:].mean():.2f} at last")

# %%

fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
for ax, start in zip(axes, (0, 30_000), strict=True):
    steps = np.arange(start, start + 2000)
    ax.plot(steps, minimum[steps], color="0.8", lw=5, label="minimum")
    for (cls, path), color in zip(paths.items(), ("C1", "C0"), strict=True):
        ax.plot(steps, path[steps], color=color, lw=1.2, label=cls.__name__)
    ax.set(xlabel="step", xlim=(start, start + 2000))
axes[0].set_ylabel("weight")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
fig.suptitle("RMSprop follows a moving minimum, Adagrad falls behind")
plt.show()
