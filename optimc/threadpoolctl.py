"""Lets threadpoolctl limit optimc's threads: import this module once, then its limits hold here too.

    import optimc.threadpoolctl
    with threadpoolctl.threadpool_limits(1):
        ...                                     # steps in here use one thread, as the BLAS does

A limit holds for the whole process, as with `optimc.set_num_threads`; at its end the former number comes back.
"""

import os

try:
    import threadpoolctl
except ImportError as error:
    raise ImportError("optimc.threadpoolctl needs threadpoolctl: pip install 'optimc[threadpoolctl]'") from error

import optimc
from optimc import _core


class Controller(threadpoolctl.LibController):
    """Shows threadpoolctl the threads of optimc and lets it set them; see `threadpoolctl.LibController`.

    Example:
        >>> import optimc.threadpoolctl, threadpoolctl
        >>> with threadpoolctl.threadpool_limits(1, user_api="optimc"):
        ...     optimc.get_num_threads()
        1
    """

    user_api = "optimc"
    internal_api = "optimc"
    filename_prefixes = (os.path.basename(os.path.realpath(_core.__file__)).lower(),)

    def get_num_threads(self):
        """The number of threads that a large step may use."""
        return optimc.get_num_threads()

    def set_num_threads(self, num_threads):
        """Sets this number; see `optimc.set_num_threads`."""
        optimc.set_num_threads(num_threads)

    def get_version(self):
        """The version of optimc.  Raises an OSError, as threadpoolctl expects, for another library of that name."""
        if os.path.realpath(self.filepath) != os.path.realpath(_core.__file__):
            raise OSError(f"{self.filepath} is not optimc's")
        return optimc.__version__


threadpoolctl.register(Controller)
