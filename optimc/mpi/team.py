"""The ranks of an MPI job as a team: they wait for each other with a limit, and refuse together.

It knows nothing of optimizers and weights.  Communication is mpi4py's.  Next: sharded.py.
"""

import builtins
import contextlib
import sys
import time
import zlib

import numpy as np
from mpi4py import MPI

from optimc import checkpoint

TIMEOUT = 300.0                     # seconds
TESTS = 20                          # times a wait asks, and the library moves data, between two naps
SPIN, NAP = 1e-3, 1e-4              # seconds: how long naps only make way for others, and how long they are then
MESSAGE = 1000                      # bytes of an error that other ranks are told
FACTS = 3                           # numbers that ranks compare when they agree
class Team:
    """The ranks of a communicator: waiting for each other with a limit, and agreeing on errors."""

    _twins = MPI.Comm.Create_keyval()       # the attribute of a communicator that holds its duplicate

    def __init__(self, comm, timeout):
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an intracommunicator of mpi4py, got {type(comm).__name__}")
        self.comm, self.rank, self.size, self.timeout = comm, comm.rank, comm.size, timeout
        twin = comm.Get_attr(self._twins)
        if twin is None:                    # so that no message of the program's meets one of ours
            twin, request = comm.Idup()
            self.wait(request)
            comm.Set_attr(self._twins, twin)
        self.comm = twin

    def wait(self, request):
        """Waits for a request; after `timeout` seconds, ends the job."""
        start = time.monotonic()
        while not any(request.Test() for _ in range(TESTS)):
            waited = time.monotonic() - start
            if self.timeout is not None and waited > self.timeout:
                self.abort(f"waited {self.timeout:g} s for the other ranks (timeout)")
            time.sleep(0 if waited < SPIN else NAP)

    def abort(self, why):
        """Ends the job: the other ranks cannot go on without this one."""
        print(f"optimc.mpi: rank {self.rank} {why}: the job ends", file=sys.stderr, flush=True)
        self.comm.Abort(1)

    @contextlib.contextmanager
    def no_return(self):
        """Around what no rank can give up alone."""
        try:
            yield
        except BaseException as error:
            self.abort(f"stopped within a step: {type(error).__name__}: {error}")
            raise

    def gather(self, mine):
        """The arrays of all ranks: one row each."""
        rows = np.empty((self.size, *mine.shape), mine.dtype)
        self.wait(self.comm.Iallgather(_plain(mine), _plain(rows)))
        return rows

    def agree(self, doing, error=None, **facts):
        """Raises on every rank if `error` is not None on one, or if a fact, an integer, differs.

        Args:
            doing: what the rank is about to do, which is compared too.
            facts: by what a rank that differs is said to have.

        Returns:
            The facts of all ranks, an array with a row for each.
        """
        row = [zlib.crc32(doing.encode()), error is not None, *facts.values()]
        rows = self.gather(np.array(row + [0] * (FACTS + 2 - len(row)), np.int64))
        refusing, other = np.flatnonzero(rows[:, 1]), np.flatnonzero(rows[:, 0] != rows[0, 0])
        if len(refusing):
            message = f"{type(error).__name__}\n{error}" if error is not None else ""
            text = self.gather(np.frombuffer(message.encode()[:MESSAGE].ljust(MESSAGE, b"\0"), np.uint8))
            name, _, said = text[refusing[0]].tobytes().rstrip(b"\0").decode(errors="ignore").partition("\n")
            raise _error(name, f"rank {refusing[0]}: {said}") from error
        if len(other):
            raise RuntimeError(f"rank {other[0]} and rank 0 do different things; this rank wants to {doing}")
        for k, what in enumerate(facts, 2):
            other = np.flatnonzero(rows[:, k] != rows[0, k])
            if len(other) and what != "_":
                raise ValueError(f"rank {other[0]} has {what.replace('_', ' ')} than rank 0")
        return rows[:, 2:]


def _plain(array):
    return [array, MPI.BYTE]


def _error(name, message):
    """An exception of a builtin type by its name; of a type that is unknown here, a RuntimeError."""
    kind = {"CheckpointError": checkpoint.CheckpointError}.get(name, getattr(builtins, name, None))
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, (
            UnicodeError, ExceptionGroup)):         # they are made of more than a message
        return RuntimeError(f"{message} ({name})")
    return kind(message)
