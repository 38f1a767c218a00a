"""Optimizers for MPI jobs: each rank keeps the optimizer's arrays for a share of the weights.

    # mpiexec -n 4 python -m mpi4py train.py
    import optimc, optimc.mpi
    opt = optimc.mpi.Sharded(optimc.AdamW(1e-3))
    opt.apply(local_grads, weights)         # the same weights on every rank, before and after

In a step the ranks reduce the gradients, so that each rank has the sums for its share.  Each rank steps its share
with the kernels of optimc.  Then all ranks get the new weights (ZeRO, stage 1: Rajbhandari et al., 2019, arXiv
1910.02054).  mpi4py and the MPI library communicate; docs/explain/scaling.md estimates the cost.

    layout.py       which elements are whose.  Weights of one type are one vector, cut once per rank.
    exchange.py     a share is reduced, stepped and sent on in buckets, so that one waits for the network while
                    another is computed.
    rows.py         gradients by rows travel as rows, and so do the rows that they change.
    team.py         before anything is sent or changed, the ranks tell each other what they call and whether they can
                    go on, and refuse together if one cannot: `Team.together`.  interrupts.py holds Ctrl-C back.
    checkpoints.py  a file per rank; loading.py reads those of a job of any size.

Begin with sharded.py.
"""

from optimc.base import lazy

try:
    from mpi4py import MPI as _MPI  # noqa: F401
except (ImportError, RuntimeError) as _error:        # no mpi4py; no MPI library
    lazy.needs("mpi", _error)

from optimc.mpi.layout import default_bucket
from optimc.mpi.loading import load
from optimc.mpi.sharded import Sharded

__all__ = ["Sharded", "default_bucket", "load"]
