"""The ranks of an MPI job as a team: they wait for each other with a limit, and refuse together.

A method in which the ranks communicate is a *call*.  `Team.together` runs its body; nothing else sends a message.

    1. The call is open.  The rank checks what it can check alone, while the others wait for its word.  Whatever ends
       this part (a bad argument, Ctrl-C, no memory) is this rank's refusal, and the others are told.
    2. The ranks meet.  Each sends all others one message of fixed size: which method of which optimizer it calls, the
       number of the meeting, whether it refuses, and a few numbers that must be the same on all ranks.
    3. If one rank refuses, calls something else or has another number, all raise the same error, and go on with the
       next call in step.
    4. Otherwise the call is bound.  No rank can give up alone any more: an error ends the job.  Ctrl-C waits until
       the call is over.
    5. What can still fail on one rank alone is opened again (`Call.reopen`), and ends with another meeting.

A call within a call (from a schedule, say) is refused at once, without a message.  Calls of several threads on one
communicator run one after the other.

A team knows nothing of optimizers and weights.  Communication is mpi4py's.  Next: sharded.py, whose methods are
calls.
"""

from __future__ import annotations

import builtins
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from mpi4py import MPI

from optimc import _core, checkpoint
from optimc.base.arguments import LOW_OPEN
from optimc.mpi.interrupts import Interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, NoReturn, Self

    from optimc._types import Array

TIMEOUT = 300.0                     # seconds
TESTS = 20                          # times a wait asks, and the library moves data, between two naps
SPIN, NAP = 1e-3, 1e-4              # seconds: naps have no length for so long; their length then
PRINTING = 0.1                      # seconds; mpiexec loses what a rank says in the moment in which it ends the job
MESSAGE = 1000                      # bytes of an error that other ranks are told
NUMBERS = 4                         # that a rank can tell the others in one meeting

# The columns of a meeting's message: which meeting it is, whose method is called and which, whether the rank refuses;
# then the numbers.
MEETING, OPTIMIZER, METHOD, REFUSES = range(4)

OPEN, BOUND, OVER = "open", "bound", "over"     # stages of a call; over: all ranks raise


class Fact(NamedTuple):
    """A number that must be the same on all ranks; `words` say what a rank does or has where it differs.

    Example: Fact("has other weights", 7) becomes the error "rank 1 has other weights than rank 0".
    """

    words: str
    number: int

    @classmethod
    def of(cls, words: str, *values: object) -> Self:
        """A fact about values that `repr` writes alike on all ranks."""
        return cls(words, zlib.crc32(repr(values).encode(errors="backslashreplace")))


class Line:
    """The duplicate of a communicator, through which all teams on that communicator talk.

    Attributes:
        comm: the duplicate; None before the first meeting.
        lock: of the thread whose call is in progress.
        method: the name of that call, or None.
        meetings: so far, on this line.
        optimizers: made so far on this line; each has its number.
    """

    comm: MPI.Intracomm | None
    lock: AbstractContextManager[object]
    method: str | None
    meetings: int
    optimizers: int

    def __init__(self) -> None:
        self.comm, self.lock = None, threading.RLock()
        self.method, self.meetings, self.optimizers = None, 0, 0


def check_timeout(timeout: Any) -> float | None:
    """The seconds as a float, or None.  Raises if they are none."""
    return timeout if timeout is None else _core.check_number("timeout", timeout, 0.0, float("inf"), LOW_OPEN)


