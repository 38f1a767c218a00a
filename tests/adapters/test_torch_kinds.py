"""optimc.torch steps every kind of parameter: complex ones and those with gaps between their elements."""

import copy

import pytest
from conftest import require
from torch_cases import AT_RANDOM, bits, close, each_class, same, set_grads

torch = require("torch")
ot = pytest.importorskip("optimc.torch")


def odd():
    """Complex ones in several orders, ones with gaps, and a plain one between them."""
    def numbers(*shape, dtype=torch.float32):
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))

    return [torch.nn.Parameter(p) for p in (
        numbers(6, 4, dtype=torch.complex64), numbers(4, 3, 2, dtype=torch.complex128).permute(2, 0, 1),
        numbers(dtype=torch.complex64), numbers(10, 8)[:, ::2], numbers(10, 5, 2)[..., 0], numbers(3),
        numbers(6, 8).t()[::2], numbers(5, 6, dtype=torch.complex64)[::2, 1::2], numbers(2)[::2][0])]


def make(name, params, module=ot, **options):
    """Two groups, so that a rate of each is needed."""
    return getattr(module, name)([{"params": params[:4]}, {"params": params[4:], "lr": 0.02}], lr=0.01, **options)


def apart(name):
    return pytest.skip("needs whole tensors of real numbers") if name in ("Muon", "Adafactor") else None


@each_class
def test_odd_parameters_step_as_torchs(name):
    apart(name)
    a, b = odd(), odd()
    ours, theirs = make(name, a), make(name, b, torch.optim)
    for step in range(8):
        set_grads(step, a, b)
        if step in (2, 3):
            a[0].grad = b[0].grad = a[4].grad = b[4].grad = None
        if step == 5:
            for p in (*a, *b):
                p.data = p.data.clone(memory_format=torch.preserve_format)
        if step == 6:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        ours.step()
        theirs.step()
        close(a, b)
    for p, q in zip(a, b, strict=True):
        for key, value in theirs.state[q].items():
            mine = ours.state[p][key]
            if isinstance(value, torch.Tensor):
                assert mine.shape == value.shape and (mine.dtype == value.dtype or value.dim() == 0)


def test_elements_between_are_not_touched():
    whole = torch.ones(4, 6)
    p = torch.nn.Parameter(whole[:, ::2])
    for ours in (ot.Adam([p], lr=0.1), ot.SGD([p], lr=0.1, momentum=0.9)):
        for _ in range(3):
            p.grad = torch.ones(4, 3)
            ours.step()
    assert (whole[:, 1::2] == 1).all() and (whole[:, ::2] < 0.5).all()


def test_parameters_may_interlock():
    whole = torch.ones(4, 6)
    a, b, c = (torch.nn.Parameter(part) for part in (whole[:, ::2], whole[:, 1::2], whole[:2]))
    ours = ot.SGD([a, b], lr=0.5)
    with pytest.raises(ValueError, match=r"params\[[01]\] and params\[2\] overlap in memory"):
        ours.add_param_group({"params": [c]})
    a.grad, b.grad = torch.ones(4, 3), -torch.ones(4, 3)
    ours.step()
    assert (whole[:, ::2] == 0.5).all() and (whole[:, 1::2] == 1.5).all()


@pytest.mark.parametrize("options", [{}, {**AT_RANDOM, "seed": 3}, {"master_weights": False}, {"state_dtype": "int8"},
                                     {"state_dtype": "bfloat16"}], ids=str)
def test_storage_of_parameters_with_gaps(options):
    """The bits are those of a dense parameter."""
    values = torch.randn(40, 30).bfloat16()
    a, b = [torch.nn.Parameter(values.repeat_interleave(2, 1)[:, ::2])], [torch.nn.Parameter(values.clone())]
    ours, dense = ot.Adam(a, lr=0.01, **options), ot.Adam(b, lr=0.01, **options)
    for step in range(5):
        set_grads(step, a, b)
        if step == 3:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        ours.step()
        dense.step()
        assert same(a[0].detach(), b[0].detach())
    for key, value in dense.state[b[0]].items():
        if key != "step":
            assert torch.equal(bits(ours.state[a[0]][key]), bits(value))


def test_storage_of_complex_parameters_is_refused():
    p = torch.nn.Parameter(torch.ones(5000, dtype=torch.complex64))
    p.grad = torch.ones(5000, dtype=torch.complex64)
    for state_dtype in ("bfloat16", "int8"):
        with pytest.raises(ValueError, match=r"params\[0\]: a complex parameter has no slots of torch\."):
            ot.Adam([p], state_dtype=state_dtype).step()
    assert (p == 1).all()


def test_lazy_conjugates_are_refused_as_parameters():
    numbers = torch.ones(3, dtype=torch.complex64).conj()
    for lazy, word in ((numbers, "conj"), (numbers.imag.as_strided((3,), (1,)), "neg")):
        with pytest.raises(ValueError, match=rf"params\[1\]: expected the numbers in memory, .* resolve_{word}"):
            ot.AdamW([torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(lazy)])


def test_conjugates_and_sparse_gradients_of_complex_parameters():
    a, b = ([torch.nn.Parameter(torch.ones(5, 2, dtype=torch.complex64))] for _ in range(2))
    ours, theirs = ot.Adam(a, lr=0.1), torch.optim.Adam(b, lr=0.1)
    for step in range(3):
        set_grads(step, b)
        a[0].grad = b[0].grad.conj().clone().conj()
        assert a[0].grad.is_conj()
        ours.step()
        theirs.step()
    close(a, b)
    a, b = ([torch.nn.Parameter(torch.ones(5, 2, dtype=torch.complex64))] for _ in range(2))
    ours, dense = ot.SGD(a, lr=0.1), ot.SGD(b, lr=0.1)
    rows = torch.randn(3, 2, dtype=torch.complex64)
    a[0].grad = torch.sparse_coo_tensor([[4, 0, 4]], rows, (5, 2), check_invariants=True)
    b[0].grad = a[0].grad.to_dense()
    ours.step()
    dense.step()
    close(a, b)
    assert (a[0][1:4] == 1).all()


def test_a_parameter_may_become_of_another_kind():
    a, b = [torch.nn.Parameter(torch.ones(4, 6))], [torch.nn.Parameter(torch.ones(4, 6))]
    ours, theirs = ot.Adam(a, lr=0.1), torch.optim.Adam(b, lr=0.1)
    for step in range(8):
        if step in (2, 3):
            a[0].data = a[0].data.repeat_interleave(2, 1)[:, ::2]
        if step == 5:
            a[0].data = a[0].data.contiguous()
        set_grads(step, a, b)
        ours.step()
        theirs.step()
        close(a, b)


def test_state_of_complex_parameters_may_move():
    a, b = ([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))] for _ in range(2))
    ours, theirs = ot.Adam(a, lr=0.1), torch.optim.Adam(b, lr=0.1)
    for step in range(6):
        set_grads(step, a, b)
        ours.step()
        theirs.step()
        for optimizer, params in ((ours, a), (theirs, b)):
            state = optimizer.state[params[0]]
            if step == 2:
                state["exp_avg"] = state["exp_avg"] * 2
            elif step == 3:
                state["exp_avg_sq"].data = state["exp_avg_sq"] * 2
            elif step == 4:
                state["exp_avg"].mul_(0.5)
    close(a, b)


def test_a_stale_backward_is_an_error():
    for p in odd()[::3]:
        loss = (p ** 2).abs().sum() * p.abs().sum()
        p.grad = torch.ones_like(p)
        ot.Adam([p], lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
