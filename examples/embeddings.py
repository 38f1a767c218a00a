"""Embeddings of a million items, trained by rows: matrix factorisation with nothing but NumPy and optimc.

    python examples/embeddings.py
    python examples/embeddings.py --optimizer adagrad --learning-rate 0.1

A rating is the product of two vectors that nobody sees, of a user and of an item, and noise.  The program learns such
vectors from ratings.  A few items get most of the ratings and most items hardly any (Zipf's law), as in real data.  A
batch touches a few thousand rows of tables with a million, so gradients are `optimc.Rows`: a step costs what the rows
in the batch cost, however long the tables are.  Ctrl-C stops the training and shows what was learnt.
"""

import argparse
import sys
import time

import numpy as np
from rich.console import Console
from rich.progress import Progress

import optimc

FACTORS, NOISE = 4, 0.3             # of the ratings
TEST_RATINGS = 50_000


class Ratings:
    """An endless source of ratings by users of items."""

    def __init__(self, users, items, rng):
        self.rng = rng
        self.users, self.items = (rng.standard_normal((n, FACTORS), np.float32) / FACTORS ** 0.25
                                  for n in (users, items))
        self.by_popularity = rng.permutation(items)         # popular items lie anywhere in the table

    def batch(self, size):
        """Users, items and ratings.  The n-th item in popularity occurs about 1/n times as often as the first."""
        users = self.rng.integers(len(self.users), size=size)
        places = len(self.items) ** self.rng.random(size)
        items = self.by_popularity[places.astype(np.int64) - 1]
        noise = self.rng.normal(0, NOISE, size).astype(np.float32)
        return users, items, predicted(self.users[users], self.items[items]) + noise


def predicted(users, items):
    return np.einsum("ij,ij->i", users, items)


def gradients(weights, users, items, ratings):
    """The mean squared error, and the gradients of the sum, in which no row's share depends on the size of the batch.

    A user or item that occurs several times has several rows, which the step adds up.
    """
    of_users, of_items = weights["users"][users], weights["items"][items]
    error = predicted(of_users, of_items) - ratings
    slope = 2 * error[:, None]
    return np.mean(error ** 2), {"users": optimc.Rows(users, slope * of_items),
                                 "items": optimc.Rows(items, slope * of_users)}


def train(optimizer, weights, ratings, args):
    """Trains until all steps are made or Ctrl-C is pressed.  Returns the seconds of all and of the optimizer."""
    start, in_optimizer, losses = time.perf_counter(), 0.0, []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("training", total=args.steps)
        try:
            for step in range(1, args.steps + 1):
                loss, grads = gradients(weights, *ratings.batch(args.batch))
                before = time.perf_counter()
                optimizer.apply(grads, weights)             # the rows change in place, the others are not touched
                in_optimizer += time.perf_counter() - before
                losses.append(loss)
                bar.update(task, advance=1)
                if step * 10 // args.steps > (step - 1) * 10 // args.steps:
                    print(f"step {step}: loss {np.mean(losses):.4f}", flush=True)
                    losses.clear()
        except KeyboardInterrupt:                           # between two steps: none is left half made
            print(f"interrupted after {optimizer.iterations} steps", file=sys.stderr)
    return time.perf_counter() - start, in_optimizer


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--items", type=int, default=1_000_000, metavar="N", help="rows of the table of items (default: %(default)s)")
    add("--users", type=int, default=10_000, metavar="N", help="rows of the table of users (default: %(default)s)")
    add("--width", type=int, default=32, metavar="N", help="numbers in a row (default: %(default)s)")
    add("--batch", type=int, default=4096, metavar="N", help="ratings in a batch (default: %(default)s)")
    add("--steps", type=int, default=1500, metavar="N", help="(default: %(default)s)")
    add("--optimizer", default="adam", metavar="NAME", help="any that takes rows (default: %(default)s)")
    add("--learning-rate", type=float, default=0.02, metavar="X", help="(default: %(default)s)")
    args = parser.parse_args()
    if min(args.items, args.users, args.width, args.batch, args.steps) < 1:
        parser.error("expected numbers above 0")
    return args


def main():
    args, rng = parse(), np.random.default_rng(0)
    optimizer = optimc.get({"class_name": args.optimizer, "config": {"learning_rate": args.learning_rate}})
    ratings = Ratings(args.users, args.items, rng)
    weights = {name: 0.1 * rng.standard_normal((n, args.width), np.float32)
               for name, n in (("users", args.users), ("items", args.items))}
    users, items, expected = ratings.batch(TEST_RATINGS)

    taken, in_optimizer = train(optimizer, weights, ratings, args)

    loss = np.mean((predicted(weights["users"][users], weights["items"][items]) - expected) ** 2)
    print(f"{optimizer!r}")
    print(f"mean squared error of new ratings: {loss:.3f}; guessing 0: {np.mean(expected ** 2):.3f}; "
          f"the noise alone: {NOISE ** 2:.3f}")
    print(f"the optimizer took {in_optimizer / taken:.0%} of {taken:.1f} s")
    return 0 if optimizer.iterations == args.steps else 130


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (TypeError, ValueError) as error:                # such as an optimizer that takes no rows
        sys.exit(f"{sys.argv[0]}: {error}")
