"""Several processes train a small network on the diabetes data.  The losses are the same for any number of them.

    pip install 'optimc[mpi,compare]'
    mpiexec -n 4 python -m mpi4py examples/mpi_train.py

Every rank takes a part of each batch of 32 rows, and weights its gradients by the size of the part.  Their sum over
the ranks is the gradient of the batch.  In float64 the order of the sum does not change the printed digits.
"""

import argparse

import numpy as np
from mpi4py import MPI

import optimc
import optimc.mpi
from optimc.cli.compare.data import load_data
from optimc.cli.compare.training import backward, mean_squared_error, new_weights

BATCH, HIDDEN = 32, 64


def train(epochs, checkpoint=None):
    """Trains and prints the losses; with a path, saves a checkpoint there after every epoch."""
    opt = optimc.mpi.Sharded(optimc.Adam(learning_rate=1e-3), MPI.COMM_WORLD, average=False, deterministic=True)
    data = load_data(None, None)
    parts = {name: (x.astype("f8"), y.astype("f8")) for name, (x, y) in data.parts.items()}
    x, y = parts["training"]
    rng = np.random.default_rng(0)                          # the same on every rank
    weights = [w.astype("f8") for w in new_weights(x.shape[1], HIDDEN, rng)]
    for epoch in range(epochs + 1):
        order = rng.permutation(len(x) if epoch else 0)
        for start in range(0, len(order), BATCH):
            batch = order[start:start + BATCH]
            mine = batch[opt.rank::opt.size]
            if len(mine):
                grads = [g * (len(mine) / len(batch)) for g in backward(x[mine], y[mine], weights)]
            else:
                grads = [np.zeros_like(w) for w in weights]
            opt.apply(grads, weights)
        if checkpoint and epoch:
            opt.save(checkpoint)
        if opt.rank == 0:
            losses = [mean_squared_error(*parts[name], weights) for name in ("training", "validation")]
            print("epoch {:3}: training loss {:.6f}, validation loss {:.6f}".format(epoch, *losses), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="passes over the data (default: 20)")
    parser.add_argument("--checkpoint", metavar="PATH", help="save after every epoch")
    args = parser.parse_args()
    train(args.epochs, args.checkpoint)
