"""torch's optimizers with the step in C: change one name and keep your program.

    import optimc.torch
    opt = optimc.torch.AdamW(model.parameters(), lr=1e-3)

Each class here is a subclass of torch's class of the same name, so arguments, defaults, checks, parameter groups,
hooks, schedulers and `state_dict` are torch's.  The step is optimc's: one call into C for all parameters, in place,
with torch's formula (`style="torch"`).  Parameters, gradients and state stay torch tensors.  Every step looks up
where they are, so `p.data = ...`, `model.double().float()` and `optimizer.state[p]["exp_avg"] = ...` work.

The state is in `optimizer.state`, as in torch; the scalars of NAdam and ASGD are float64.  Parameters on the CPU are
strided tensors of float32, float64, bfloat16, float16, complex64 or complex128 that do not overlap, or DTensors of
such.  The step of those on another device, and of groups that are differentiable or capturable, is handed to torch's
own implementation.

Gradients may be sparse by rows, as those of `torch.nn.Embedding(sparse=True)`, in every class, and are so in
`SparseAdam`.  Such a step is *lazy*: rows that do not occur are not touched, neither by the rule nor by decay or
momentum.  Values of a row that occurs several times are added up in order of occurrence.

Four arguments are optimc's, by keyword, of each class but Muon.  They are keys of a parameter group where they are
given.

- `state_dtype`: None, "float32", "bfloat16" or "int8", or a dict of torch's keys of slots to these words: the storage
  of slots.
- `master_weights=True`: keep what bfloat16 and float16 parameters lack of a float32, as "master_param" in the state.
  With False they are rounded to nearest at the end of a step, as by torch's fused=True, and slots have the type of
  their parameter unless `state_dtype` says another or they must keep more bits.
- `stochastic_round=False`: with `master_weights=False`, round bfloat16 parameters at random, which is right on
  average.
- `seed=0`: of random rounding.

For parameters on an accelerator `OffloadAdam`, `OffloadAdamW` and so on keep masters, state and step on the host: see
`offload`.

`step_in_backward` steps each parameter within the backward pass, and frees its gradient.

optimc's optimizers that torch lacks are here too, such as `Lion`: optimizers of torch with the bits of the class for
arrays, for parameters on the CPU (own.py, optimc/torch_own.py).

Threads may share an optimizer other than Muon.  Their steps, reads of the state and saves run one after the other.

Next: step.py (the step), cohorts.py (which parameters step together), handed.py (torch's own implementation),
states.py (`optimizer.state`), slots.py and loading.py (the tensors in it), inner.py (the optimizer of optimc behind a
cohort), tensors.py (memory), bare.py (complex tensors, DTensors and gaps), and optimc/torch_names.py (torch's words
and optimc's).
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING

from optimc.base import lazy
from optimc.base.names import closest, refuse_name

try:
    import torch
except ImportError as _error:
    lazy.needs("torch", _error)

from optimc.torch import openmp, own
from optimc.torch.backward import step_in_backward
from optimc.torch.host import offload
from optimc.torch.step import SparseOptimizer, TorchOptimizer
from optimc.torch_names import STORAGE, TORCH
from optimc.torch_own import OWN

if TYPE_CHECKING:
    from typing import Any

    from optimc.torch_names import Counterpart


openmp.borrow()


def _make(name: str) -> Any:
    """The class of that name: torch's, with `TorchOptimizer` or `SparseOptimizer` before it."""
    is_sparse = name == "SparseAdam"
    return _made(SparseOptimizer if is_sparse else TorchOptimizer, getattr(torch.optim, name), TORCH[name], f"""
        torch.optim.{name} with the step in C.  Arguments, formula and state are torch's.

        foreach has no effect, and fused=True lets a GradScaler leave its scale to the step.  Beside torch's arguments
        it takes state_dtype, master_weights, stochastic_round and seed, by keyword: see help(optimc.torch).
        """, ".to_sparse()" * is_sparse)


