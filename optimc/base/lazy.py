"""Names of the package that are looked up when a program asks for them: adapters, moved modules, misspellings.

An adapter is imported at the first use of one of its names (`optimc.torch.Adam`), not when Tab, `dir` or `help` look
at `optimc.torch`: some frameworks take seconds, and MPI starts when it is imported.
"""

import importlib
import re
import sys
import types
from collections.abc import Iterable
from typing import Any, NoReturn

from optimc.base import names
from optimc.base.extras import advice

#: adapters -> the package that each needs
ADAPTERS = {"deepspeed": "deepspeed", "keras": "keras", "mpi": "mpi4py and an MPI library",
            "sklearn": "scikit-learn", "thinc": "thinc", "threadpoolctl": "threadpoolctl", "torch": "torch"}
#: functions of the package that few programs call -> the module they are in
LATE = {"from_keras": "migrate", "from_torch": "migrate"}
#: modules that 0.1 imported along with optimc
MOVED = ("optimizer", "structured", "wrappers")


class Adapter(types.ModuleType):
    """An adapter that is imported when a name in it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return importlib.import_module(self.__name__).__doc__

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self.__name__))

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}, imported at its first use>"


def find(name: str, public: Iterable[str]) -> Any:
    """An attribute of the package that it does not have yet.

    Raises:
        AttributeError: there is none; it names the public one that may be meant.
    """
    if name in LATE:
        return getattr(importlib.import_module(f"optimc.{LATE[name]}"), name)
    if name in MOVED:
        return importlib.import_module(f"optimc.{name}")
    asked_by_import = sys._getframe(2).f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib")
    if name in ADAPTERS and not asked_by_import:        # `from optimc import torch` then imports it, or says why not
        return Adapter(f"optimc.{name}")
    hint = names.optimizer_hint(name, ()) if names.plain(name) in names.CLASSES else _hint(name, [*public, *ADAPTERS])
    names.refuse_name("optimc", name, hint)


def _hint(name: str, public: Iterable[str]) -> str:
    """The end of an error about a name that the package does not have."""
    if name == "save":
        return ": an optimizer saves itself, opt.save(path)"
    if name in names.ELSEWHERE and names.ELSEWHERE[name].advice:
        return names.hint(name, ())
    from optimc import schedules  # which imports names, as this module does
    schedule = names.schedule_named(name, schedules.public())
    like_a_schedule = re.search(r".(lr|scheduler?)$", names.plain(name))
    found = names.closest(name, public) if not (like_a_schedule or name in schedules.public()) else None
    if found:
        return f": did you mean optimc.{found}?"
    return f": did you mean optimc.schedules.{schedule}?" if schedule else ""


def needs(adapter: str, error: BaseException) -> NoReturn:
    """Raises the error of an adapter whose package cannot be imported.

    Raises:
        ImportError: names the package, and how to install it.
    """
    raise ImportError(f"optimc.{adapter} needs {ADAPTERS[adapter]}: {advice(adapter)}",
                      name=getattr(error, "name", None)) from error
