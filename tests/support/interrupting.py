"""Interrupts a call at each of its points in turn, as Ctrl-C or a signal handler that raises can."""

import contextlib
import gc
import sys


class Interruption(KeyboardInterrupt):
    """The exception that is raised, so that no other is taken for it."""


def every_interruption(call=None, *, prepare=None, opcodes=False, within="", most=None):
    """Yields the number of the point after each interrupted run of a call; the last run is not interrupted.

    Args:
        call: a function without arguments.
        prepare: instead, a function that gives such a function before every run.
        opcodes: the points are before every bytecode, where Python hears of signals or not; else before every line.
        within: only points in files whose path begins so.
        most: at most so many points, evenly spread; default: all.
    """
    kind = "opcode" if opcodes else "line"

    def run(k):
        return _interrupted(prepare() if prepare else call, k, kind, within)

    points = range(run(sys.maxsize)) if most else range(sys.maxsize)
    for k in points[::-(-len(points) // most)] if most and points else points:
        if run(k) <= k:
            break
        yield k
    run(sys.maxsize)
    yield -1


def _interrupted(function, k, kind, within):
    """Runs a function and raises before its k-th point.  Gives the number of points up to there, or of all."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        # CPython swallows what is raised in an expression that `all` or `any` closes before its end
        if not frame.f_code.co_filename.startswith(within) or frame.f_code.co_name == "<genexpr>":
            return None
        frame.f_trace_opcodes = kind == "opcode"
        if event == kind and passed <= k:
            passed += 1
            if passed > k:
                sys.settrace(None)
                raise Interruption
        return trace

    before, collecting = sys.gettrace(), gc.isenabled()
    gc.disable()                        # it calls functions of jax and others, and swallows what is raised in them
    with contextlib.suppress(Interruption):
        sys.settrace(trace)
        try:
            function()
        finally:
            sys.settrace(before)
            if collecting:
                gc.enable()
    return passed
