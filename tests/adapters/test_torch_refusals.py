"""optimc.torch refuses what it cannot step, before anything changes."""

import ast
import copy
import inspect
import json

import pytest
from conftest import require
from places import ROOT
from torch_cases import close, each_class, parameters, set_grads

from optimc.torch_names import STORAGE

torch = require("torch")
ot = pytest.importorskip("optimc.torch")


def test_a_stale_backward_is_an_error():
    w = torch.nn.Parameter(torch.ones(3))
    loss = (w ** 2).sum() * w.sum()
    w.grad = torch.ones(3)
    ot.Adam([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_group_that_is_refused_is_not_added():
    params = [torch.nn.Parameter(torch.ones(2))]
    ours = ot.Adam(params)
    with pytest.raises(TypeError, match=r"bfloat16 or float16, or complex64 or complex128, got torch\.float8_e5m2"):
        ours.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.float8_e5m2))]})
    assert len(ours.param_groups) == 1
    params[0].grad = torch.ones(2)
    ours.step()


def test_bad_parameters_and_arguments():
    p = torch.nn.Parameter(torch.ones(2))
    for bad, error, message in [
            (torch.ones(2, dtype=torch.float8_e5m2), TypeError,
             "expected float32, float64, bfloat16 or float16, or complex64 or complex128, got torch.float8_e5m2"),
            (torch.ones(2, 2).to_sparse(), TypeError, "expected a dense tensor")]:
        with pytest.raises(error, match=message):
            ot.SGD([bad.requires_grad_()], lr=0.1)
        ours = ot.SGD([p], lr=0.1)
        with pytest.raises(error, match=message):
            ours.add_param_group({"params": [bad.requires_grad_()]})
    for arguments in ({"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"lr": 0.1, "nesterov": True},
                      {"lr": 0.1, "weight_decay": -1.0}):
        with pytest.raises(ValueError):
            ot.SGD([p], **arguments)
    with pytest.raises(ValueError, match="beta"):
        ot.Adam([p], betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="empty parameter list"):
        ot.Adam([])


def test_bad_gradients_change_nothing():
    a = parameters(shapes=[(3,), (4,)])
    ours = ot.Adam(a, lr=0.1)
    set_grads(0, a)
    ours.step()
    before, state = [p.detach().clone() for p in a], copy.deepcopy(ours.state_dict())
    a[0].grad = torch.ones(3)
    a[1].grad = a[0].detach()[:1].expand(4)
    with pytest.raises(ValueError, match=r"grads\[1\]: overlaps"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
    q = torch.nn.Parameter(torch.ones(2, 2))
    q.grad = torch.eye(2).to_sparse()
    for optimizer in (ot.SGD([q], lr=0.1), ot.Adam([q])):
        for _ in range(2):
            with pytest.raises(TypeError, match=r"grads\[0\]: expected a dense tensor, or a sparse one with spars"):
                optimizer.step()
        assert (q == 1).all()
    ours.param_groups[0]["lr"] = -1.0
    set_grads(1, a)
    with pytest.raises(ValueError, match=r"^lr must be finite and >= 0"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
    after = ours.state_dict()
    assert all(torch.equal(state["state"][i][k], v) for i in (0, 1) for k, v in after["state"][i].items())


def test_overlapping_parameters_are_refused():
    base = torch.ones(6)
    apart, *params = [torch.nn.Parameter(part) for part in (torch.ones(3), base[:4], base[2:])]
    for p in params:
        p.grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"params\[1\] and params\[2\] overlap in memory"):
        ot.SGD([apart, *params], lr=0.1)
    ours = ot.SGD([apart, params[1]], lr=0.1)
    with pytest.raises(ValueError, match=r"params\[1\] and params\[2\] overlap in memory"):
        ours.add_param_group({"params": [params[0]]})
    assert len(ours.param_groups) == 1 and (base == 1).all()
    ours.step()
    assert (base[2:] == 0.9).all() and (base[:2] == 1).all()
    halves = [torch.nn.Parameter(half) for half in torch.ones(6).chunk(2)]
    ot.SGD(halves, lr=0.1)


@pytest.mark.parametrize("bad", [torch.ones(4, 1).expand(4, 3), torch.ones(3, 4).as_strided((2, 2), (1, 1))],
                         ids=["expanded", "overlaps itself"])
def test_parameters_that_overlap_themselves_are_refused_at_once(bad):
    p = torch.nn.Parameter(torch.ones(2))
    message = r"params\[1\]: expected elements that lie apart from each other, got shape \(\d,"
    with pytest.raises(ValueError, match=message):
        ot.SGD([p, bad.requires_grad_()], lr=0.1)
    ours = ot.SGD([p], lr=0.1)
    with pytest.raises(ValueError, match=message):
        ours.add_param_group({"params": [bad]})
    p.grad = torch.ones(2)
    ours.step()
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        ot.SGD([torch.ones(2, 3, 4, 5).permute(order).requires_grad_(), torch.empty(0, 3).requires_grad_()], lr=0.1)


def test_a_lazy_parameter_is_checked_when_it_has_a_shape():
    layer = torch.nn.LazyLinear(2)
    ours = ot.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(4, 3)).sum().backward()
    before = layer.weight.detach().clone()
    ours.step()
    assert torch.equal(layer.weight, before - 0.4)


def test_betas_may_be_a_list():
    """From a state_dict that went through JSON, say."""
    (a, b) = parameters(), parameters()
    ours, theirs = ot.Adam([{"params": a, "betas": [0.8, 0.99]}]), torch.optim.Adam(b, betas=(0.8, 0.99))
    for step in range(4):
        set_grads(step, a, b)
        if step == 2:
            state = ours.state_dict()
            state["param_groups"] = json.loads(json.dumps(state["param_groups"]))
            assert isinstance(state["param_groups"][0]["betas"], list)
            ours.load_state_dict(state)
        ours.step()
        theirs.step()
        close(a, b)
    ours.param_groups[0]["betas"] = [0.8]
    with pytest.raises(ValueError, match="betas must be a tuple of 2 numbers"):
        ours.step()


def test_errors_number_parameters_as_the_optimizer_does():
    """Also those of a parameter that steps apart from the others."""
    a = parameters()
    ours = ot.Adam([{"params": a[:2]}, {"params": a[2:]}])
    for late in (True, False):
        set_grads(0, a)
        if late:
            a[0].grad = a[3].grad = None
        else:
            a[3].grad = a[3].detach()
        if late:
            ours.step()
    with pytest.raises(ValueError, match=r"grads\[3\]: overlaps"):
        ours.step()


@each_class
def test_words_of_optimc_are_refused_with_torchs(name):
    cls, params = getattr(ot, name), [torch.nn.Parameter(torch.ones(2))]
    for ours, advice in (("learning_rate", r": did you mean lr\?"), ("eta", r": did you mean lr\?"), ("zzz", ""),
                         ("clipnorm", ": call torch.nn.utils.clip_grad_norm_ before the step"),
                         ("max_norm", ": call torch.nn.utils.clip_grad_norm_ before the step"),
                         ("clipvalue", ": call torch.nn.utils.clip_grad_value_ before the step")):
        with pytest.raises(TypeError, match=rf"^optimc.torch.{name} has no argument '{ours}'{advice}$"):
            cls(params, **{ours: 0.1})
    with pytest.raises(TypeError) as raised:
        cls()
    assert "params" in str(raised.value)


@pytest.mark.parametrize("name, message", [
    ("LBFGS", ": only torch.optim.LBFGS steps tensors$"),
    ("Nadam", r": did you mean NAdam\?$"), ("adamw", r": did you mean AdamW\?$"), ("zzz", "'zzz'$")])
def test_a_class_that_torch_does_not_have(name, message):
    with pytest.raises(AttributeError, match=rf"^module 'optimc.torch' has no attribute '{name}'.*{message}"
                       if message.startswith(":") else message):
        getattr(ot, name)


@each_class
def test_signatures_are_torchs_and_those_of_subclasses_their_own(name):
    cls = getattr(ot, name)
    parameters = [*inspect.signature(cls).parameters.values()]
    theirs, ours = parameters[:-len(STORAGE)], parameters[-len(STORAGE):]
    assert theirs == [*inspect.signature(getattr(torch.optim, name)).parameters.values()]
    assert {parameter.name: parameter.default for parameter in ours} == STORAGE
    assert {parameter.kind for parameter in ours} == {inspect.Parameter.KEYWORD_ONLY}

    class Own(cls):
        def __init__(self, params, mine=3, **kwargs):
            super().__init__(params, **kwargs)

    assert list(inspect.signature(Own).parameters) == ["params", "mine", "kwargs"]
    assert Own([torch.nn.Parameter(torch.ones(2))], lr=0.5).param_groups[0]["lr"] == 0.5


@each_class
def test_stubs_have_torchs_arguments_and_those_of_storage(name):
    tree = ast.parse((ROOT / "optimc/torch/__init__.pyi").read_text("utf-8"))
    arguments, = (node.body[0].args for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    stubbed = {node.arg: ast.literal_eval(default) for nodes, defaults in (
        (arguments.args[2:], arguments.defaults), (arguments.kwonlyargs, arguments.kw_defaults))
        for node, default in zip(nodes, defaults, strict=True)}
    real = {word: found.default for word, found in list(inspect.signature(getattr(ot, name)).parameters.items())[1:]}
    assert stubbed.items() >= real.items()


def test_a_class_that_takes_any_keyword_keeps_its_own_errors():
    class Any(torch.optim.Adam):
        def __init__(self, params, **kwargs):
            super().__init__(params, **kwargs)

    class Mixed(ot.Adam, Any):
        pass

    with pytest.raises(TypeError) as raised:
        Mixed([torch.nn.Parameter(torch.ones(2))], lr="a")
    assert "no argument" not in str(raised.value)


@pytest.mark.parametrize("lies", ["parameter", "gradient"])
def test_a_parameter_that_rests_may_lie_where_another_is(lies):
    """Nothing is written where it lies; it is refused once it has a gradient."""
    a, b = (torch.nn.Parameter(torch.ones(64)) for _ in range(2))
    c = torch.nn.Parameter(torch.ones(64))
    ours, theirs = ot.Adam([a, b], lr=0.1), torch.optim.Adam([c], lr=0.1)
    for step in range(6):
        if step == 4 and lies == "parameter":
            b.data = a.data
        elif step == 4:
            b.data = torch.ones(64)
        a.grad = b.data if step >= 4 and lies == "gradient" else torch.ones(64)
        b.grad = torch.ones(64) if step < 2 else None
        c.grad = torch.ones(64)
        ours.step()
        theirs.step()
    assert torch.allclose(a, c, rtol=1e-6) and float(ours.state[a]["step"]) == 6
    assert float(ours.state[b]["step"]) == 2
    b.grad = torch.ones(64)
    with pytest.raises(ValueError, match="overlap"):
        ours.step()
