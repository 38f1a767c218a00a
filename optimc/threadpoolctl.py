"""Lets threadpoolctl limit optimc's threads.  Import this module once; then its limits apply to optimc too.

    import optimc.threadpoolctl
    with threadpoolctl.threadpool_limits(1):
        ...                                     # steps use one thread here, and so does the BLAS

A limit applies to the whole process, like `optimc.set_num_threads`.  At its end the former number is restored.
"""

import os

from optimc.base import lazy

try:
    import threadpoolctl
except ImportError as _error:
    lazy.needs("threadpoolctl", _error)

import optimc
from optimc import _core


class Controller(threadpoolctl.LibController):
    """Lets threadpoolctl read and set the number of optimc's threads; see `threadpoolctl.LibController`.

    Example:
        >>> import optimc.threadpoolctl, threadpoolctl
        >>> with threadpoolctl.threadpool_limits(1, user_api="optimc"):
        ...     optimc.get_num_threads()
        1
    """

    user_api = "optimc"
    internal_api = "optimc"
    filename_prefixes: tuple[str, ...] = (os.path.basename(os.path.realpath(_core.__file__)).lower(),)

    def get_num_threads(self) -> int:
        """The number of threads that a large step may use."""
        return optimc.get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        """Sets this number; see `optimc.set_num_threads`."""
        optimc.set_num_threads(num_threads)

    def get_version(self) -> str:
        """The version of optimc.  Raises an OSError, as threadpoolctl expects, for another library of that name."""
        if os.path.realpath(self.filepath) != os.path.realpath(_core.__file__):
            raise OSError(f"{self.filepath} is not optimc's")
        return optimc.__version__


threadpoolctl.register(Controller)
