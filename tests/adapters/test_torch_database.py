"""optimc.torch against the database of optimizers that torch tests its own with.

Each class goes through every construction error and every input that the database has for it, beside torch's loop.
"""

import copy
import importlib.util
import sys
import types
import unittest
import warnings

import pytest
from conftest import require

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
if importlib.util.find_spec("expecttest") is None:      # torch's database imports it for a base class of tests
    sys.modules["expecttest"] = types.ModuleType("expecttest")
    sys.modules["expecttest"].TestCase = unittest.TestCase
database = pytest.importorskip("torch.testing._internal.common_optimizers")

INFOS = {info.optim_cls.__name__: info for info in database.optim_db if info.optim_cls.__name__ in ot.__all__}
DENSE = [name for name, info in INFOS.items() if not info.only_supports_sparse_grads]
SPARSE = [name for name, info in INFOS.items() if info.only_supports_sparse_grads or info.supports_sparse]
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float16)
#: wider than the default tolerances of torch.testing: (relative, absolute), as the database has them
TOLERANCES = {"RMSprop": (1e-2, 5e-4)}
#: these step parameters of 16 bits in their own type, as torch's loop does
WITHOUT_MASTERS = {"Muon"}
STEPS = 7
each = pytest.mark.parametrize("name", INFOS)
each_dense = pytest.mark.parametrize("name", DENSE)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

@pytest.fixture(autouse=True)
def as_torch_multiplies(monkeypatch):
    """Muon's products round as torch's, also where a CPU has no fast bfloat16."""
    monkeypatch.setattr("optimc.torch.muon.multiplies_bfloat16", lambda: True)


def inputs(name):
    return [each.kwargs for each in INFOS[name].optim_inputs_func(device="cpu")]


def filled(shape, dtype, seed):
    return torch.randn(shape, dtype=dtype if dtype.itemsize > 2 else torch.float32,
                       generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(name, dtype, contiguous=True):
    """A matrix, a vector and a scalar, or a matrix only, with gaps if not contiguous."""
    shapes = [(10, 5)] if name == "Muon" else [(10, 5), (10,), ()]
    if contiguous:
        return [torch.nn.Parameter(filled(shape, dtype, 1)) for shape in shapes]
    return [torch.nn.Parameter(filled((*shape, 2), dtype, 1)[..., 0]) for shape in shapes]


def train(optimizer, params, first=0, steps=STEPS, dtype=None, sparse=False):
    """Steps with gradients that the given type can hold."""
    for step in range(first, first + steps):
        for i, param in enumerate(params):
            grad = filled(param.shape, dtype or param.dtype, 10 * step + i)
            if sparse:
                grad[step % 2::2] = 0
                grad = grad.to_sparse(1)
            param.grad = grad.to(param.dtype)
        optimizer.step()


def check(name, mine, theirs):
    rtol, atol = TOLERANCES.get(name, (None, None))
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=atol)


def check_state(name, ours, theirs):
    """The same keys, shapes and types as torch's."""
    for mine, other in zip(ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            assert type(mine[key]) is type(value)
            if isinstance(value, torch.Tensor):
                assert mine[key].shape == value.shape
                assert mine[key].dtype == value.dtype or key in ("eta", "mu", "mu_product")     # float64 here


@each
def test_construction_errors(name):
    for error in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = error.optimizer_error_input
        params = [torch.nn.Parameter(torch.randn(2, 3))] if given.params is None else given.params
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                getattr(ot, name)(params, **given.kwargs)
        elif error.error_on is database.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                getattr(ot, name)(params, **given.kwargs)
        else:
            optimizer = getattr(ot, name)(params, **given.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                optimizer.step()


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "gaps"])
@each_dtype
@each_dense
def test_every_input_steps_as_torchs_loop(name, dtype, contiguous):
    """Parameters of 16 bits have masters: they are as near to torch's loop in float32 as their type allows."""
    if dtype.is_complex and not INFOS[name].supports_complex:
        pytest.skip(f"{name} has no complex parameters")
    narrow = dtype.itemsize == 2 and name not in WITHOUT_MASTERS
    for kwargs in inputs(name):
        a = parameters(name, dtype, contiguous)
        b = [torch.nn.Parameter(p.detach().float()) if narrow else p for p in parameters(name, dtype, contiguous)]
        loop = {"foreach": False} if "foreach" in INFOS[name].supported_impls else {}
        ours, theirs = getattr(ot, name)(a, **kwargs), getattr(torch.optim, name)(b, **kwargs, **loop)
        train(ours, a)
        train(theirs, b, dtype=dtype)
        check(name, a, [q.to(dtype) for q in b])
        if not narrow:
            check_state(name, ours, theirs)


