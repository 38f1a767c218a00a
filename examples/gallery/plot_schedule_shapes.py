"""
Eight shapes for a learning rate
================================

A schedule gives the learning rate for each step.  These are all of
:mod:`optimc.schedules`, over 1000 steps; ``join`` puts schedules one after another,
here a warm-up, a plateau and a decay.

.. alt text: Eight small panels with the learning rate by step, one for each schedule.
   ExponentialDecay and InverseTimeDecay fall fast, then slowly.  PolynomialDecay falls
   in a straight line, PiecewiseConstantDecay in three stairs, CosineDecay in an S.
   CosineDecayRestarts falls three times, in longer and longer waves.  OneCycle rises
   and falls.  Join rises, stays and falls in straight lines.
"""
import matplotlib.pyplot as plt

from optimc import schedules

shapes = [
    schedules.ExponentialDecay(1.0, decay_steps=250, decay_rate=0.5),
    schedules.InverseTimeDecay(1.0, decay_steps=100, decay_rate=1.0),
    schedules.PolynomialDecay(1.0, decay_steps=1000, end_learning_rate=0.0),
    schedules.PiecewiseConstantDecay([400, 750], [1.0, 0.3, 0.1]),
    schedules.CosineDecay(1.0, decay_steps=1000),
    schedules.CosineDecayRestarts(1.0, first_decay_steps=150, m_mul=0.8),
    schedules.OneCycle(1.0, total_steps=1000),
    schedules.join([schedules.PolynomialDecay(0.0, 100, end_learning_rate=1.0), 1.0,
                    schedules.PolynomialDecay(1.0, 300, end_learning_rate=0.0)],
                   [100, 700]),
]

# %%
# Any of them goes where a number would: ``optimc.Adam(learning_rate=schedule)``.

fig, axes = plt.subplots(2, 4, figsize=(9, 4), sharex=True, sharey=True,
                         layout="constrained")
for schedule, ax in zip(shapes, axes.flat, strict=True):
    ax.plot([schedule(step) for step in range(1000)])
    ax.set_title(type(schedule).__name__, fontsize=9)
fig.supxlabel("step")
fig.supylabel("learning rate")
fig.suptitle("Eight shapes for a learning rate")
plt.show()
