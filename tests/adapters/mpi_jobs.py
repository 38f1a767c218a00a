"""The jobs that test_mpi.py starts: `mpiexec -n N python -m mpi4py mpi_jobs.py NAME ARGUMENTS`.

Each job checks with `assert`; a rank that fails ends the job.
"""

import copy
import itertools
import os
import pickle
import re
import sys
import threading
import time
import warnings

import ml_dtypes
import numpy as np
from cases import CASES, OPTIONS, assert_equal, assert_same_bits, values
from mpi4py import MPI

import optimc
from optimc import checkpoint, mpi
from optimc.base.narrow import choices_of
from optimc.base.rules import slots_of
from optimc.mpi.layout import Layout

WORLD = MPI.COMM_WORLD
SHAPES = [(40, 33), (1,), (5000,), (0,), (3, 2, 5, 7), (17,), ()]
DTYPES = [np.float32, np.float64, np.float32, np.float32, np.float64, np.float32, np.float32]

HALF = ml_dtypes.bfloat16
#: how weights and slots are stored: dtypes of weights, whether they have a master, the type of the slots
STORAGES = [(DTYPES, True, None), *itertools.product(
    [DTYPES, [HALF] * 7, [np.float16, HALF, HALF, np.float32, np.float64, np.float16, HALF]], [True],
    [None, "bfloat16", "int8"]), *itertools.product([[HALF] * 7], [False], [None, "bfloat16", "int8"])]


