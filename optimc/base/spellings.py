"""Other names of the argument `weights`: those that it had in older versions, and has in Keras.

C keeps the list, because `apply` reads its arguments there (csrc/python/apply.c).
"""

import functools

from optimc import _core


def older_spellings(method):
    """Lets a method take its argument `weights` by its other names, too.  They are not in its signature."""
    @functools.wraps(method)
    def spelled(self, *args, **keywords):
        if keywords:
            keywords = _respelled(method.__name__, keywords)
        return method(self, *args, **keywords)

    return spelled


def spelled_in(given):
    """The names among these that mean the argument `weights`."""
    return [name for name in given if name in _core.SPELLINGS]


def _respelled(method, keywords):
    names = spelled_in(keywords)
    if len(names) > 1:
        raise TypeError(f"{method}() got multiple values for argument 'weights'")
    return {"weights" if name in names else name: value for name, value in keywords.items()}
