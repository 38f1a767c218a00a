"""`load`: a sharded optimizer from a checkpoint, of a job of any size or of one process.

Saving is `Sharded.save`; the format of the files is checkpoint's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpi4py import MPI

from optimc import checkpoint
from optimc.mpi.sharded import Sharded
from optimc.mpi.team import TIMEOUT, Fact, Team

if TYPE_CHECKING:
    from typing import Any

    from optimc._types import Classes, Config, Path, Tensors
    from optimc.mpi.team import Call


def load(path: Path, comm: MPI.Intracomm = MPI.COMM_WORLD, *, custom_objects: Classes | None = None,
         **options: Any) -> Sharded:
    """Loads a `Sharded` optimizer from a checkpoint of a job of any size, or of `Optimizer.save`.

    Each rank reads what its share needs.  The next step binds the optimizer to weights, whose shapes and dtypes must
    match.  All ranks must call it with the same arguments.

    Args:
        path: the file.
        comm, options: as `Sharded` takes them.
        custom_objects: as `optimc.load` takes them.

    Raises (on every rank, with the rank named):
        CheckpointError, OSError: as `optimc.load`.
    """
    team = Team(comm, options.get("timeout", TIMEOUT))
    sharded: Sharded = team.together("load", _load, team, path, custom_objects, options)
    return sharded


def _load(call: Call, team: Team, path: Path, custom_objects: Classes | None, options: dict[str, Any]) -> Sharded:
    for name in options:
        if name not in (Sharded.__init__.__kwdefaults__ or ()):
            raise TypeError(f"load() got an unexpected keyword argument {name!r}")
    sharded = Sharded.__new__(Sharded)
    sharded._set_options(team, **options)
    _, metadata = checkpoint.format.read(path, lambda name, shape: False)
    if "shards" in metadata:
        def tensors_for(optimizer: Any, description: Config) -> Tensors:
            sharded._wrap(optimizer)
            return sharded._take_shards(path, checkpoint.format.decode(path, metadata, "shards"), description)

        checkpoint.saving.restore(path, metadata, custom_objects, tensors_for)
    else:
        whole: Any = checkpoint.load(path, custom_objects)
        sharded._wrap(whole)
    call.agree([Fact.of("has another checkpoint", metadata), *sharded._facts_of_setup()[1:]])
    sharded._join()
    return sharded
