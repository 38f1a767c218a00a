"""Thinc's optimizers with the step in C, in a program of Thinc.

    python examples/spacy_thinc.py                  (needs thinc, on the CPU)

`optimc.thinc` has Thinc's Adam, RAdam and SGD, and Lion.  Arguments, schedules, clipping and averages are Thinc's.
In a spaCy config one line chooses such an optimizer, without code: `@optimizers = "optimc.Adam.v1"`.

Here a small Thinc model learns scikit-learn's digits, with Thinc's Adam and with optimc's optimizers.
"""

import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from thinc.api import Adam, Relu, Softmax, chain, fix_random_seed

import optimc.thinc


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
            "Thinc's Adam": Adam(0.001, L2=0.01),
            "optimc.thinc.Adam": optimc.thinc.Adam(0.001, L2=0.01),
            "optimc.thinc.Lion": optimc.thinc.Lion(0.0003, L2=0.01)}.items():
        seconds, right = train(optimizer, x, labels, x_test, labels_test)
        print(f"{name}: {right:.1%} of {len(x_test)} new digits recognised, {1000 * seconds:.0f} ms in the optimizer")


if __name__ == "__main__":
    main()
