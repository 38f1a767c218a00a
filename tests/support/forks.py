"""Forks for tests, in which every warning is an error."""

import os
import signal
import warnings

LIFETIME = 60       # seconds: a child that hangs is ended, or its parent would wait for it for ever


def fork():
    """`os.fork`, without the warnings of CPython from 3.12 on, and of JAX where it is loaded, that threads exist."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        signal.alarm(LIFETIME)
    return child
