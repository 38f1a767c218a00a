"""Objects with code of their own that drop what holds them while C reads them: C keeps what it reads.

Run as a program, this file does each case in turn.  The test runs it with an allocator that overwrites freed memory.
"""

import functools
import os
import subprocess
import sys

import numpy as np

import optimc
from optimc import _core

RATE = optimc.SGD._index["learning_rate"]


def raises(error, message, function, *args):
    try:
        function(*args)
    except error as caught:
        assert message in str(caught), f"expected {message!r}, got {caught}"
    else:
        raise AssertionError(f"{error.__name__} was not raised")


class Own:
    """A number, a key or a flag that calls `action` when its value is asked for."""

    def __init__(self, action, value=-1.0, equal=NotImplemented):
        self.action, self.value, self.equal = action, value, equal

    def __float__(self):
        self.action()
        return self.value

    def __eq__(self, other):
        self.action()
        return self.equal

    __hash__ = None

    def __repr__(self):
        return "own" * 50


class Key(str):
    """A key that calls `action` when it is compared."""

    action = None

    __hash__ = str.__hash__

    def __eq__(self, other):
        if self.action:
            self.action()
        return str.__eq__(self, other)


def built(cls=optimc.SGD, **arguments):
    optimizer = cls(**arguments)
    optimizer.build([np.ones(3, np.float32)])
    return optimizer


def step(optimizer):
    optimizer.apply([np.ones(3, np.float32) for _ in optimizer._weights])


def watched_flag_is_dropped_by_its_comparison():
    optimizer, group = built(), {}
    group["flag"] = Own(group.clear)
    optimizer._prepare_tensors((None,), ((group, "flag", 0.9),))
    assert optimizer._is_as_watched() is False


def watched_items_are_replaced_by_a_comparison():
    optimizer, group = built(), {}
    group["flag"] = Own(lambda: optimizer._prepare_tensors((None,), ()))
    optimizer._prepare_tensors((None,), ((group, "flag", float("0.9")),))
    assert optimizer._is_as_watched() is False


def watched_items_are_replaced_by_a_key():
    optimizer, group, key = built(), {}, Key("flag")
    group[key] = 0.9
    optimizer._prepare_tensors((None,), (({key: 0.9}, "flag", 0.9),))
    key.action = lambda: optimizer._prepare_tensors((None,), ())
    assert optimizer._is_as_watched() is True


def value_is_replaced_by_its_number():
    optimizer, group = built(), {"lr": 0.5}
    optimizer._set_item(0, RATE, group, "lr", -1, False)
    group["lr"] = Own(group.clear)
    raises(ValueError, "learning_rate must be finite and >= 0, got ownown", step, optimizer)


def entry_is_removed_by_its_number():
    for kind in (list, tuple):
        optimizer, group = built(), {"rates": (0.5, 0.5)}
        optimizer._set_item(0, RATE, group, "rates", 1, False)
        group["rates"] = kind([0.5, Own(group.clear)])
        raises(ValueError, "learning_rate must be finite and >= 0, got ownown", step, optimizer)


def list_is_emptied_by_its_number():
    optimizer, rates = built(), [0.5]
    optimizer._set_item(0, RATE, {"rates": rates}, "rates", 0, False)
    rates[0] = Own(rates.clear)
    raises(ValueError, "got ownown", step, optimizer)
    raises(KeyError, "learning_rate: no such item 'rates'", step, optimizer)


def dict_is_dropped_by_its_key():
    for act in (lambda optimizer: optimizer._set_value(0, RATE, 0.5, False),
                lambda optimizer: [optimizer._add_group() for _ in range(1000)]):
        optimizer, key = built(), Key("lr")
        optimizer._set_item(0, RATE, {key: 0.5}, "".join(["l", "r"]), -1, False)
        key.action = lambda optimizer=optimizer, act=act: act(optimizer)
        assert optimizer._ask_value(0, RATE) == 0.5


def old_source_looks_at_the_new():
    class Source(dict):
        def __call__(self):
            return 0.5

        def __del__(self):
            seen.append(optimizer._get_value(0, RATE))
            seen.append(optimizer._ask_value(0, RATE))

    optimizer, seen = built(), []
    for method, *wanted in (("_set_item", {"lr": 0.25}, "lr", -1, False), ("_set_value", 0.25, False),
                            ("_set_value", lambda: 0.25, False)):
        optimizer._set_item(0, RATE, Source(lr=0.5), "lr", -1, False)
        getattr(optimizer, method)(0, RATE, *wanted)
        optimizer._set_value(0, RATE, Source(), False)
        getattr(optimizer, method)(0, RATE, *wanted)
    assert len(seen) == 12 and seen[1::2] == [0.25] * 6


def old_source_sets_a_source():
    class Source(dict):
        def __del__(self):
            optimizer._set_item(0, RATE, {"lr": 0.25}, "lr", -1, False)

    optimizer = built()
    optimizer._set_item(0, RATE, Source(lr=0.5), "lr", -1, False)
    optimizer._set_value(0, RATE, 1.0, False)
    assert optimizer._ask_value(0, RATE) == 0.25
    step(optimizer)


