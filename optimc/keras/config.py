"""Tells the backend of Keras, and the way that its steps take."""

from __future__ import annotations

import sys

import keras

from optimc.keras.backends import backend


def show_config() -> None:
    """Prints the backend of Keras and the way that steps take on it; if a slower way, why.

    Example:
        >>> optimc.keras.show_config()  # doctest: +ELLIPSIS
        Keras ...
        ...steps: ...
    """
    name = keras.backend.backend()
    print(f"Keras {keras.version()} on {name} {sys.modules[name].__version__}\n{backend.way()}")
