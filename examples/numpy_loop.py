"""A training loop with nothing but NumPy and optimc: a network of two layers learns to read digits.

    python examples/numpy_loop.py [optimizer, by default adamw]

It shows the parts of a real loop: weights by name, a group of weights with its own weight decay, a schedule, averages
of the weights for evaluation, and a checkpoint from which training continues bit for bit.  Data: scikit-learn's.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optimc


def forward(weights, x):
    hidden = np.maximum(x @ weights["hidden/kernel"] + weights["hidden/bias"], 0)
    scores = hidden @ weights["out/kernel"] + weights["out/bias"]
    p = np.exp(scores - scores.max(1, keepdims=True))
    return hidden, p / p.sum(1, keepdims=True)


def backward(weights, x, labels):
    """The mean cross-entropy and its gradients, by the names of the weights."""
    hidden, p = forward(weights, x)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels] + 1e-12).mean()
    p[rows, labels] -= 1
    p /= len(labels)
    back = p @ weights["out/kernel"].T * (hidden > 0)
    return loss, {"hidden/kernel": x.T @ back, "hidden/bias": back.sum(0),
                  "out/kernel": hidden.T @ p, "out/bias": p.sum(0)}


def epoch(optimizer, weights, x, labels, seed):
    losses = []
    for batch in np.array_split(np.random.default_rng(seed).permutation(len(x)), len(x) // 32):
        loss, grads = backward(weights, x[batch], labels[batch])
        optimizer.apply(grads, weights)                 # the weights change in place
        losses.append(loss)
    return np.mean(losses)


def main(name="adamw"):
    x, labels = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split((x / 16).astype(np.float32), labels, random_state=0)
    rng = np.random.default_rng(0)
    weights = {"hidden/kernel": rng.normal(0, 0.18, (64, 64)).astype(np.float32),
               "hidden/bias": np.zeros(64, np.float32),
               "out/kernel": rng.normal(0, 0.18, (64, 10)).astype(np.float32),
               "out/bias": np.zeros(10, np.float32)}
    optimizer = optimc.get({"class_name": name, "config": {
        "learning_rate": optimc.schedules.CosineDecay(3e-3, decay_steps=10 * 42),
        "weight_decay": 0.01, "groups": [{"weights": "bias$", "weight_decay": 0.0}],
        "use_ema": True, "ema_momentum": 0.98}})

    for k in range(5):
        print(f"epoch {k + 1}: loss {epoch(optimizer, weights, x, labels, seed=k):.4f}")

    with tempfile.TemporaryDirectory() as folder:       # stop here, and continue as if nothing had happened
        optimizer.save(Path(folder, "digits.optimc"))
        resumed = optimc.load(Path(folder, "digits.optimc"))
    copies = {key: weight.copy() for key, weight in weights.items()}
    for k in range(5, 10):
        loss = epoch(optimizer, weights, x, labels, seed=k)
        assert epoch(resumed, copies, x, labels, seed=k) == loss
        print(f"epoch {k + 1}: loss {loss:.4f}")

    with optimizer.averaged(weights):
        right = (forward(weights, x_test)[1].argmax(1) == labels_test).mean()
    print(f"{optimizer!r}: {right:.1%} of {len(x_test)} new digits recognised")


if __name__ == "__main__":
    main(*sys.argv[1:])