class Team:
    """The ranks of a communicator.

    Args:
        comm: the communicator.  Messages go through a duplicate of it, so that none meets one of the program's.
        timeout: seconds to wait for the other ranks before the job is ended; None: for ever.  If it is neither, the
            ranks wait as long as by default; the call that made the team refuses it.

    Attributes:
        optimizer: the number of the optimizer whose ranks these are; 0 until all ranks have it.
    """

    rank: int
    size: int
    optimizer: int
    timeout: float | None
    line: Line
    _lines = MPI.Comm.Create_keyval()       # the attribute of a communicator that holds its line
    _making = threading.Lock()

    def __init__(self, comm: MPI.Intracomm, timeout: float | None) -> None:
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an intracommunicator of mpi4py, got {type(comm).__name__}")
        self._given, self.rank, self.size, self.optimizer = comm, comm.rank, comm.size, 0
        try:
            self.timeout = check_timeout(timeout)
        except Exception:
            self.timeout = TIMEOUT
        with self._making:
            line: Any = comm.Get_attr(self._lines)
            if line is None:
                line = Line()
                comm.Set_attr(self._lines, line)
            self.line = line

    def wait(self, request: MPI.Request) -> None:
        """Waits for a request; after `timeout` seconds, ends the job."""
        start = time.monotonic()
        while not any(request.Test() for _ in range(TESTS)):
            waited = time.monotonic() - start
            if self.timeout is not None and waited > self.timeout:
                self.abort(f"waited {self.timeout:g} s for the other ranks (timeout)")
            time.sleep(0 if waited < SPIN else NAP)

    def abort(self, why: str) -> None:
        """Ends the job: the other ranks cannot go on without this one."""
        print(f"optimc.mpi: rank {self.rank} {why}: the job ends", file=sys.stderr, flush=True)
        time.sleep(PRINTING)
        self.comm.Abort(1)

    @property
    def comm(self) -> MPI.Intracomm:
        """The duplicate of the communicator, once there is one."""
        return self.line.comm or self._given

    def gather(self, mine: Array) -> Array:
        """Returns the arrays of all ranks: one row each.  The first time, duplicates the communicator."""
        if self.line.comm is None:
            twin, request = self._given.Idup()
            self.wait(request)
            self.line.comm = twin
        rows = np.empty((self.size, *mine.shape), mine.dtype)
        self.wait(self.comm.Iallgather([mine, MPI.BYTE], [rows, MPI.BYTE]))
        return rows

    def together(self, method: str, body: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Returns body(call, *arguments, **options), which all ranks run together.

        Args:
            method: the name of the public method or function, for errors; all ranks must call the same.
            body: meets the other ranks at least once, by way of its first argument, the `Call`.
        """
        line = self.line
        with line.lock:
            if line.method is not None:
                raise RuntimeError(f"{method} was called within {line.method} of the same communicator, which other "
                                   "ranks wait for (a schedule or callback may not call what ranks do together)")
            call = Call(self, method)
            try:
                line.method = method
                return body(call, *arguments, **options)
            except BaseException as error:
                call.end(error)
                raise
            finally:
                line.method = None
                call.interrupts.release()


class Call:
    """A call that all ranks of a team have to make, on this rank.

    Args:
        team: the ranks.
        method: the name of what is called.

    Attributes:
        stage: OPEN while the others wait for this rank's word; BOUND once all go on; OVER once all raise.
        interrupts: Ctrl-C, held back from the first meeting on.
    """

    team: Team
    method: str
    part: str
    stage: str
    interrupts: Interrupts

    def __init__(self, team: Team, method: str) -> None:
        self.team, self.method, self.part = team, method, ""
        self.stage, self.interrupts = OPEN, Interrupts()

    def agree(self, facts: Sequence[Fact] = (), tell: int = 0) -> list[int]:
        """Meets the other ranks, and returns the numbers that they tell, by rank.

        Raises on every rank if one has refused, calls something else, or differs in a fact.  Then, all go on.

        Args:
            facts: at most three; the same ones, in the same order, on every rank.
            tell: a number for the other ranks, which may be another one on each.
        """
        rows = self._meet(None, [*(fact.number for fact in facts), *[0] * (NUMBERS - 1 - len(facts)), tell])
        if rows is None:
            return [tell] * self.team.size
        for fact, numbers in zip(facts, rows.T, strict=False):
            other = np.flatnonzero(numbers != numbers[0])
            if len(other):
                self.refuse(ValueError(f"rank {other[0]} {fact.words} than rank 0"))
        told: list[int] = rows[:, -1].tolist()
        return told

    def reopen(self, part: str) -> None:
        """Says that an error from here on to the next meeting is this rank's refusal; `part` names what is done."""
        self.part, self.stage = f" ({part})", OPEN
        self.interrupts.release()

    def refuse(self, error: Exception) -> NoReturn:
        """Raises an error that all ranks raise here."""
        self.stage = OVER
        raise error

    def end(self, error: BaseException) -> None:
        """Ends the call with an error: tells the others, if they wait for this rank's word."""
        try:
            if self.stage is OPEN:
                self._meet(error, [0] * NUMBERS)
        finally:
            if self.stage is not OVER:
                self.team.abort(f"stopped within {self.method}: {_words(error)}".replace("\n", ": ", 1))

    def _meet(self, error: BaseException | None, numbers: Sequence[int]) -> Array | None:
        """Returns the numbers of all ranks, a row each, or None if all are as this rank's.

        Raises on every rank if one has an error or does something else.
        """
        team, line = self.team, self.team.line
        doing = self.method + self.part
        row = np.array([line.meetings, team.optimizer, zlib.crc32(doing.encode()), error is not None, *numbers],
                       np.int64)
        message = b"" if error is None else _words(error).encode(errors="backslashreplace")
        self.interrupts.hold()
        self.stage = BOUND                          # from here on the others have this rank's word
        line.meetings += 1
        rows = team.gather(row)
        if error is None and rows.tobytes() == row.tobytes() * team.size:
            return None
        if (rows[:, MEETING] != row[MEETING]).any():
            team.abort(f"is at meeting {row[MEETING]}, others at {rows[:, MEETING].tolist()}")
        refusing = np.flatnonzero(rows[:, REFUSES])
        other = np.flatnonzero((rows[:, [OPTIMIZER, METHOD]] != rows[0, [OPTIMIZER, METHOD]]).any(axis=1))
        if not len(refusing) and not len(other):
            return rows[:, REFUSES + 1:]
        texts = team.gather(np.frombuffer((message if not len(other) else doing.encode())[:MESSAGE].ljust(
            MESSAGE, b"\0"), np.uint8))
        self.stage = OVER
        if error is not None and not isinstance(error, Exception):
            raise error                             # Ctrl-C stays Ctrl-C on the rank that has it
        rank = (other if len(other) else refusing)[0]
        text = texts[rank].tobytes().rstrip(b"\0").decode(errors="ignore")
        if len(other):
            raise _other(rank, text, texts[0].tobytes().rstrip(b"\0").decode(), rows[:, OPTIMIZER]) from error
        name, _, said = text.partition("\n")
        raise _error(name, f"rank {rank}: {said}") from error


def _words(error: BaseException) -> str:
    """The type and the text of an error, in two lines."""
    try:
        return f"{type(error).__name__}\n{error}"
    except BaseException:                           # it cannot be written
        return f"{type(error).__name__}\n"


def _other(rank: int, theirs: str, first: str, optimizers: Array) -> RuntimeError:
    """The error that a rank calls something else than rank 0."""
    if theirs == first:
        theirs, first = (f"{first} of optimizer {number}" for number in (optimizers[rank], optimizers[0]))
    return RuntimeError(f"rank {rank} calls {theirs}, rank 0 calls {first}: all ranks must call the same methods of "
                        "the same optimizers in the same order")


def _error(name: str, message: str) -> Exception:
    """Makes an exception of a builtin type from the type's name; of a type that is unknown here, a RuntimeError."""
    kind = {"CheckpointError": checkpoint.CheckpointError}.get(name, getattr(builtins, name, None))
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, (
            UnicodeError, ExceptionGroup)):         # they are made of more than a message
        return RuntimeError(f"{message} ({name})")
    return kind(message)