def running_values_are_dropped_by_a_key():
    optimizer, key = built(optimc.Nadam), Key("u_product")
    one = {"products": {}, "scalars": {key: 1.0}}
    key.action = one.clear
    optimizer._set_running((one,))
    optimizer._name_scalars((Key("u_product"),))
    key.action = lambda: optimizer._name_scalars(("u_product",))
    optimizer._set_running(({"products": {}, "scalars": {key: 1.0}},))
    key.action = None
    assert optimizer._get_running() == ({"products": {}, "scalars": {"u_product": 1.0}},)


def counts_are_taken_over_whole_or_not_at_all():
    """A key that raises when it is read again leaves no part of the counts behind."""
    def refuse():
        asked.append(None)
        if len(asked) > 1:
            raise ValueError("asked again")

    optimizer, asked, key = optimc.Nadam(groups=[{"weights": [0], "weight_decay": 0.5}]), [], Key("u_product")
    key.action = refuse
    running = tuple({"products": {}, "scalars": {name: 0.5}} for name in ("u_product", key))
    optimizer._hold(optimizer._state, (7, 1, running))
    assert [one["scalars"]["u_product"] for one in optimizer._get_running()] == [0.5, 0.5]
    raises(ValueError, "asked again", optimizer._hold, optimizer._state, (9, 2, (running[0], {**running[1]})))
    assert optimizer._calls == 7


def bind_with_key(first, second, at):
    """Binds one optimizer with counts, of which a key binds the other to the same plan when it is asked again."""
    def bind():
        asked.append(None)
        if len(asked) == at:
            second._bind(plan)

    plan, asked, key = first._build([np.ones(3, np.float32)]), [], Key("u_product")
    key.action = bind
    first._bind(plan, (0, 0, ({"products": {}, "scalars": {key: 1.0}},)))


def plan_is_bound_elsewhere_by_its_counts():
    first, second = optimc.Nadam(), optimc.Nadam()
    raises(ValueError, "belongs to another optimizer", bind_with_key, first, second, 1)
    assert second.built and not first.built
    first, second = optimc.Nadam(), optimc.Nadam()
    bind_with_key(first, second, 2)
    assert first.built and not second.built


def weight_is_reshaped_by_its_name():
    """A name is asked only for the sake of an error: by then no shape is read any more."""
    class Name(str):
        def __repr__(self):
            weight.shape = (3, 1) if weight.ndim == 1 else (3,)
            return str.__repr__(self)

    weight, slot = np.ones(3, np.float32), np.zeros(3, np.float32)
    parts = {"name": Name("w"), "kernel": _core.kernels["momentum"][0], "slot_names": ("velocity",)}
    raises(ValueError, "expected shape (3, 1), as built, got (4,)", functools.partial(
        _core.Plan(1).add, weight, slots=(np.zeros(4, np.float32),), **parts))
    plan, weight.shape = _core.Plan(1), (3,)
    plan.add(weight, slots=(slot,), **parts)
    plan.seal()
    assert plan.names == ("w",)


def dtype_is_replaced_by_a_name():
    """An error names the entry first, then the dtype that the gradient has by then."""
    class Name(str):
        def __repr__(self):
            grad.dtype = np.dtype([("another", "i4")])
            return str.__repr__(self)

        __hash__ = str.__hash__

    name, grad = Name("w"), np.ones(3, np.dtype([("field" * 20, "f4")]))
    raises(TypeError, "got [('another', '<i4')]", optimc.SGD().apply, {name: grad}, {name: np.ones(3, np.float32)})


def loss_scale_is_replaced_by_a_number():
    class Scale(np.float32):
        def __float__(self):
            optimizer.loss_scale_factor = optimc.schedules.PiecewiseConstantDecay([1], [2.0, 2.0])
            return 4.0

    optimizer, w = optimc.SGD(0.5, loss_scale_factor=2.0), np.ones(3, np.float32)
    with _core.Transaction() as steps:
        raises(ValueError, "loss_scale: the optimizer has a schedule", functools.partial(
            steps.check, optimizer, [w * 8], [w], loss_scale=Scale(1)))
    assert optimizer.loss_scale_factor == 2.0


CASES = [watched_flag_is_dropped_by_its_comparison, watched_items_are_replaced_by_a_comparison,
         watched_items_are_replaced_by_a_key, value_is_replaced_by_its_number, entry_is_removed_by_its_number,
         list_is_emptied_by_its_number, dict_is_dropped_by_its_key, old_source_looks_at_the_new,
         old_source_sets_a_source, running_values_are_dropped_by_a_key, counts_are_taken_over_whole_or_not_at_all,
         plan_is_bound_elsewhere_by_its_counts, weight_is_reshaped_by_its_name, dtype_is_replaced_by_a_name,
         loss_scale_is_replaced_by_a_number]


def test_no_case_uses_what_is_gone():
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    run = subprocess.run([sys.executable, "-W", "ignore", __file__], env=environment, capture_output=True, text=True,
                         errors="replace", timeout=120, check=False)
    assert run.returncode == 0, f"in {run.stdout.split()[-1:]}: {run.stderr[-2000:]}"


if __name__ == "__main__":
    for case in CASES:
        print(case.__name__, flush=True)
        case()