def _make_own(name: str) -> Any:
    """The class of an optimizer of optimc that torch lacks."""
    return _made(own.BASES.get(name, own.OwnOptimizer), own.base(name), OWN[name], f"""
        optimc.{name} for parameters of torch: a torch.optim.Optimizer with the formula and the bits of that class.

        Its arguments are in torch's words: {', '.join(OWN[name].arguments)}.  The state has the keys step,
        {', '.join(OWN[name].slots.values())}.  It takes state_dtype, master_weights, stochastic_round and seed too,
        by keyword: see help(optimc.torch).  For the formula see help(optimc.{name}).
        """, "")


def _made(step: type, theirs: Any, counterpart: Counterpart, text: str, sparse: str) -> Any:
    """A subclass of a class of torch with a base before it.

    Args:
        step: the base, which steps.
        theirs: the class.
        counterpart: its row.
        text: its docstring but for the example.
        sparse: what makes the gradient of the example one that the class takes.
    """
    name = theirs.__name__

    @functools.wraps(theirs.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        super(made, self).__init__(*args, **kwargs)

    signature = inspect.signature(theirs.__init__)
    init.__signature__ = signature.replace(parameters=[                 # type: ignore[attr-defined]
        *signature.parameters.values(),
        *(inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=default)
          for word, default in STORAGE.items())])
    made = type(name, (step, theirs), {
        "__doc__": text.lstrip() + f"""
        Example:
            >>> import torch, optimc.torch
            >>> p = torch.nn.Parameter(torch.ones(2))
            >>> opt = optimc.torch.{name}([p], lr=0.5)
            >>> p.grad = torch.ones(2){sparse}
            >>> opt.step()
            >>> bool((p != 1).all())
            True
        """,
        "__module__": __name__, "__init__": init, "_counterpart": counterpart,
        "_sources": counterpart.sources(inspect.signature(theirs).parameters),
    })
    return made


SGD = _make("SGD")
Adam = _make("Adam")
AdamW = _make("AdamW")
SparseAdam = _make("SparseAdam")
Adagrad = _make("Adagrad")
RMSprop = _make("RMSprop")
Adadelta = _make("Adadelta")
if hasattr(torch.optim, "Adafactor"):
    Adafactor = _make("Adafactor")
Adamax = _make("Adamax")
NAdam = _make("NAdam")
RAdam = _make("RAdam")
Rprop = _make("Rprop")
ASGD = _make("ASGD")
if hasattr(torch.optim, "Muon"):
    from optimc.torch.muon import Muon as Muon
for _name in OWN:
    globals()[_name] = _make_own(_name)

if not TYPE_CHECKING:               # a checker would take it to mean that every name is there
    def __getattr__(name):
        if name.startswith("Offload"):
            return _offloading(name)
        meant = next((theirs for theirs, ours in TORCH.items() if ours.name == name), None)
        if isinstance(getattr(torch.optim, name, None), type):
            advice = f": only torch.optim.{name} steps tensors"
        else:
            meant = meant or closest(name, [*TORCH, *OWN], 0.75)
            advice = f": did you mean {meant}?" if meant else ""
        refuse_name(__name__, name, advice)

    def _offloading(name):
        inner, dense = name.removeprefix("Offload"), [name for name in (*TORCH, *OWN)
                                                      if name != "SparseAdam" and name in globals()]
        if inner in dense:
            globals()[name] = made = offload(globals()[inner])
            return made
        meant = closest(inner, dense, 0.75)
        advice = f": did you mean Offload{meant}?" if meant else ""
        refuse_name(__name__, name, {
            "Muon": ": optimc.torch.Muon steps parameters on any device",
            "SparseAdam": ": sparse gradients cannot be offloaded"}.get(inner, advice))


__all__ = ["ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop",
           "SparseAdam", "offload", "step_in_backward", *OWN,
           *(name for name in ("Adafactor", "Muon") if hasattr(torch.optim, name))]
