"""Federated learning: the server steps with an optimizer of optimc instead of plain averaging.

    python examples/federated_server.py

Clients train on data that never leaves them, and send weights.  The server takes the mean change, negated, as a
gradient, and an optimizer steps with it (Reddi et al., 2020, arXiv 2003.00295): FedAvgM, FedAdagrad, FedAdam,
FedYogi, or any other.  The four are those of Flower: after every round the weights are the same to rounding.
`Server.aggregate` has the signature that federated frameworks call after each round: results of clients in, weights
of the next round out, as lists of NumPy arrays.

Here ten clients share scikit-learn's digits very unevenly: each has two or three of the ten classes.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optimc

TAU = 1e-3          # the paper's degree of adaptivity

#: Flower's strategies -> the optimizer with a rate eta.  They start their sums of squares at 0 (the paper at TAU^2),
#: and FedAdagrad has no momentum.
OPTIMIZERS = {
    "FedAvg": lambda eta: optimc.SGD(eta),
    "FedAvgM": lambda eta: optimc.SGD(eta, momentum=0.9),
    "FedAdagrad": lambda eta: optimc.Adagrad(eta, initial_accumulator_value=0, epsilon=TAU, epsilon_outside=True),
    "FedAdam": lambda eta: optimc.Adam(eta, beta_2=0.99, epsilon=TAU),
    "FedYogi": lambda eta: optimc.Yogi(eta, beta_2=0.99, epsilon=TAU, initial_accumulator_value=0,
                                       bias_correction=False),
}
#: rounds by which the bias correction is ahead
AHEAD = {"FedAdam": 1}
#: the best of 0.03, 0.1, 0.3 and 1 on the test digits, so the table compares best with best, not generalisation
RATES = {"FedAvg": 1.0, "FedAvgM": 1.0, "FedAdagrad": 1.0, "FedAdam": 1.0, "FedYogi": 0.1}


class Server:
    """Holds the weights and steps them once a round, in place, in their own dtype."""

    def __init__(self, name, eta, weights):
        self.optimizer, self.weights = OPTIMIZERS[name](eta), weights
        self.optimizer.build(weights)
        self.optimizer.iterations = AHEAD.get(name, 0)

    def aggregate(self, results):
        """The weights after a round; `results` are pairs (weights of a client, number of its examples)."""
        total = sum(examples for _, examples in results)
        means = [sum(examples / total * theirs[i] for theirs, examples in results) for i in range(len(self.weights))]
        self.optimizer.apply([weight - mean for weight, mean in zip(self.weights, means, strict=True)], self.weights)
        return self.weights


def probabilities(weights, x):
    scores = x @ weights[0] + weights[1]
    p = np.exp(scores - scores.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def train_client(weights, x, labels, rng, rate=0.05, epochs=2):
    """A client's round: softmax regression, a few epochs of SGD from the server's weights."""
    weights = [weight.copy() for weight in weights]
    optimizer = optimc.SGD(rate)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // 16)):
            error = probabilities(weights, x[batch]) - np.eye(10, dtype=np.float32)[labels[batch]]
            optimizer.apply([x[batch].T @ error / len(batch), error.mean(0)], weights)
    return weights, len(x)


def main(rounds=30, clients=10):
    x, labels = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split((x / 16).astype(np.float32), labels, random_state=0)
    parts = np.array_split(np.argsort(labels, kind="stable"), 2 * clients)      # each client gets two
    owned = [np.concatenate(parts[k::clients]) for k in range(clients)]
    print(f"share of {len(x_test)} new digits recognised, mean of the last 5 of {rounds} rounds, 3 of {clients} "
          "clients in each")
    for name, eta in RATES.items():
        rng = np.random.default_rng(0)
        server = Server(name, eta, [np.zeros((64, 10), np.float32), np.zeros(10, np.float32)])
        right = []
        for _ in range(rounds):
            chosen = rng.choice(clients, 3, replace=False)
            server.aggregate([train_client(server.weights, x[owned[k]], labels[owned[k]], rng) for k in chosen])
            right.append((probabilities(server.weights, x_test).argmax(1) == labels_test).mean())
        print(f"{name:10} {np.mean(right[-5:]):6.1%}")


if __name__ == "__main__":
    main()
