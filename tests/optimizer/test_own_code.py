"""Objects with code of their own that drop what holds them while C reads them: C keeps what it reads.

Run as a program, this file does each case in turn.  The test runs it with an allocator that overwrites freed memory.
"""

import os
import subprocess
import sys

import numpy as np

import optimc


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


def watched_flag_is_dropped_by_its_comparison():
    optimizer, group = built(), {}
    group["flag"] = Own(group.clear)
    optimizer._prepare_tensors((None,), ((group, "flag", 0.9),))
    assert optimizer._is_as_watched() is False


def watched_items_are_replaced_by_a_comparison():
    optimizer, group = built(), {}
    group["flag"] = Own(lambda: optimizer._prepare_tensors((None,), ()), equal=True)
    optimizer._prepare_tensors((None,), ((group, "flag", 0.9), (group, "flag", 0.9)))
    assert optimizer._is_as_watched() is True


def watched_items_are_replaced_by_a_key():
    optimizer, group, key = built(), {}, Key("flag")
    group[key] = 0.9
    optimizer._prepare_tensors((None,), (({key: 0.9}, "flag", 0.9),))
    key.action = lambda: optimizer._prepare_tensors((None,), ())
    assert optimizer._is_as_watched() is True


CASES = [case for name, case in list(vars().items()) if callable(case) and getattr(case, "__module__", "") == __name__
         and name not in ("raises", "built") and not isinstance(case, type)]


def test_no_case_uses_what_is_gone():
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    run = subprocess.run([sys.executable, "-W", "ignore", __file__], env=environment, capture_output=True, text=True,
                         errors="replace", timeout=120, check=False)
    assert run.returncode == 0, f"in {run.stdout.split()[-1:]}: {run.stderr[-2000:]}"


if __name__ == "__main__":
    for case in CASES:
        print(case.__name__, flush=True)
        case()
