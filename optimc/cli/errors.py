"""Errors of the commands, all of one kind: what the user can put right."""

from collections.abc import Collection

from optimc.base.names import closest

MOST = 25               # names that an error lists


class InputError(ValueError):
    """Something the user can put right, said in one line."""


def no_such(kind: str, name: str, known: Collection[str]) -> str:
    """Says that a name is not known, and suggests the known one that was probably meant, or lists them.

    Example:
        >>> from optimc.cli.errors import no_such
        >>> no_such("optimizer", "adamx", ["adam", "sgd"])
        "there is no optimizer 'adamx': did you mean adam?"
        >>> no_such("optimizer", "newton", ["adam", "sgd"])
        "there is no optimizer 'newton'; there are adam, sgd"
    """
    meant = closest(name, known)
    listed = ", ".join([*list(known)[:MOST], *["..."] * (len(known) > MOST)])
    return f"there is no {kind} {name!r}" + (f": did you mean {meant}?" if meant else f"; there are {listed}")
