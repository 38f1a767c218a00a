"""Progress of a command, in lines on standard error: for pipes, files and logs, where no bar can be drawn."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

EVERY = 10.0            # seconds between two lines


@contextlib.contextmanager
def spoken(text: Callable[[], str]) -> Iterator[None]:
    """Prints `text()` at once, and again every few seconds until the block ends."""
    over = threading.Event()

    def speak():
        with contextlib.suppress(OSError, ValueError):          # nobody reads it any more
            while not over.wait(EVERY):
                print(text(), file=sys.stderr, flush=True)

    print(text(), file=sys.stderr, flush=True)
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
