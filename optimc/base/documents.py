"""Texts about optimizers for `help` and `repr`.

An attribute that is an argument takes its text from the `Args:` of a class's docstring.  `help` asks for it when
somebody reads it; importing optimc reads no docstring.
"""

import inspect
import re
import textwrap
from typing import Any

from optimc.base.names import counted


def arguments_in(docstring: str | None) -> dict[str, str]:
    """The texts in the `Args:` section of a docstring by the name of the argument.

    Example:
        >>> arguments_in("A rule.\\n\\n    Args:\\n        a, b: two\\n            numbers.\\n")
        {'a': 'two numbers.', 'b': 'two numbers.'}
    """
    section = re.search(r"^Args\b.*:\n((?:    .*\n|\n)+)", inspect.cleandoc(docstring or "") + "\n", re.M)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + section[1].rstrip()) if section else ():
        names, _, text = entry.partition(":")
        for name in re.sub(r"\(.*\)", "", names).split(","):
            texts[name.strip()] = " ".join(text.split())
    texts.pop("", None)
    return texts


def document(owner: type, name: str, default: Any) -> str | None:
    """The text about an argument that a class declares: its own, or that of the nearest base class with one."""
    for cls in owner.__mro__:
        text = arguments_in(vars(cls).get("__doc__")).get(name)
        if text:
            return textwrap.fill(f"{text[0].upper()}{text[1:]}  Default: {default!r}.", 100)
    return None


def shown_arguments(optimizer: Any) -> list[str]:
    """The arguments of an optimizer that differ from their defaults, without the learning rate and the name."""
    return [f"{name}={value!r}" for name, value in optimizer._given().items()
            if name not in ("learning_rate", "name") and value != optimizer._arguments[name].default]


def text_of(optimizer: Any) -> str:
    """The `repr` of an optimizer: its arguments, steps and weights."""
    shown = [f"learning_rate={optimizer._given()['learning_rate']!r}", *shown_arguments(optimizer)]
    shown += [counted(len(optimizer.groups), "group")] if optimizer.groups else []
    weights = optimizer._weights
    bound = "not built" if weights is None else \
        f"{counted(len(weights), 'weight')} of {counted(sum(weight.size for weight in weights), 'element')}"
    return f"<{type(optimizer).__name__}({', '.join(shown)}): {counted(optimizer.iterations, 'step')}, {bound}>"
