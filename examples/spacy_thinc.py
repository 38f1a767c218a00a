"""An optimizer for Thinc, and so for spaCy, that steps with optimc.

    python examples/spacy_thinc.py                  (needs thinc, on the CPU)

Thinc calls its optimizer once for each weight, `optimizer(key, weights, gradient)`, and expects the new weights and
a gradient of zeros.  `Optimc` below is such a callable.  It keeps a copy of an optimizer for each key and changes the
weights in place.  To name it in a spaCy config, register it by `@thinc.registry.optimizers("Optimc.v1")`.

Here a small Thinc model learns scikit-learn's digits, with Thinc's Adam and with optimc's optimizers.
"""

import copy
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from thinc.api import Adam, Relu, Softmax, chain, fix_random_seed

import optimc


class Optimc:
    """Calls copies of one optimizer as Thinc does.  The optimizer clips, decays and averages, not Thinc."""

    def __init__(self, optimizer):
        self.optimizer, self.steppers, self.weights = optimizer, {}, {}

    def __call__(self, key, weights, gradient, *, lr_scale=1.0):
        if lr_scale != 1:
            raise ValueError(f"lr_scale must be 1, got {lr_scale}: set the optimizer's learning_rate")
        if key not in self.steppers:
            self.steppers[key] = copy.deepcopy(self.optimizer)
        if self.weights.get(key) is not weights:        # the first time, and when Thinc has put other arrays in
            self.steppers[key].build([weights])
            self.weights[key] = weights
        self.steppers[key].apply([gradient], [weights])
        gradient[...] = 0
        return weights, gradient

    def step_schedules(self):
        """Nothing to do: a schedule of optimc counts the steps itself."""

    @property
    def averages(self):
        """Copies of the averages by key, for `model.use_params`; None if the optimizer keeps none."""
        if not self.optimizer.keeps_averages:
            return None
        averages = {}
        for key, stepper in self.steppers.items():
            with stepper.averaged():
                averages[key] = self.weights[key].copy()
        return averages


def train(optimizer, x, labels, x_test, labels_test):
    """Seconds in the optimizer over ten epochs, and the share of new digits recognised with the averages."""
    fix_random_seed(0)
    model = chain(Relu(256), Relu(256), Softmax())
    model.initialize(X=x[:5], Y=np.eye(10, dtype=np.float32))
    seconds = 0.0
    for _ in range(10):
        for batch in model.ops.minibatch(64, np.random.permutation(len(x))):
            p, backprop = model.begin_update(x[batch])
            backprop((p - np.eye(10, dtype=np.float32)[labels[batch]]) / len(batch))
            start = time.perf_counter()
            model.finish_update(optimizer)
            seconds += time.perf_counter() - start
            optimizer.step_schedules()
    with model.use_params(optimizer.averages):
        return seconds, (model.predict(x_test).argmax(1) == labels_test).mean()


def main():
    x, labels = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split((x / 16).astype(np.float32), labels, random_state=0)
    for name, optimizer in {
            "Thinc's Adam": Adam(0.001, L2=0.0, grad_clip=1.0, use_averages=True),
            "optimc.Adam": Optimc(optimc.Adam(0.001, epsilon=1e-8, clipnorm=1.0, use_ema=True)),
            "optimc.Lion": Optimc(optimc.Lion(0.001, clipnorm=1.0, use_ema=True))}.items():
        seconds, right = train(optimizer, x, labels, x_test, labels_test)
        print(f"{name}: {right:.1%} of {len(x_test)} new digits recognised, {1000 * seconds:.0f} ms in the optimizer")


if __name__ == "__main__":
    main()
