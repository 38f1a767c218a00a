"""The ranks of an MPI job as a team: they wait for each other with a limit, and refuse together.

A team knows nothing of optimizers and weights.  All ranks call its methods in the same order; where they do not, the
next agreement says so.  Communication is mpi4py's.  Next: sharded.py, which agrees before each step.
"""

import builtins
import contextlib
import sys
import time
import zlib
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from optimc import checkpoint

TIMEOUT = 300.0                     # seconds
TESTS = 20                          # times a wait asks, and the library moves data, between two naps
SPIN, NAP = 1e-3, 1e-4              # seconds: naps have no length for so long; their length then
MESSAGE = 1000                      # bytes of an error that other ranks are told
NUMBERS = 3                         # that a rank can tell the others in one agreement


class Fact(NamedTuple):
    """A number that must be the same on all ranks; `words` say what a rank does or has where it differs.

    Example: Fact("has other weights", 7) becomes the error "rank 1 has other weights than rank 0".
    """

    words: str
    number: int


class Team:
    """The ranks of a communicator.

    Args:
        comm: the communicator.  Messages go through a duplicate of it, so that none meets one of the program's.
        timeout: seconds to wait for the other ranks before the job is ended; None: for ever.
    """

    _twins = MPI.Comm.Create_keyval()       # the attribute of a communicator that holds its duplicate

    def __init__(self, comm, timeout):
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an intracommunicator of mpi4py, got {type(comm).__name__}")
        self.comm, self.rank, self.size, self.timeout = comm, comm.rank, comm.size, timeout
        twin = comm.Get_attr(self._twins)
        if twin is None:
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
        """Ends the job if its body raises: a rank that gives up alone would leave the others with half a step."""
        try:
            yield
        except BaseException as error:
            self.abort(f"stopped within a step: {type(error).__name__}: {error}")
            raise

    def gather(self, mine):
        """Returns the arrays of all ranks: one row each."""
        rows = np.empty((self.size, *mine.shape), mine.dtype)
        self.wait(self.comm.Iallgather(_plain(mine), _plain(rows)))
        return rows

    def agree(self, doing, error=None, facts=()):
        """Raises on every rank if one has an error, does something else, or differs in a fact.

        Args:
            doing: what the rank is about to do; all must do the same.
            error: the exception that keeps this rank from doing it, or None.
            facts: at most three; the same ones, in the same order, on every rank without an error.
        """
        rows = self._meet(doing, error, [fact.number for fact in facts])
        for fact, numbers in zip(facts, rows.T, strict=False):
            other = np.flatnonzero(numbers != numbers[0])
            if len(other):
                raise ValueError(f"rank {other[0]} {fact.words} than rank 0")

    def share(self, doing, number):
        """Tells all ranks a number of this one; returns everybody's, by rank.  They may differ."""
        return self._meet(doing, None, [number])[:, 0].tolist()

    def _meet(self, doing, error, numbers):
        """Returns the numbers of all ranks, a row each; raises on every rank if one has an error or does something
        else.  `agree` and `share` send messages of one kind, so that a rank in one finds those in the other."""
        row = [zlib.crc32(doing.encode()), error is not None, *numbers]
        rows = self.gather(np.array(row + [0] * (NUMBERS + 2 - len(row)), np.int64))
        refusing, other = np.flatnonzero(rows[:, 1]), np.flatnonzero(rows[:, 0] != rows[0, 0])
        if len(refusing):
            message = f"{type(error).__name__}\n{error}" if error is not None else ""
            text = self.gather(np.frombuffer(message.encode()[:MESSAGE].ljust(MESSAGE, b"\0"), np.uint8))
            name, _, said = text[refusing[0]].tobytes().rstrip(b"\0").decode(errors="ignore").partition("\n")
            raise _error(name, f"rank {refusing[0]}: {said}") from error
        if len(other):
            raise RuntimeError(f"rank {other[0]} and rank 0 do different things; this rank wants to {doing}")
        return rows[:, 2:]


def _plain(array):
    return [array, MPI.BYTE]


def _error(name, message):
    """Makes an exception of a builtin type from the type's name; of a type that is unknown here, a RuntimeError."""
    kind = {"CheckpointError": checkpoint.CheckpointError}.get(name, getattr(builtins, name, None))
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, (
            UnicodeError, ExceptionGroup)):         # they are made of more than a message
        return RuntimeError(f"{message} ({name})")
    return kind(message)
