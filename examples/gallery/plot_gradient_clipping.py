r"""
Clipping keeps a gradient that explodes from throwing the weights away
======================================================================

The loss of a recurrent network has cliffs, because a weight that is applied many times
has an effect that grows like a power.  One step at the edge of the cliff throws the
weights far away.  With ``global_clipnorm`` the step keeps its direction and gets a
limited length.

.. alt text: The loss of a small recurrent network by its weight and bias, in shades of
   grey: a slope that ends at a steep cliff.  Two paths go down the slope to the cliff.
   There the one without clipping jumps back further each time and at last far away, out
   of the valley.  The one with clipping stays at the edge and follows it to the
   minimum.
"""
import matplotlib.pyplot as plt
import numpy as np

import optimc

# %%
# The recurrent unit is :math:`h \leftarrow \sigma(w h + b)`, applied 50 times, and it
# should end at 0.7 (Pascanu et al., 2013, figure 6).


def loss_and_gradient(w, b):
    h, along_w, along_b = 0.5, 0.0, 0.0            # the state, and its derivatives
    for _ in range(50):
        new = 1 / (1 + np.exp(-(w * h + b)))
        slope = new * (1 - new)
        along_w, along_b = slope * (h + w * along_w), slope * (1 + w * along_b)
        h = new
    return (h - 0.7) ** 2, 2 * (h - 0.7) * np.array([along_w, along_b])


paths = {}
for name, clip in ("not clipped", None), ("global_clipnorm=0.1", 0.1):
    opt = optimc.SGD(learning_rate=1.5, global_clipnorm=clip)
    w = np.array([6.0, -1.8])
    path = [w.copy()]
    for _ in range(150):
        opt.apply([loss_and_gradient(*w)[1]], [w])
        path.append(w.copy())
    paths[name] = np.array(path)
    print(f"{name}: longest step {np.hypot(*np.diff(path, axis=0).T).max():.2f}")

# %%

fig, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
x, y = np.meshgrid(np.linspace(2, 8, 400), np.linspace(-3.2, 0.8, 300))
shades = ax.contourf(x, y, loss_and_gradient(x, y)[0], 20, cmap="Greys")
for (name, path), color in zip(paths.items(), ("C1", "C0"), strict=True):
    ax.plot(*path.T, ".-", color=color, lw=1, ms=4, label=name)
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
ax.set(xlabel="recurrent weight", ylabel="bias", xlim=(2, 8), ylim=(-3.2, 0.8))
fig.colorbar(shades, label="loss")
fig.suptitle("Clipping keeps a gradient that explodes from throwing the weights away")
plt.show()
