"""Interrupts a call at each of its points in turn, as Ctrl-C or a signal handler that raises can."""

import sys


class Interruption(KeyboardInterrupt):
    """The exception that is raised, so that no other is taken for it."""


def every_interruption(call=None, *, prepare=None, opcodes=False, stride=1):
    """Yields the number of each interrupted run of a call, after the run; the last run is not interrupted.

    Args:
        call: a function without arguments.
        prepare: instead, a function that gives such a function before every run.
        opcodes: interrupt before every bytecode, where Python hears of signals or not; else before every line.
        stride: interrupt at every n-th point only.
    """
    k, over = 0, False
    while not over:
        function = prepare() if prepare else call
        over = not _interrupted(function, k, "opcode" if opcodes else "line")
        yield k
        k += stride


def _interrupted(function, k, kind):
    """Runs a function and raises before its k-th point; False if it had fewer points."""
    left, raised = k, False

    def trace(frame, event, _):
        nonlocal left, raised
        frame.f_trace_opcodes = kind == "opcode"
        if event == kind and not raised:
            left -= 1
            if left < 0:
                raised = True
                sys.settrace(None)
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Interruption:
        pass
    finally:
        sys.settrace(before)
    return raised