def some(seed, dtypes=DTYPES, shapes=SHAPES):
    """Weights, or the gradients of a rank."""
    rng = np.random.default_rng(seed)
    return [values(rng, shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]


def reals(dtypes):
    """The dtypes of gradients that are added up for weights of these dtypes."""
    return [np.float64 if dtype == np.float64 else np.float32 for dtype in dtypes]


def all_grads(step, dtypes=DTYPES):
    return [some((step, rank), reals(dtypes)) for rank in range(WORLD.size)]


def stored_as(case, master, state):
    """The arguments for a storage.  Where a slot must stay as it is, the others of small weights change too."""
    slots = {slot for kernel in case.optimizer._possible_kernels() for slot in slots_of(kernel)
             if slot not in case.cls._scratch_slots}
    narrow = {slot: state if state in choices else choices[-1] for slot in slots
              if (choices := choices_of(case.optimizer, slot))}
    return {"master_weights": master, "seed": 7,
            "state_dtype": state if state is None or narrow == dict.fromkeys(slots, state) else narrow}


def mean(grads):
    """The ranks' gradients, added up in their order and divided, as `deterministic` has it."""
    means = []
    for parts in zip(*grads, strict=True):
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        means.append(total / total.dtype.type(len(parts)) if len(parts) > 1 else total)
    return means


def assert_same_everywhere(arrays):
    for array in arrays:
        rows = WORLD.allgather(array.tobytes())
        assert all(row == rows[0] for row in rows)


def arrays_of(t, dtypes):
    """The gradients of this rank in a step, and those of one process that makes the same step."""
    grads = all_grads(t, dtypes)
    return grads[WORLD.rank], mean(grads)


def assert_steps_alike(make, dtypes, what, shapes=SHAPES, grads_of=arrays_of):
    """Steps an optimizer in the job and in one process, and compares the bits of weights and state."""
    sharded, alone = mpi.Sharded(make(), deterministic=True, bucket_bytes=9000), make()
    weights, expected = some(0, dtypes, shapes), some(0, dtypes, shapes)
    for t in range(5):
        mine, of_all = grads_of(t, dtypes)
        sharded.apply(mine, weights)
        alone.apply(of_all, expected)
        for w, e in zip(weights, expected, strict=True):
            assert_same_bits(w, e, f"{what}, step {t}")
    assert sharded.iterations == alone.iterations and sharded.last_global_norm == alone.last_global_norm
    if alone.use_ema:
        assert_averaged_alike(sharded, alone, weights, expected, what, grads_of(5, dtypes))
    part = sharded._share._own_part(alone._state_now().without(alone._scratch_slots), None, weights)
    own = sharded._local._state.tensors()
    for name, array in part.tensors().items():
        assert not array.size or array.tobytes() == own[name].tobytes(), f"{what}, {name}"


def assert_averaged_alike(sharded, alone, weights, expected, what, grads):
    """Compares what averages make of the weights, and of their masters: the next update shows these."""
    with sharded.averaged(), alone.averaged():
        for w, e in zip(weights, expected, strict=True):
            assert_same_bits(w, e, f"{what}, averaged")
    sharded.finalize_variable_values()
    alone.finalize_variable_values()
    for _ in range(alone.gradient_accumulation_steps or 1):
        sharded.apply(grads[0])
        alone.apply(grads[1])
    for w, e in zip(weights, expected, strict=True):
        assert_same_bits(w, e, f"{what}, finalized")


def serial(name="", start=0, step=1):
    """Every case and set of options: the bits of the serial step on the ordered sum."""
    runs = list(itertools.product(CASES[int(start)::int(step)], OPTIONS if not name else [name]))
    for case, options in runs:
        assert_steps_alike(lambda case=case, options=options: case.make(**OPTIONS[options]), DTYPES,
                           f"{case!r}, {options}")
    if WORLD.rank == 0:
        print(len(runs), "runs")


def narrow(turn):
    """Every case, each with another storage and other options in each turn: the bits of one process."""
    sets = [*OPTIONS.values(), {"cautious": True, **OPTIONS["everything"]}]
    for k, case in enumerate(CASES, int(turn)):
        dtypes, *storage = STORAGES[k % len(STORAGES)]
        arguments = {**sets[k * 5 % len(sets)], **stored_as(case, *storage)}
        if "cautious" not in case.cls._arguments:
            arguments.pop("cautious", None)
        assert_steps_alike(lambda case=case, arguments=arguments: case.make(**arguments), dtypes,
                           f"{case!r}, {arguments}, {[np.dtype(dtype).name for dtype in dtypes]}")


def converted():
    """A state from before is rounded to other slots, and weights in another order of memory, as in one process."""
    for before, after in itertools.permutations([None, "bfloat16", "int8"], 2):
        first, weights = optimc.Adam(state_dtype=before), some(0)
        first.apply(some(1), weights)
        alone = optimc.Adam(state_dtype=after)
        alone.load_state_dict(first.state_dict(), convert=True)
        sharded, weights = mpi.Sharded(copy.deepcopy(alone)), [np.array(w, order="F") for w in weights]
        expected = [w.copy(order="K") for w in weights]
        for t in range(2):
            sharded.apply(share_of(some(t)), weights)
            alone.apply([grad / grad.dtype.type(WORLD.size) for grad in some(t)], expected)
        for w, e in zip(weights, expected, strict=True):
            assert_same_bits(w, e, f"{before} to {after}")


KEPT = ["everything", "decay", "ema", "accumulation"]


def stored(start, step):
    """Some cases, their optimizers and dtypes of weights, as checkpoints are tested with them."""
    for k, case in list(enumerate(CASES))[int(start)::int(step)]:
        options, (dtypes, *storage) = KEPT[k // int(step) % len(KEPT)], STORAGES[k // int(step) % len(STORAGES)]
        optimizer = case.make(**OPTIONS[options], **stored_as(case, *storage),
                              groups=[{"weights": [0, 4], "learning_rate": 0.5}])
        optimizer.exclude_from_weight_decay([4])
        optimizer.name = f"{case!r} {options}"
        if k % 2:
            optimizer.loss_scale_factor = None
            optimizer = optimc.LossScaleOptimizer(optimizer, initial_scale=4.0)
        yield case, optimizer, dtypes


def path_of(folder, optimizer):
    return f"{folder}/{getattr(optimizer, 'inner_optimizer', optimizer).name}"


def share_of(grads):
    """A rank's part of gradients whose sum has the same bits for any number of ranks."""
    return [grad if i % WORLD.size == WORLD.rank else np.zeros_like(grad) for i, grad in enumerate(grads)]


def save(folder, start, step):
    """Steps each case, and saves it after three steps, in small blocks."""
    checkpoint.shards.SHARD_BLOCK = 700
    for _, optimizer, dtypes in stored(start, step):
        sharded, weights = mpi.Sharded(optimizer, average=False), some(0, dtypes)
        for t in range(3):
            sharded.apply(share_of(some(t + 1, reals(dtypes))), weights)
        sharded.save(path_of(folder, optimizer))
        if WORLD.rank == 0:
            with open(f"{path_of(folder, optimizer)}.weights", "wb") as file:
                pickle.dump(weights, file)


def load(folder, start, step):
    """Goes on from `save` in another job, then in one process and in the job again, as if it had never stopped."""
    for case, optimizer, dtypes in stored(start, step):
        path, expected = path_of(folder, optimizer), some(0, dtypes)
        with open(f"{path}.weights", "rb") as file:
            weights = pickle.load(file)
        sharded = mpi.load(path, average=False)

        def follows(t, step, weights, expected=expected, case=case, optimizer=optimizer, dtypes=dtypes, path=path):
            step(share_of(some(t + 1, reals(dtypes))), weights)
            optimizer.apply(some(t + 1, reals(dtypes)), expected)
            for w, e in zip(weights, expected, strict=True):
                assert_equal(case, w, e, f"{path}, step {t}")

        for t in range(3):
            optimizer.apply(some(t + 1, reals(dtypes)), expected)
        for t in range(3, 6):
            follows(t, sharded.apply, weights)
        assert sharded.iterations == optimizer.iterations
        assert repr(sharded.optimizer.get_config()) == repr(optimizer.get_config())
        sharded.save(f"{path}.again")
        one, alone = optimc.load(f"{path}.again"), [w.copy() for w in weights]
        one.apply(some(7, reals(dtypes)), alone)
        if WORLD.rank == 0:
            one.save(f"{path}.one")
        follows(6, sharded.apply, weights)
        for w, a in zip(weights, alone, strict=True):
            assert_equal(case, w, a, f"{path}, in one piece")
        follows(7, mpi.load(f"{path}.one", average=False).apply, weights)


def refused(kind, message, sharded, act, weights):
    """Asserts that every rank raises alike, and that nothing has changed."""
    before = state(sharded, weights)
    try:
        act()
    except kind as error:
        assert re.search(message, str(error)), f"{error} instead of {message}"
    else:
        raise AssertionError(f"not refused: {message}")
    assert state(sharded, weights) == before, message


def state(sharded, weights):
    local = sharded._local
    slots = [array.tobytes() for arrays in local._slots.values() for array in arrays if array is not None]
    return ([w.tobytes() for w in weights], slots if sharded.built else sharded.built, local._calls,
            sharded.skipped_steps, repr(local._get_running()), repr(local.get_config()))


def errors():
    """All ranks refuse a mistake of one rank, at the first step and later; then all go on."""
    last, weights = WORLD.size - 1, some(0)
    bad = WORLD.rank == last
    grads = some((1, WORLD.rank))

    def with_entry(entries, i, value):
        return [value if bad and k == i else entry for k, entry in enumerate(entries)]

    def wrong(kind, message, grads, rate=0.1, weights=weights):
        refused(kind, message, sharded, lambda: sharded.apply(grads, weights), weights)

    def odd_rate():
        return np.inf if bad and broken else 0.1

    for arguments in ({"state_dtype": "bfloat16"}, {"master_weights": False}, {"seed": 1}):
        sharded = mpi.Sharded(optimc.Adam(**(arguments if bad else {})))
        wrong(ValueError, f"rank {last} has other weights or arguments", grads)
    sharded, halves = mpi.Sharded(optimc.Adam(master_weights=False)), some(0, [HALF] * 6 + [np.float16])
    wrong(ValueError, "rank 0: weights.6.: float16 weights need a master", grads, weights=halves)
    broken = False
    sharded = mpi.Sharded(optimc.Adam(odd_rate, check_finite="raise"))
    for first in (True, False):
        wrong(ValueError, f"rank {last}: grads.2.: expected shape", with_entry(grads, 2, np.ones(3)))
        wrong(TypeError, f"rank {last}: grads.1.: expected a floating-point gradient",
              with_entry(grads, 1, np.ones(1, int)))
        wrong(ValueError, f"rank {last}: grads.0. overlaps", with_entry(grads, 0, weights[0]))
        wrong(ValueError, f"rank {last}: grads and weights must have one entry", grads[:-1] if bad else grads)
        wrong(ValueError, f"rank {last}: No gradients", [None] * len(grads) if bad else grads)
        wrong(FloatingPointError, f"rank {last}: grads.4. is not finite", with_entry(
            grads, 4, np.full(SHAPES[4], np.nan)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong(ValueError, f"rank {last} has gradients for other weights or of another form than rank 0",
                  with_entry(grads, 2, None))
        broken = True
        wrong(ValueError, f"rank {last}: learning_rate must be", grads)
        broken = False
        if first:
            wrong(ValueError, f"rank {last} has other numbers in its weights", grads,
                  weights=[np.asarray(w + bad) for w in weights])
            wrong(ValueError, f"rank {last} has other weights or arguments", grads,
                  weights=with_entry(weights, 5, np.zeros((17, 1), np.float32)))
            wrong(ValueError, f"rank {last}: weights.0.", grads,
                  weights=with_entry(weights, 0, np.zeros((3, 3))[:, 0]))
        if not first:
            refused(TypeError, f"rank {last}: grads_and_vars must be pairs", sharded, lambda: (
                sharded.apply_gradients([1] if bad else zip(grads, weights, strict=True))), weights)
            for excluded, kind, message in (([weights[0]], ValueError, " excludes other weights than rank 0"),
                                            ([np.ones(2)], ValueError, ": .*entry 0 is not one of the 7 weights"),
                                            (["["], ValueError, ": .* is not a regular expression"),
                                            (weights[0], TypeError, ": .*expected a list")):
                refused(kind, f"rank {last}{message}", sharded, lambda excluded=excluded: (
                    sharded.exclude_from_weight_decay(excluded if bad else [])), weights)
            sharded._local.exclude_from_weight_decay([0] if bad else [])
            wrong(ValueError, f"rank {last} has other hyperparameters than rank 0", grads)
            sharded._local.exclude_from_weight_decay([])
            wrong(ValueError, f"rank {last}: weights.5. is not in the memory", grads,
                  weights=with_entry(weights, 5, weights[5].copy()))
            sharded._local.beta_1 = 0.8 if bad else 0.9
            wrong(ValueError, f"rank {last} has other hyperparameters than rank 0", grads)
            sharded._local.beta_1 = 0.9
            sharded._local.iterations += bad
            wrong(ValueError, f"rank {last} has done other steps than rank 0", grads)
            sharded._local.iterations -= bad
            refused(RuntimeError, f"rank {last} calls finalize_.*, rank 0 calls apply:", sharded, lambda: (
                sharded.finalize_variable_values() if bad else sharded.apply(grads, weights)), weights)
            sharded._local.clipnorm = 1.0
            wrong(ValueError, "clipnorm, global_clipnorm and cautious can be turned on only before", grads)
            sharded._local.clipnorm = None
            refused(ValueError, "rank 0: .*averages", sharded, lambda: sharded.averaged().__enter__(), weights)
        wrong(FloatingPointError, "finite, but what they add up to, or the norm that clips it, is not", [
            np.full(g.shape, np.finfo(g.dtype).max) for g in grads])
        assert sharded.apply_gradients(zip(grads, weights, strict=True)) == 2 - first
        assert_same_everywhere(weights)


def few():
    """More ranks than elements: some have no share, and go on like the others."""
    weights, expected = [np.ones((1, 1), np.float32)], [np.ones((1, 1), np.float32)]
    for options in ({}, {"clipnorm": 0.1, "use_ema": True}, {"check_finite": "raise", "cautious": True}):
        sharded, alone = mpi.Sharded(optimc.Adam(**options), deterministic=True), optimc.Adam(**options)
        for t in range(4):
            grads = [[np.full((1, 1), 1.0 + t + rank)] for rank in range(WORLD.size)]
            sharded.apply(grads[WORLD.rank], weights)
            alone.apply(mean([[g.astype("f4") for g in one] for one in grads]), expected)
        assert_same_bits(weights[0], expected[0])
        assert sharded.iterations == 4 and sharded.last_global_norm == alone.last_global_norm
    sharded = mpi.Sharded(optimc.Adam())
    sharded.apply([np.ones(0)], [np.ones(0)])
    assert sharded.iterations == 1
    # squares that are finite on every rank of two or more, and in every weight, but not their sum
    sharded = mpi.Sharded(optimc.SGD(0.5, global_clipnorm=1.0, check_finite="raise"))
    weights = [np.ones(1), np.ones(1)]
    huge = [np.full(1, 1.2e154)] * 2
    refused(FloatingPointError, "norm .*not", sharded, lambda: sharded.apply(huge, weights), weights)
    sharded._local.check_finite = "skip"
    sharded.apply(huge, weights)
    assert sharded.skipped_steps == 1 and [w.tolist() for w in weights] == [[1], [1]]
    sharded.apply([np.ones(1), np.ones(1)], weights)
    assert sharded.iterations == 1 and all(w < 1 for w in weights)


def broken_saves(folder):
    """A rank that cannot write spoils the save for all; the one before is still whole."""
    last, weights = WORLD.size - 1, some(0)
    sharded, path = mpi.Sharded(optimc.Adam()), f"{folder}/adam"
    refused(ValueError, "rank 0: the optimizer is not built", sharded, lambda: sharded.save(path), weights)
    sharded.apply(some(1), weights)
    sharded.save(path)
    if WORLD.rank == 0:
        os.mkdir(f"{folder}/taken")
    WORLD.barrier()
    files = sorted(os.listdir(folder))
    sharded.apply(some(2), weights)
    replace = os.replace

    def full(source, target):
        if WORLD.rank == broken:
            raise OSError(28, "No space left on device")
        replace(source, target)

    for broken in (last, 0):
        os.replace = full
        refused(OSError, f"rank {broken}: .*No space left", sharded, lambda: sharded.save(path), weights)
        os.replace = replace
        WORLD.barrier()
        assert sorted(os.listdir(folder)) == files
        WORLD.barrier()
    refused(OSError, "rank 0: .*taken is a directory", sharded, lambda: sharded.save(f"{folder}/taken"), weights)
    WORLD.barrier()
    assert sorted(os.listdir(folder)) == files
    refused(TypeError, "rank 0: average must be a bool", sharded, lambda: mpi.load(path, average=1), weights)
    if WORLD.size > 1:
        refused(ValueError, f"rank {last} has another path", sharded, lambda: sharded.save(
            path if WORLD.rank < last else f"{path}.other"), weights)
        refused(OSError, f"rank {last}: .*No such file", sharded, lambda: mpi.load(
            path if WORLD.rank < last else f"{path}.other"), weights)
    assert mpi.load(path).iterations == 1
    sharded.save(path)
    assert mpi.load(path).iterations == 2
    WORLD.barrier()
    if WORLD.rank == 0:
        assert len(os.listdir(folder)) == len(files)
        shard = next(name for name in os.listdir(folder) if name.endswith(f".{last}"))
        with open(f"{folder}/{shard}", "r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"x")
    WORLD.barrier()
    refused(optimc.CheckpointError, f"rank {last}: .*damaged", sharded, lambda: mpi.load(path), weights)
    if WORLD.rank == 0:
        os.unlink(f"{folder}/{shard}")
    WORLD.barrier()
    refused(OSError, f"rank {last}: .*No such file", sharded, lambda: mpi.load(path), weights)


def equal():
    """The library's reduction: after 50 steps of every class, all ranks hold the same bits."""
    for case in {case.cls: case for case in CASES}.values():
        sharded, weights = mpi.Sharded(case.make()), some(0)
        alone, expected = case.make(), some(0)
        for t in range(50):
            grads = all_grads(t)
            sharded.apply(grads[WORLD.rank], weights)
            if t == 0:
                alone.apply(mean(grads), expected)
                for w, e in zip(weights, expected, strict=True):
                    assert np.allclose(w, e, rtol=1e-3, atol=1e-3 * np.abs(e).max(initial=0)), case
        assert_same_everywhere(weights)


def skips():
    """A gradient that is not finite on one rank: all skip the step."""
    for make in (lambda: optimc.Adam(check_finite="skip", global_clipnorm=1.0),
                 lambda: optimc.LossScaleOptimizer(optimc.Adam(), initial_scale=8.0, dynamic_growth_steps=2)):
        sharded, weights = mpi.Sharded(make(), deterministic=True), some(0)
        alone, expected = make(), some(0)
        for t in range(6):
            grads = all_grads(t)
            if t in (0, 4):
                grads[-1][2][3] = np.inf
            sharded.apply(grads[WORLD.rank], weights)
            alone.apply(mean(grads), expected)
            for w, e in zip(weights, expected, strict=True):
                assert_same_bits(w, e)
        assert repr(sharded.optimizer.get_config()) == repr(alone.get_config())
        assert sharded.iterations == alone.iterations == 4
        assert sharded.skipped_steps == getattr(alone, "inner_optimizer", alone).skipped_steps
        assert sharded.scale_loss(2.0) == alone.scale_loss(2.0)


def features():
    """Missing gradients, names, groups, averages, new memory, state from before, other gradient types."""
    names = "abcdefg"
    for cls in (optimc.Adam, optimc.ScheduleFreeAdamW, optimc.Muon):
        def make(cls=cls):
            optimizer = cls(use_ema=True, weight_decay=0.1, groups=[{"weights": "[ce]", "learning_rate": 0.1}],
                            gradient_accumulation_steps=2, clipnorm=2.0)
            optimizer.exclude_from_weight_decay(var_names=["a"])
            return optimizer

        order = "F" if cls is optimc.Adam else "C"         # norms are summed as the weights lie
        alone, expected = make(), {name: np.array(w, order=order) for name, w in zip(names, some(0), strict=True)}
        for t in range(3):
            alone.apply(dict(zip(names, some(t), strict=True)), expected)
        sharded = mpi.Sharded(copy.deepcopy(alone), deterministic=True)
        weights = {name: w.copy(order="K") for name, w in expected.items()}
        for t in range(3, 9):
            grads = [dict(zip(names, g, strict=True)) for g in all_grads(t)]
            total = dict(zip(names, mean([[*g.values()] for g in grads]), strict=True))
            mine = {k: np.asarray(g, "f8", order="F") for k, g in grads[WORLD.rank].items()}
            if t in (4, 5):
                mine["c"] = total["c"] = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sharded.apply(mine, weights if t % 2 else None)
                alone.apply(total, expected if t % 2 else None)
            if t == 6:                                  # weights move, and are a subset in another order
                weights = {name: w.copy(order="K") for name, w in weights.items()}
                sharded.build(weights)
                sharded.apply({k: mine[k] for k in "ec"}, {k: weights[k] for k in "ec"})
                alone.apply({k: total[k] for k in "ec"}, {k: expected[k] for k in "ec"})
            if t == 7:
                sharded.exclude_from_weight_decay([weights["c"]])
                alone.exclude_from_weight_decay([expected["c"]])
            check(weights, expected)
        with sharded.averaged(weights), alone.averaged(expected):
            check(weights, expected)
            refused(RuntimeError, "rank 0: within averaged.. .*: finalize them after it", sharded,
                    sharded.finalize_variable_values, [*weights.values()])
        check(weights, expected)
        others = {**weights, "b": weights["b"].copy()} if WORLD.rank == WORLD.size - 1 else weights
        for use in (sharded.finalize_variable_values, lambda params, use=sharded.averaged: use(params).__enter__()):
            refused(ValueError, f"rank {WORLD.size - 1}: weights.'b'. is not the weight", sharded,
                    lambda use=use, others=others: use(others), [*weights.values()])
        sharded.finalize_variable_values(weights)
        alone.finalize_variable_values(expected)
        check(weights, expected)
    refused(TypeError, "cannot be copied", sharded, lambda: copy.deepcopy(sharded), [*weights.values()])
    refused(ValueError, "weights: expected 7 weights", sharded, lambda: sharded.build(
        {**weights, "h": np.ones(2)}), [*weights.values()])


def check(weights, expected):
    for name, w in weights.items():
        if name == "a":                                 # Muon's, by way of a matrix product
            assert np.allclose(w, expected[name], rtol=1e-4, atol=1e-4 * np.abs(expected[name]).max())
        else:
            assert_same_bits(w, expected[name], name)


def crossed():
    """Threads that make their optimizers on two communicators, in another order on each rank."""
    comms, made = [WORLD.Dup(), WORLD.Dup()], []

    def make(k):
        made.append(mpi.Sharded(optimc.SGD(), comms[k], timeout=100.0))

    first = threading.Thread(target=make, args=[WORLD.rank % 2])
    first.start()
    make(1 - WORLD.rank % 2)
    first.join()
    assert len(made) == 2


def memory(ranks):
    """From a million weights on, a rank keeps 1/ranks of the slots, and 1 % more at most."""
    shapes = [(700, 900), (900,), (611, 607), (3,)]
    plain = [(np.float32, {}), (np.float32, {"global_clipnorm": 1.0})]
    for cls in (optimc.Adam, optimc.SGD, optimc.Lion, optimc.Adan):
        coded = {"state_dtype": "bfloat16" if cls is optimc.Lion else "int8"}
        for dtype, options in (*plain, (HALF, coded)):
            weights = [np.ones(shape, dtype) for shape in shapes]
            alone = cls(use_ema=True, **options)
            alone.build(weights)
            whole = sum(a.nbytes for a in alone.variables[2:])
            sharded = mpi.Sharded(cls(use_ema=True, **options))
            sharded.build(weights)
            assert sum(a.nbytes for a in sharded.variables[2:]) <= 1.01 * whole / int(ranks)
            own = sharded._share.layout
            layout = [Layout(own.likes, ranks, own.cut) for ranks in (5, 7, 64, 4096)]
            for one in layout:
                assert sum(one.share(weights[0].dtype, r) for r in range(one.ranks)) == sum(w.size for w in weights)


def until_killed(folder, victim):
    """Steps and saves until the victim dies."""
    sharded, weights = mpi.Sharded(optimc.Adam()), some(0)
    for t in itertools.count():
        sharded.apply(some(t), weights)
        sharded.save(f"{folder}/adam")
        if t == 2:
            if WORLD.rank == int(victim):
                with open(f"{folder}/victim.tmp", "w") as file:
                    file.write(str(os.getpid()))
                os.replace(f"{folder}/victim.tmp", f"{folder}/victim")
            time.sleep(0.5)


def until_left(timeout, early):
    """One rank leaves in silence, at once or after a step; the others wait for it no longer than they must."""
    if early == "True" and WORLD.rank == WORLD.size - 1:
        sys.exit(0)
    sharded, weights = mpi.Sharded(optimc.Adam(), timeout=float(timeout)), some(0)
    sharded.apply(some(0), weights)
    if WORLD.rank == WORLD.size - 1:
        sys.exit(0)
    sharded.apply(some(1), weights)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
