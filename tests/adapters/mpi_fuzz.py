"""Jobs in which ranks call different things, or are interrupted.

Run them by `mpiexec -n N python -m mpi4py mpi_fuzz.py JOB KIND FOLDER ...`, as test_mpi.py does.  The public methods
come from the class.  Which of them communicate is found out, and what they are given depends on the names of their
parameters, so a new method is part of the jobs at once.
"""

import contextlib
import inspect
import linecache
import os
import signal
import sys
import threading
import warnings

import numpy as np
from mpi4py import MPI
from mpi_jobs import HALF, WORLD, mean, state

import optimc
from optimc import mpi
from optimc.base.names import Hint
from optimc.mpi import team

RANK, LAST = WORLD.rank, WORLD.size - 1
SHAPES = [(3, 4), (5,), ()]
FUNCTIONS = {"mpi.Sharded": mpi.Sharded, "mpi.load": mpi.load}


class Bomb:
    """A gradient that raises where it is read."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error("bomb")

    def __fspath__(self):
        raise self.error("bomb")


class Unsaid(Exception):
    """An error that cannot be written."""

    def __str__(self):
        raise ValueError("no text")


class Unsayable(Exception):
    """An error that ends the program where it is written."""

    def __str__(self):
        raise SystemExit("no text")


class Subject:
    """A sharded optimizer and its weights, which are the same on all ranks."""

    def __init__(self, sharded):
        self.sharded = sharded
        self.weights = [np.ones(shape, dtype) for shape, dtype in zip(SHAPES, (np.float32, HALF, HALF), strict=True)]

    def grads(self, rng):
        """Small integers, whose sums are exact in any order."""
        return [rng.integers(-3, 4, shape).astype(np.float32) for shape in SHAPES]

    def state(self):
        return state(self.sharded, self.weights), self.sharded._local._state.excluded.without_memory()


MAKERS = {
    "clipped": lambda: optimc.AdamW(0.1, use_ema=True, global_clipnorm=2.0, check_finite="raise"),
    "whole": lambda: optimc.Muon(0.1, use_ema=True, clipnorm=2.0, check_finite="skip"),
    "scaled": lambda: optimc.LossScaleOptimizer(optimc.SGD(0.1, momentum=0.5, use_ema=True), 4.0, 2),
    "plain": lambda: optimc.Adam(0.1, use_ema=True, gradient_accumulation_steps=2, seed=3,
                                 state_dtype={"m": "bfloat16", "v": "int8"}),
}


def make():
    return MAKERS[os.environ["FUZZ_KIND"]]()


def values(name, subject, folder, rng):
    """What a parameter is given: values that are good on all ranks, and others."""
    grads, weights = subject.grads(rng), subject.weights
    bombs = [Bomb(error) for error in (KeyboardInterrupt, SystemExit, MemoryError, Unsaid, Unsayable)]
    moved = [w.copy() if subject.sharded.built else w + 1 for w in weights]
    return {
        "grads": ([grads], [[*grads[:-1], None], grads[:-1], [None] * 3, None, "no", [weights[0], *grads[1:]],
                            [np.ones(3, int), *grads[1:]], [np.full((3, 4), np.nan, np.float32), *grads[1:]],
                            *([bomb, *grads[1:]] for bomb in bombs)]),
        "grads_and_vars": ([list(zip(grads, weights, strict=True))], [[], 3, [1], zip(bombs, weights, strict=False)]),
        "weights": ([weights], [None, 3, weights[:-1], moved, [w + 1 for w in weights], "no", [np.ones(2)],
                                bombs[:3]]),
        "path": ([f"{folder}/a"], [f"{folder}/b", f"{folder}/no/a", 3, None, "a\0b", "\ud800", *bombs]),
        "var_list": ([None, [], [weights[1]], [0]], [weights[0], 3, [np.ones(2)], [7], ["("]]),
        "var_names": ([None, []], ["a", 3, ["["]]),
        "optimizer": ([make()], [optimc.RMSprop(), "adam", None, optimc.LossScaleOptimizer(optimc.Lion())]),
        "comm": ([WORLD], []),
        "average": ([True], [False, 1]),
        "deterministic": ([True], [False, None]),
        "bucket_bytes": ([None], [1, -1, "many"]),
        "timeout": ([60.0], [0, "long"]),
        "custom_objects": ([None], [3]),
        "options": ([{}], [{"average": False}, {"timeout": "long"}, {"nonsense": 1}]),
        "loss": ([1.0], []),
    }[name]


def public():
    """The names of all that a program can reach."""
    return [name for name in dir(mpi.Sharded)
            if not name.startswith("_") and not isinstance(getattr(mpi.Sharded, name), Hint)]


def call(name, subject, chosen):
    """Calls a method, function or property, and enters what it gives, if it is a context."""
    target = FUNCTIONS.get(name) or getattr(subject.sharded, name)
    options = chosen.pop("options", {})
    given = target(**chosen, **options) if callable(target) else target
    if hasattr(given, "__enter__"):
        with given:
            pass
    return given


def parameters(name):
    target = FUNCTIONS.get(name) or getattr(mpi.Sharded, name)
    return [p for p in inspect.signature(target).parameters if p != "self"] if callable(target) else []


def outcome(act):
    """The type and the text of what a call raises; None if it raises nothing."""
    try:
        act()
    except BaseException as error:
        return type(error).__name__, team._words(error)
    return None


def assert_alike(mine, doing):
    """Asserts that all ranks have raised the same, or nothing.  A rank that was interrupted has its own error."""
    everybody = WORLD.allgather((mine, doing))
    errors = [error for error, _ in everybody if error is None or error[0] not in ("KeyboardInterrupt", "SystemExit")]
    assert len(set(errors)) <= 1 and (None not in errors or len(errors) == WORLD.size), everybody
    return mine


def communicating():
    """The names of what communicates.  Asserts that nothing does so but in a call that all ranks make."""
    found, rng, together, wait = [], np.random.default_rng(0), team.Team.together, team.Team.wait

    def noted(self, method, *arguments, **options):
        found.append(name)
        return together(self, method, *arguments, **options)

    def checked(self, request):
        assert self.line.method is not None, f"{name} communicates outside of a call"
        wait(self, request)

    folder = os.environ["FUZZ_FOLDER"]
    first = Subject(mpi.Sharded(make(), deterministic=True))
    first.sharded.build(first.weights)
    first.sharded.save(f"{folder}/a")
    team.Team.together, team.Team.wait = noted, checked
    for name in [*public(), *FUNCTIONS]:
        call(name, first, {p: values(p, first, folder, rng)[0][0] for p in parameters(name)})
    team.Team.together, team.Team.wait = together, wait
    return list(dict.fromkeys(found))


def check(subject, folder):
    """All ranks go on: a step has the bits of one process."""
    sharded, weights, rng = subject.sharded, subject.weights, np.random.default_rng(0)
    sharded.learning_rate, sharded.average, sharded.bucket_bytes = 0.1, True, 4096
    everybody = [[subject.grads(rng) for _ in range(WORLD.size)] for _ in range(2)]
    sharded.apply(everybody[0][RANK], weights)
    sharded.save(f"{folder}/check")
    alone, expected = optimc.load(f"{folder}/check"), [w.copy() for w in weights]
    sharded.apply(everybody[1][RANK], weights)
    alone.apply(mean(everybody[1]), expected)
    assert [w.tobytes() for w in weights] == [w.tobytes() for w in expected]


def prepared(name):
    """A subject for a call: built, unless the call may build it."""
    subject = Subject(mpi.Sharded(make(), deterministic=True))
    if name not in ("apply", "apply_gradients", "build"):
        subject.sharded.build(subject.weights)
    return subject


def one_call(subject, name, chosen, bystanders=()):
    """Makes a call; returns what it raises.  All ranks raise the same, and nothing has changed, or none raises."""
    before, made = [s.state() for s in (subject, *bystanders)], []
    error = assert_alike(outcome(lambda: made.append(call(name, subject, dict(chosen)))), (name, str(chosen)))
    if error is not None:
        assert [s.state() for s in (subject, *bystanders)] == before, (name, error)
    return error, made


def table(stride):
    """Each method beside each other one, and each with each wrong argument on one rank."""
    folder, rng, names = os.environ["FUZZ_FOLDER"], np.random.default_rng(0), communicating()
    subject, refused = prepared("save"), 0
    for first in names:
        for last in names:
            name = last if RANK == LAST else first
            error, _ = one_call(subject, name, {p: values(p, subject, folder, rng)[0][0] for p in parameters(name)})
            alike = first == last or {first, last} == {"apply", "apply_gradients"}
            assert (error is None) == alike, (first, last, error)
            if not alike:
                theirs, ours = (name.removeprefix("mpi.").removesuffix("_gradients") for name in (last, first))
                assert error[1].startswith(f"RuntimeError\nrank {LAST} calls {theirs}, rank 0 calls {ours}: "), error
    check(subject, folder)
    for name in names:
        subject = prepared(name)
        for parameter in parameters(name):
            for k in range(len(values(parameter, subject, folder, rng)[1])):
                chosen = {p: values(p, subject, folder, rng)[0][0] for p in parameters(name)}
                if RANK == LAST:
                    chosen[parameter] = values(parameter, subject, folder, rng)[1][k]
                error, _ = one_call(subject, name, chosen)
                refused += error is not None
                assert not error or f"rank {LAST}" in error[1] or (RANK == LAST and "bomb" in error[1]), error
                if k % int(stride) == 0:
                    check(subject, folder)
                    subject = prepared(name)
    if RANK == 0:
        print(len(names), "methods", *names, refused, "refused")


def others():
    """The ranks step different optimizers, or optimizers with other state."""
    one, two = prepared("save"), prepared("save")
    numbers = one.sharded._team.optimizer, two.sharded._team.optimizer
    error, _ = one_call(two if RANK == LAST else one, "finalize_variable_values", {}, [one, two])
    words = [f"calls finalize_variable_values of optimizer {number}" for number in numbers]
    assert error[1].startswith(f"RuntimeError\nrank {LAST} {words[1]}, rank 0 {words[0]}: "), error
    for subject in (one, two):
        check(subject, os.environ["FUZZ_FOLDER"])
    alone, weights = make(), [np.ones(3, np.float32)]
    alone.apply([np.full(3, 1.0 + (RANK == LAST))], weights)
    weights[0].fill(1)
    sharded = mpi.Sharded(alone)
    error = assert_alike(outcome(lambda: sharded.build(weights)), "build")
    assert error[1] == f"ValueError\nrank {LAST} has other state than rank 0", error
    assert not sharded.built


def calls(seed, rounds):
    """Every rank draws what it calls, and with what; all raise the same or nothing, and can go on."""
    folder, rounds = os.environ["FUZZ_FOLDER"], int(rounds)
    names, own = communicating(), np.random.default_rng((int(seed), RANK))
    subjects = [Subject(mpi.Sharded(make(), deterministic=True)) for _ in range(2)]
    raised = 0
    for k in range(rounds):
        common = np.random.default_rng((int(seed), k, 0))       # draws alike until the names differ
        one = common if common.random() < 0.6 else own
        subject, name = subjects[one.integers(len(subjects))], names[one.integers(len(names))]
        chosen = {}
        for parameter in parameters(name):
            good, bad = values(parameter, subject, folder, own)
            chosen[parameter] = good[common.integers(len(good))]
            if own.random() < 0.15:
                chosen[parameter] = (good + bad)[own.integers(len(good) + len(bad))]
        for attribute, value in (("learning_rate", 0.2), ("average", False), ("bucket_bytes", 50)):
            if own.random() < 0.05:
                setattr(subject.sharded, attribute, value)
        error, made = one_call(subject, name, chosen, subjects)
        raised += error is not None
        if error is None and name in FUNCTIONS:
            subjects[k % 2] = Subject(made[0])
        if k % 7 == 0 or k == rounds - 1:
            for subject in subjects:
                check(subject, folder)
    assert 0 < raised < rounds
    if RANK == 0:
        print(rounds, "calls,", raised, "refused")


@contextlib.contextmanager
def interrupted_at(number, line):
    """Sends the process SIGINT before line `number` of optimc.mpi's code that runs once a call has begun.

    Yields a list, which is empty if there were fewer lines.
    """
    seen, sent, begun, folder = 0, [], False, os.path.dirname(mpi.__file__)

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(folder) or frame.f_code.co_name in ("wait", "<genexpr>"):
            return None                                 # no fixed number of lines; one that ends may lose an error
        if linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "try:":
            return trace                                # Python looks for signals at calls and loops only
        nonlocal seen, begun
        begun = begun or line.method is not None
        if event in ("call", "line") and begun and not sent:
            seen += 1
            if seen == number:
                sent.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {event}")
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        yield sent
    finally:
        sys.settrace(None)


def interrupts(first, stride, *names):
    """The last rank gets SIGINT at one line after another: all ranks have done the whole call, or none has."""
    folder, rng = os.environ["FUZZ_FOLDER"], np.random.default_rng(1)
    done, found = {}, communicating()
    for name in names or found:
        for number in range(1 + int(first), 100_000, int(stride)):
            subject = prepared(name)
            chosen = {p: values(p, subject, folder, rng)[0][0] for p in parameters(name)}
            line, before = subject.sharded._team.line, subject.state()
            with interrupted_at(number if RANK == LAST else 0, line) as sent:
                error = outcome(lambda: call(name, subject, chosen))        # noqa: B023
            everybody = WORLD.allgather((error, sent, line.meetings, subject.state()[0][0]))
            *others, (last, where, _, _) = everybody
            if not where:
                break
            assert last and last[0] == "KeyboardInterrupt", (name, everybody)
            errors = {one[0] for one in others}
            assert errors in ({None}, {("RuntimeError", f"RuntimeError\nrank {LAST}:  (KeyboardInterrupt)")}), (
                name, where, errors)
            assert all(one[2:] == everybody[0][2:] for one in others), (name, where)
            if name == "averaged" or (errors != {None} and name not in FUNCTIONS):
                assert subject.state() == before, (name, where)
            check(subject, folder)
            done[name] = done.get(name, 0) + 1
    if RANK == 0:
        print("interrupted", done)


def alarms(seed, rounds):
    """The last rank gets SIGINT at a random time.  If that came before it met the others, it calls once more."""
    folder, own = os.environ["FUZZ_FOLDER"], np.random.default_rng((int(seed), RANK))
    names, counts = [name for name in communicating() if name not in FUNCTIONS], {"late": 0, "again": 0, "refused": 0}
    for k in range(int(rounds)):
        name = names[k % len(names)]
        subject = prepared(name)
        line = subject.sharded._team.line
        chosen = {p: values(p, subject, folder, own)[0][0] for p in parameters(name)}
        WORLD.barrier()
        meetings, errors = line.meetings, []
        timer = threading.Timer(own.exponential(0.002), os.kill, [os.getpid(), signal.SIGINT])
        try:
            if RANK == LAST:
                timer.start()
            errors.append(outcome(lambda: call(name, subject, dict(chosen))))           # noqa: B023
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:
            pass
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if RANK == LAST:
            timer.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if line.meetings == meetings:
            counts["again"] += 1
            errors = [outcome(lambda: call(name, subject, dict(chosen)))]               # noqa: B023
        everybody = WORLD.allgather((errors, line.meetings, subject.state()[0][0]))
        assert all(one[1:] == everybody[0][1:] for one in everybody), (name, everybody)
        assert all(one[0] == everybody[0][0] for one in everybody[:-1]), (name, everybody)
        counts["refused"] += everybody[0][0] != [None]
        counts["late"] += everybody[0][0] == [None] != errors
        check(subject, folder)
    if RANK == LAST:
        print("alarmed", counts)


def first():
    """The last rank gets SIGINT in the first meeting on a communicator: all have made the optimizer."""
    comm, wait, sent = WORLD.Dup(), team.Team.wait, []

    def interrupted(self, request):
        if RANK == LAST and not sent:
            sent.append(signal.raise_signal(signal.SIGINT))
        wait(self, request)

    team.Team.wait = interrupted
    error = outcome(lambda: mpi.Sharded(make(), comm, timeout=100.0))
    assert error == (("KeyboardInterrupt", "KeyboardInterrupt\n") if RANK == LAST else None), error
    mpi.Sharded(make(), comm, timeout=100.0)


def half(what):
    """A rank has no memory in the middle of a step, or has missed a meeting: the job ends."""
    subject = prepared("save")
    if RANK == LAST and what == "memory":
        def spread(*arguments):
            raise MemoryError("no room")

        subject.sharded._exchange.spread = spread
    elif RANK == LAST:
        subject.sharded._team.line.meetings += 1
    subject.sharded.apply(subject.grads(np.random.default_rng(RANK)), subject.weights)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    assert MPI.COMM_WORLD.size > 1
    os.environ["FUZZ_KIND"], os.environ["FUZZ_FOLDER"] = sys.argv[2:4]
    globals()[sys.argv[1]](*sys.argv[4:])
