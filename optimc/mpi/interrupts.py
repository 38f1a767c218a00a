"""Ctrl-C while other ranks depend on this one: it is held back until the call is over.

It takes `_signal`, the C module below `signal`: the functions of `signal` make an enum at each call, which would cost
as much as the agreement of a step.  Next: team.py, which holds Ctrl-C from the first meeting of a call on.
"""

from __future__ import annotations

import threading
from _signal import SIGINT, getsignal, signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Interrupts:
    """Holds back SIGINT: the first one comes with `release`, a second one at once.

    It holds the signals of the main thread only, which is the one that Python lets handle them.
    """

    def __init__(self) -> None:
        self._handler: Callable[..., Any] | None = None
        self._first: tuple[Any, ...] | None = None

    def hold(self) -> None:
        """Holds the signal back from now on."""
        if self._handler is None and threading.current_thread() is threading.main_thread():
            handler = getsignal(SIGINT)
            if callable(handler):
                self._handler = handler
                signal(SIGINT, self._note)

    def _note(self, *arguments: Any) -> None:
        if self._first is None:
            self._first = arguments
        else:
            handler = self._handler
            if handler is not None:             # `release` has put it back meanwhile
                handler(*arguments)

    def release(self) -> None:
        """Ends that, and lets the program's handler have the signal that came meanwhile."""
        handler = self._handler
        if handler is None:
            return
        if getsignal(SIGINT) == self._note:
            signal(SIGINT, handler)       # after this none is noted
        first, self._first, self._handler = self._first, None, None
        if first is not None:
            handler(*first)

    def __enter__(self) -> None:
        self.hold()

    def __exit__(self, *error: object) -> None:
        self.release()
