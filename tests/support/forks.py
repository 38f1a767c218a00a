"""Forks for tests, in which every warning is an error."""

import os
import warnings


def fork():
    """`os.fork`, without the warnings of CPython from 3.12 on, and of JAX where it is loaded, that threads exist."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()
