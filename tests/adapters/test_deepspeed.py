"""optimc's kernels as DeepSpeed calls them: formulas, types, refusals, the way back, and whole jobs of DeepSpeed."""

import importlib
import itertools
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import require
from places import search_path

torch = require("torch")
pytest.importorskip("optimc.torch")
from optimc.torch import ops, tensors  # noqa: E402

TYPES = [torch.float32, torch.bfloat16, torch.float16]
LR, BETAS, EPS, DECAY = 0.01, (0.9, 0.99), 1e-8, 0.1


@pytest.fixture(params=["table", "views"])
def exchange(request, monkeypatch):
    """Steps with torch's exchange table, and without it as before torch 2.10."""
    if request.param == "views":
        monkeypatch.setattr(tensors, "EXCHANGE", None)


def some(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def made(name, *numbers):
    """An op with an optimizer, as DeepSpeed's constructors make it."""
    op = ops.OPS[f"cpu_{name}"]()
    getattr(op, f"create_{name}")(*numbers)
    return op


def adam(decouples=True):
    return made("adam", 3, LR, *BETAS, EPS, DECAY, decouples, False)


def stepped(op, t, p, g, m, v, corrects=True):
    return op.adam_update(3, t, LR, *BETAS, EPS, DECAY, corrects, p, g, m, v)


def adams_formula(t, p, g, m, v, decouples, corrects):
    """DeepSpeed's, in float64."""
    p, g, m, v = (tensor.double() for tensor in (p, g, m, v))
    if not decouples:
        g = g + DECAY * p
    m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
    corrections = [1 - beta ** t for beta in BETAS] if corrects else [1, 1]
    if decouples:
        p = p - LR * DECAY * p
    return p - LR * (m / corrections[0]) / ((v / corrections[1]).sqrt() + EPS), m, v


@pytest.mark.parametrize("decouples,corrects", [*itertools.product([True, False], repeat=2)])
def test_adam_has_deepspeeds_formula(decouples, corrects, exchange):
    op, kept = adam(decouples), [some(1000), torch.zeros(1000), torch.zeros(1000)]
    for t in range(1, 6):
        g = some(1000, seed=t)
        expected = adams_formula(t, kept[0], g, *kept[1:], decouples, corrects)
        assert stepped(op, t, kept[0], g, *kept[1:], corrects) == 0
        for mine, theirs in zip(kept, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-7)


def test_lion_has_deepspeeds_formula(exchange):
    op, p, m = made("lion", 0, LR, *BETAS, DECAY, False), some(1000), some(1000, seed=9)
    for t in range(1, 4):
        g = some(1000, seed=t)
        expected = p * (1 - LR * DECAY) - LR * torch.sign(BETAS[0] * m + (1 - BETAS[0]) * g)
        old = BETAS[1] * m + (1 - BETAS[1]) * g
        assert op.lion_update(0, t, LR, *BETAS, DECAY, p, g, m) == 0
        torch.testing.assert_close(p, expected)
        torch.testing.assert_close(m, old)


def test_adagrad_has_torchs_formula(exchange):
    op, p, v = made("adagrad", 0, LR, EPS, DECAY, False), torch.nn.Parameter(some(1000)), torch.zeros(1000)
    mine = p.detach().clone()
    theirs = torch.optim.Adagrad([p], lr=LR, eps=EPS, weight_decay=DECAY)
    for t in range(1, 4):
        p.grad = some(1000, seed=t)
        theirs.step()
        assert op.adagrad_update(0, t, LR, EPS, DECAY, mine, p.grad, v) == 0
    torch.testing.assert_close(mine, p.detach())


@pytest.mark.parametrize("param,state,grad", [*itertools.product(TYPES, repeat=3)])
def test_types_of_16_bits_are_stepped_in_float32_and_rounded(param, state, grad, exchange):
    op, kept = adam(), [some(30, 9, dtype=param), some(30, 9, dtype=state, seed=1),
                        some(30, 9, dtype=state, seed=2).abs()]
    wide = [tensor.float().clone() for tensor in kept]
    g = some(30, 9, dtype=grad, seed=3)
    stepped(op, 7, kept[0], g, *kept[1:])
    stepped(op, 7, wide[0], g.float(), *wide[1:])
    assert [torch.equal(mine, real.to(mine.dtype)) for mine, real in zip(kept, wide, strict=True)] == [True] * 3


def test_a_bfloat16_halfway_is_rounded_to_the_even_one(exchange):
    op, p = made("lion", 0, 2.0 ** -8, *BETAS, 0.0, False), torch.tensor([1.0, 1 + 2.0 ** -7], dtype=torch.bfloat16)
    op.lion_update(0, 1, 2.0 ** -8, *BETAS, 0.0, p, -p.clone(), torch.zeros(2))
    assert p.tolist() == [1.0, 1 + 2.0 ** -6]


def test_tensors_come_and_go(exchange):
    """A plan is for all tensors of one length, and a step for those it is given."""
    op, seen = adam(), []
    for seed in (1, 2, 1):
        kept = [some(50, seed=seed), torch.zeros(50), torch.zeros(50)]
        for t in (1, 2):
            stepped(op, t, kept[0], some(50, seed=seed + 5), *kept[1:])
        seen.append(kept[0])
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_values_are_those_of_the_call():
    op, mine, zeros = adam(), some(8), [torch.zeros(8), torch.zeros(8)]
    before = mine.clone()
    op.adam_update(3, 1, 0.0, *BETAS, EPS, 0.0, True, mine, some(8, seed=1), *zeros)
    assert torch.equal(mine, before) and zeros[0].any()


def test_strides_and_empty_tensors():
    op, g = adam(), some(6, 4, seed=1)
    rows, columns = [some(6, 4), *torch.zeros(2, 6, 4)], [some(6, 4).t().contiguous().t(),
                                                          *torch.zeros(2, 4, 6).transpose(1, 2)]
    stepped(op, 1, rows[0], g, *rows[1:])
    stepped(op, 1, columns[0], g.t().contiguous().t(), *columns[1:])
    assert all(map(torch.equal, rows, columns))
    stepped(op, 1, *torch.zeros(4, 0))


@pytest.mark.parametrize("dtype", TYPES)
def test_vectors_with_gaps_and_expanded_gradients(dtype, exchange):
    op, g = adam(), torch.ones(1, dtype=dtype).expand(50)
    solid = [some(50, dtype=dtype, seed=seed).abs() for seed in range(3)]
    gaps = [torch.stack([tensor, tensor], 1)[:, 0] for tensor in solid]
    stepped(op, 1, solid[0], g.clone(), *solid[1:])
    stepped(op, 1, gaps[0], g, *gaps[1:])
    assert all(map(torch.equal, solid, gaps))


@pytest.mark.parametrize("dtype", TYPES)
def test_memory_that_is_shared_is_refused(dtype):
    p, g, m = (torch.ones(8, dtype=dtype) for _ in range(3))
    for slots, message in (((m, m), "m and v overlap in memory"), ((p, m), "param and m overlap in memory"),
                           ((m, torch.ones(1, dtype=dtype).expand(8)), "v: expected elements that lie apart")):
        with pytest.raises(ValueError, match=message):
            stepped(adam(), 1, p, g, *slots)
    assert all(torch.equal(tensor, torch.ones(8, dtype=dtype)) for tensor in (p, m))


def test_a_step_is_taken_back():
    for decouples, corrects in itertools.product([True, False], repeat=2):
        op, kept = adam(decouples), [some(1000), some(1000, seed=1), some(1000, seed=2).abs()]
        before, g = [tensor.clone() for tensor in kept], some(1000, seed=3)
        stepped(op, 4, kept[0], g, *kept[1:], corrects)
        assert op.adam_rollback(3, 4, LR, *BETAS, EPS, DECAY, corrects, kept[0], g, *kept[1:]) == 0
        for mine, theirs in zip(kept, before, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_taken_back_says_so():
    p, g, m, v = (torch.ones(4, dtype=torch.bfloat16) for _ in range(4))
    with pytest.raises(TypeError, match=r"only a step of contiguous float32 tensors can be taken back, got torch.bf"):
        adam().adam_rollback(3, 1, LR, *BETAS, EPS, DECAY, True, p, g, m, v)


@pytest.mark.parametrize("wrong,error,message", [
    ((1, torch.zeros(4, dtype=torch.float64)), TypeError, "expected float32, bfloat16 or float16 on the CPU, got"),
    ((1, torch.zeros(4, device="meta")), TypeError, "got torch.float32 on meta"),
    ((2, torch.zeros(3)), ValueError, r"expected shape \(4,\), like the parameter's, got \(3,\)"),
])
def test_other_tensors_are_refused(wrong, error, message):
    given = [torch.ones(4) for _ in range(4)]
    given[wrong[0]] = wrong[1]
    with pytest.raises(error, match=message):
        stepped(adam(), 1, *given)
    assert torch.equal(given[0], torch.ones(4))


def test_a_destroyed_optimizer_is_gone():
    for name, numbers in (("adam", (0, LR, *BETAS, EPS, 0, True, True)), ("lion", (0, LR, *BETAS, 0, True)),
                          ("adagrad", (0, LR, EPS, 0, True))):
        op = made(name, *numbers)
        assert getattr(op, f"destroy_{name}")(0) == 0 and not op._rules
    with pytest.raises(AttributeError, match="optimc has no zenflow_adam_create: for ZenFlow"):
        ops.AdamOp().zenflow_adam_create(0)


# ------------------------------------------------------------------------------------- within DeepSpeed


@pytest.fixture
def installing(monkeypatch):
    """A function that gives `optimc.deepspeed` beside a DeepSpeed whose builders have these attributes."""
    def made(**attributes):
        builder = types.ModuleType("deepspeed.ops.op_builder")
        for name in ("Adam", "Lion", "Adagrad"):
            setattr(builder, f"CPU{name}Builder", type(name, (), {"NAME": f"cpu_{name.lower()}", **attributes}))
        package, within = types.ModuleType("deepspeed"), types.ModuleType("deepspeed.ops")
        package.__version__, within.op_builder, package.ops = "0.1", builder, within
        for module in (package, within, builder):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.delitem(sys.modules, "optimc.deepspeed", raising=False)
        try:
            return importlib.import_module("optimc.deepspeed")
        finally:
            sys.modules.pop("optimc.deepspeed", None)
    return made


def test_ops_are_put_where_builders_look(installing):
    place = {}
    module = installing(_loaded_ops=place)
    module.install()
    first = dict(place)
    assert {name: type(op) for name, op in place.items()} == ops.OPS
    module.install()
    assert place == first


@pytest.mark.parametrize("attributes,message", [
    ({}, "deepspeed 0.1 has no place where optimc could put its cpu_adam"),
    ({"_loaded_ops": {}, "NAME": "none"}, "deepspeed 0.1 has no place where optimc could put its cpu_adam"),
    ({"_loaded_ops": {"cpu_lion": object()}}, r"has loaded a cpu_lion of its own: call optimc.deepspeed.install"),
])
def test_a_deepspeed_without_the_place_is_refused(installing, attributes, message):
    with pytest.raises(RuntimeError, match=message):
        installing(**attributes).install()
    assert "cpu_adam" not in attributes.get("_loaded_ops", {})


@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")
def test_jobs_of_deepspeed_train_as_with_torch_and_resume(tmp_path):
    program = Path(__file__).with_name("deepspeed_program.py")
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": search_path()})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("stage") == 4


@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")
def test_deepspeeds_classes_step_and_take_back(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    importlib.import_module("optimc.deepspeed").install()
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.lion import DeepSpeedCPULion
    for cls in (DeepSpeedCPUAdam, DeepSpeedCPULion, DeepSpeedCPUAdagrad):
        for dtype, wide in itertools.product(TYPES, (True, False)):
            p = torch.nn.Parameter(some(100, dtype=dtype))
            optimizer, before = cls([p], lr=0.1, fp32_optimizer_states=wide), p.detach().clone()
            p.grad = some(100, dtype=dtype, seed=1)
            optimizer.step()
            assert (p != before).all()
    p = torch.nn.Parameter(some(100))
    optimizer, before = DeepSpeedCPUAdam([p]), p.detach().clone()
    p.grad = some(100, seed=1)
    optimizer.step_subgroup(0)
    optimizer.rollback_subgroup(0)
    torch.testing.assert_close(p.detach(), before)
    table = torch.nn.Embedding(10, 4, sparse=True)
    optimizer, before = DeepSpeedCPUAdagrad(table.parameters()), table.weight.detach().clone()
    table(torch.tensor([3, 7])).sum().backward()
    table.weight.grad = table.weight.grad.coalesce()
    optimizer.step()
    assert (table.weight != before).any(dim=1).nonzero().flatten().tolist() == [3, 7]
