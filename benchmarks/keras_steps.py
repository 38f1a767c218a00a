"""Steps of optimc.keras beside Keras's own: python -m benchmarks.keras_steps --backends tensorflow,jax

Each backend runs in a process of its own.  The optimizers take turns, an epoch of 100 steps each, so that a busy
machine slows all of them.  Prints a table of CPU time: `fit`, and the compiled step alone in a loop.  `ceiling` is an
optimizer that gets the gradients and updates nothing: none can be faster.  docs/howto/keras.md has the results.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

#: name -> widths of the layers
NETS = {"10 → 64 → 1": (10, 64, 1), "10 → 64 (12 times) → 1": (10, *[64] * 12, 1),
        "10 → 1024 → 1024 → 1": (10, 1024, 1024, 1)}
OURS, THEIRS, CEILING = "optimc.keras", "keras.optimizers", "ceiling"
BACKENDS = ("tensorflow", "jax", "torch")
BATCH = 32


def nothing(keras):
    """An optimizer of Keras that waits for the gradients and counts."""
    backend = keras.backend.backend()

    class Nothing(keras.optimizers.SGD):
        def _backend_apply_gradients(self, grads, trainable_variables):
            if backend == "tensorflow":
                import tensorflow as tf
                tf.raw_ops.Assert(condition=self.iterations.value >= 0, data=grads)     # else they would be left out
            elif backend == "jax":
                import jax
                self.iterations.assign(jax.lax.optimization_barrier((self.iterations.value, grads))[0])

    return Nothing


def make_model(keras, optimizer, widths):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(widths[:1])] + [
        keras.layers.Dense(width, activation="relu") for width in widths[1:-1]] + [keras.layers.Dense(widths[-1])])
    model.compile(optimizer=optimizer, loss="mse", jit_compile="auto")
    return model


def step_alone(backend, model, x, y):
    """A function that runs a number of compiled steps on one batch; None where nothing is compiled."""
    if backend == "tensorflow":
        import tensorflow as tf
        batch = (tf.constant(x[:BATCH]), tf.constant(y[:BATCH]))
        step = tf.function(lambda batch: model.train_step(batch)["loss"])

        def run(steps):
            for _ in range(steps):
                loss = step(batch)
            return float(loss)

        return run
    if backend == "jax":
        import jax
        batch = (jax.numpy.asarray(x[:BATCH]), jax.numpy.asarray(y[:BATCH]))
        step = jax.jit(model.train_step, donate_argnums=0)
        names = {f"{name}_variables": True for name in ("trainable", "non_trainable", "optimizer", "metrics")}
        held = [jax.tree.map(jax.numpy.array, model._get_jax_state(**names))]

        def run(steps):
            for _ in range(steps):
                logs, held[0] = step(held[0], batch)
            return float(logs["loss"])

        return run
    return None


def interleaved(runs, rounds):
    """name -> CPU seconds of each round."""
    times = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[::1 if number % 2 else -1]:
            start = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - start)
    return {name: found[1:] for name, found in times.items()}      # the first round compiles


def rows_of(backend, nets, rounds, steps):
    """Yields (net, what, name -> CPU seconds of each round)."""
    import keras
    import numpy as np

    import optimc.keras
    kinds = {OURS: optimc.keras.Adam, THEIRS: keras.optimizers.Adam, CEILING: nothing(keras)}
    if backend == "torch":
        del kinds[CEILING]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * steps, 10)).astype(np.float32)
    y = x.sum(1, keepdims=True)
    for net in nets:
        models = {name: make_model(keras, kind(1e-3), NETS[net]) for name, kind in kinds.items()}
        yield net, "fit", interleaved({name: lambda model=model: model.fit(
            x, y, batch_size=BATCH, epochs=1, verbose=0, shuffle=False) for name, model in models.items()}, rounds)
        alone = {name: step_alone(backend, model, x, y) for name, model in models.items()}
        if None not in alone.values():
            yield net, "step alone", interleaved({name: lambda run=run: run(steps) for name, run in alone.items()},
                                                 rounds)


def quartiles(values):
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def line(backend, net, what, times, steps):
    """A row of the table: medians in µs, and Keras's time in multiples of optimc's and of the ceiling's."""
    cells = [backend, net, what]
    cells += [f"{statistics.median(times[name]) / steps * 1e6:.0f}" for name in (OURS, THEIRS)]
    for name in (OURS, CEILING):
        low, middle, high = quartiles([a / b for a, b in zip(times[THEIRS], times[name], strict=True)]) \
            if name in times else (None,) * 3
        cells.append("" if middle is None else f"{middle:.2f} ({low:.2f} to {high:.2f})" if name == OURS else
                     f"{middle:.2f}")
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--nets", default="", help="words of the names of nets")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    nets = [net for net in NETS if not args.nets or any(word.strip() in net for word in args.nets.split(","))]
    if args.one:
        for net, what, times in rows_of(args.backends, nets, args.rounds, args.steps):
            print(line(args.backends, net, what, times, args.steps), flush=True)
        return
    print("| backend | layers | timed | optimc.keras, µs | keras.optimizers, µs "
          f"| Keras's time ÷ optimc's (quartiles) | ÷ the ceiling's |\n{'| --- ' * 7}|", flush=True)
    for backend in args.backends.split(","):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu",
                       "CUDA_VISIBLE_DEVICES": ""} | ({"OMP_NUM_THREADS": "1"} if backend == "torch" else {})
        subprocess.run([sys.executable, "-m", "benchmarks.keras_steps", "--one", "--backends", backend, "--nets",
                        args.nets, "--rounds", str(args.rounds), "--steps", str(args.steps)], env=environment,
                       check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
