"""Decorators of methods that others call otherwise.  They change no signature.

The argument `weights` has other names in Keras, and had them in older versions.  C keeps the list, because `apply`
reads its arguments there (csrc/python/apply.c).
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from optimc import _core

_Method = TypeVar("_Method", bound=Callable[..., Any])


def older_spellings(method: _Method) -> _Method:
    """Lets a method take its argument `weights` by its other names, too."""
    @functools.wraps(method)
    def spelled(self: Any, *args: Any, **keywords: Any) -> Any:
        if keywords:
            keywords = _respelled(method.__name__, keywords)
        return method(self, *args, **keywords)

    return cast(_Method, spelled)


def pairs_alone(apply_gradients: _Method) -> _Method:
    """Lets `apply_gradients` say what it takes if it gets gradients and weights apart."""
    @functools.wraps(apply_gradients)
    def taking_pairs(self: Any, grads_and_vars: object, *others: object) -> Any:
        if others:
            raise TypeError("apply_gradients() takes pairs, apply_gradients(zip(grads, weights)), got "
                            f"{1 + len(others)} arguments: call apply(grads, weights) instead")
        return apply_gradients(self, grads_and_vars)

    return cast(_Method, taking_pairs)


def _respelled(method: str, keywords: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in keywords if name in _core.SPELLINGS]
    if len(names) > 1:
        raise TypeError(f"{method}() got multiple values for argument 'weights'")
    return {"weights" if name in names else name: value for name, value in keywords.items()}
