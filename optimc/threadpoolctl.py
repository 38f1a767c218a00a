"""Lets threadpoolctl limit optimc's threads: import this module once, then its limits hold here too.

    import optimc.threadpoolctl
    with threadpoolctl.threadpool_limits(1):
        ...                                     # steps in here use one thread, as the BLAS does

What is limited is the whole process, as with `optimc.set_num_threads`; the former number comes back at the end.
"""

import os

try:
    import threadpoolctl
except ImportError as error:
    raise ImportError("optimc.threadpoolctl needs threadpoolctl: pip install 'optimc[threadpoolctl]'") from error

import optimc
from optimc import _core


class Controller(threadpoolctl.LibController):
    """What threadpoolctl shows of optimc and sets in it; its interface is `threadpoolctl.LibController`'s.

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
        """How many threads a large step may use."""
        return optimc.get_num_threads()

    def set_num_threads(self, num_threads):
        """Sets it; see `optimc.set_num_threads`."""
        optimc.set_num_threads(num_threads)

    def get_version(self):
        """The version of optimc; an OSError, as threadpoolctl wants it, for another library of that name."""
        if os.path.realpath(self.filepath) != os.path.realpath(_core.__file__):
            raise OSError(f"{self.filepath} is not optimc's")
        return optimc.__version__


threadpoolctl.register(Controller)