@each_dense
def test_states_go_both_ways(name):
    for kwargs in inputs(name):
        for dtype in (torch.float32, *[torch.complex64] * INFOS[name].supports_complex):
            (a, b), made = (parameters(name, dtype) for _ in range(2)), (ot, torch.optim)
            ours, theirs = (getattr(module, name)(p, **kwargs) for module, p in zip(made, (a, b), strict=True))
            train(ours, a, steps=3)
            train(theirs, b, steps=3)
            mine, other = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
            ours.load_state_dict(other)
            theirs.load_state_dict(mine)
            train(ours, a, 3)
            train(theirs, b, 3)
            check(name, a, b)


@pytest.mark.parametrize("name", [name for name in DENSE if "cpu" in INFOS[name].supports_fused_on])
def test_fused_steps_as_fused(name):
    for kwargs in inputs(name):
        a, b = parameters(name, torch.float32), parameters(name, torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, theirs = (getattr(module, name)(p, **kwargs, fused=True)
                            for module, p in ((ot, a), (torch.optim, b)))
        train(ours, a)
        train(theirs, b)
        check(name, a, b)
        check_state(name, ours, theirs)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients(name):
    options, _ = INFOS[name].metadata_for_sparse
    for kwargs in [options, {**options, "maximize": True}]:
        for shape in ((8,), (8, 3)):
            a, b = ([torch.nn.Parameter(filled(shape, torch.float32, 1))] for _ in range(2))
            ours, theirs = getattr(ot, name)(a, **kwargs), getattr(torch.optim, name)(b, **kwargs)
            train(ours, a, sparse=True)
            train(theirs, b, sparse=True)
            check(name, a, b)


@each_dense
def test_hooks_on_state(name):
    """All that hooks of a state_dict put into it, entries that are no dicts too, goes through saving and loading."""
    a = parameters(name, torch.float32)
    ours = getattr(ot, name)(a, **inputs(name)[0])
    train(ours, a, steps=2)

    def count(optimizer, *state_dict):
        optimizer.state["calls"] = optimizer.state.get("calls", 0) + 1

    def double(optimizer, state_dict):
        return {**state_dict, "param_groups": [{**group, "lr": 2 * group["lr"]}
                                               for group in state_dict["param_groups"]]}

    rate = ours.param_groups[0]["lr"]
    for register in (ours.register_state_dict_pre_hook, ours.register_load_state_dict_post_hook):
        register(count)
    ours.register_state_dict_post_hook(double)
    ours.register_load_state_dict_pre_hook(double)
    saved = copy.deepcopy(ours.state_dict())
    assert saved["state"]["calls"] == 1 and saved["param_groups"][0]["lr"] == 2 * rate
    ours.load_state_dict(saved)
    assert ours.state["calls"] == 2 and ours.param_groups[0]["lr"] == 4 * rate
    train(ours, a, 2, 1)
    assert ours.state["calls"] == 2


@each_dense
def test_counts_are_of_torchs_type(name):
    """Also where the default type is float64 or of 16 bits."""
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            a, b = parameters(name, torch.float32), parameters(name, torch.float32)
            torch.set_default_dtype(dtype)
            ours, theirs = (getattr(module, name)(p) for module, p in ((ot, a), (torch.optim, b)))
            train(ours, a, steps=1)
            train(theirs, b, steps=1)
            for p, q in zip(a, b, strict=True):
                if "step" in theirs.state[q]:
                    assert ours.state[p]["step"].dtype == theirs.state[q]["step"].dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_dense
def test_a_model_may_be_converted_after_the_optimizer_was_made(name, to):
    if name in WITHOUT_MASTERS:
        for module in (ot, torch.optim):                # neither takes another type than its state's
            model = torch.nn.Linear(4, 3, bias=False)
            optimizer = getattr(module, name)(model.parameters(), lr=0.5)
            train(optimizer, list(model.parameters()), steps=1)
            model.to(to)
            with pytest.raises(RuntimeError, match="expected dtype float for `end`"):
                train(optimizer, list(model.parameters()), steps=1)
        return
    model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=name != "Muon"))
    ours = getattr(ot, name)(model.parameters(), lr=0.5)
    for convert in (lambda: None, lambda: model.to(to), lambda: None, model.float):
        ours.zero_grad()
        convert()
        before = [p.detach().clone() for p in model.parameters()]
        train(ours, list(model.parameters()), steps=2)
        assert all(torch.isfinite(p).all() and not torch.equal(p, q) and p.dtype == q.dtype
                   for p, q in zip(model.parameters(), before, strict=True))
