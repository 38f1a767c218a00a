"""Sparse gradients in optimc.torch: against torch where it takes them, else against optimc.Rows and dense steps."""

import copy
import io
import threading

import numpy as np
import pytest
from torch_cases import AT_RANDOM, BY_ROWS, HALVES, bits, close, each_half, ot, same, torch

import optimc
from optimc.torch import tensors

ROWS, WIDTH = 40, 5
#: options of classes whose sparse step torch has too
IN_TORCH = [("SparseAdam", {}), ("SparseAdam", {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}),
            ("SparseAdam", {"lr": 0.02, "maximize": True}), ("SGD", {"lr": 0.05}),
            ("SGD", {"lr": 0.05, "maximize": True}), ("Adagrad", {"lr": 0.1}),
            ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "maximize": True})]
each_in_torch = pytest.mark.parametrize("name,options", IN_TORCH, ids=[f"{name}-{row}" for name, row in IN_TORCH])
each_taking = pytest.mark.parametrize("name", [*BY_ROWS, "SparseAdam"])


@pytest.fixture(autouse=True)
def invariants():
    with torch.sparse.check_sparse_tensor_invariants():
        yield


def table(dtype=torch.float32, shape=(ROWS, WIDTH), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def gradient(param, step, k=30, below=12, coalesced=False):
    """A sparse gradient with repeated rows."""
    generator = torch.Generator().manual_seed(step)
    indices = torch.randint(0, below, (1, k), generator=generator)
    values = torch.randn((k, *param.shape[1:]), generator=generator, dtype=torch.float64).to(param.dtype)
    grad = torch.sparse_coo_tensor(indices, values, param.shape)
    return grad.coalesce() if coalesced else grad


def rows(grad):
    return optimc.Rows(grad._indices()[0].numpy(), grad._values().detach().numpy())


def options_of(name):
    return {"lr": 0.05} if name != "Rprop" else {}


# ----------------------------------------------------------------------------------- against torch

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("coalesced", [False, True], ids=["repeated", "coalesced"])
@each_in_torch
def test_steps_and_state_are_those_of_torch(name, options, coalesced, dtype):
    a, b = table(dtype), table(dtype)
    ours, theirs = getattr(ot, name)([a], **options), getattr(torch.optim, name)([b], **options)
    for step in range(20):
        a.grad = gradient(a, step, coalesced=coalesced)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    bound = 2e-6 if dtype == torch.float32 else 1e-14
    close([a], [b], bound)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine["state"].keys() == other["state"].keys()
    for key, value in other["state"].get(0, {}).items():
        if key == "step":
            assert type(mine["state"][0][key]) is type(value) and mine["state"][0][key] == value == 20
        else:
            close([mine["state"][0][key]], [value], bound)


@each_in_torch
def test_state_moves_to_torch_and_back(name, options):
    a, b = table(), table()
    theirs = getattr(torch.optim, name)([b], **options)
    ours = getattr(ot, name)([a], **options)
    for step in range(12):
        a.grad = gradient(a, step)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
        if step % 3 == 2:
            state = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
            ours, theirs = getattr(ot, name)([a], **options), getattr(torch.optim, name)([b], **options)
            ours.load_state_dict(state[1])
            theirs.load_state_dict(state[0])
    close([a], [b], 2e-6)


def test_momentum_that_torch_keeps_sparse_is_loaded():
    a, b = table(), table()
    theirs = torch.optim.SGD([b], lr=0.1, momentum=0.9)
    b.grad = gradient(b, 0)
    theirs.step()
    assert theirs.state[b]["momentum_buffer"].is_sparse
    ours = ot.SGD([a], lr=0.1, momentum=0.9)
    ours.load_state_dict(theirs.state_dict())
    close([ours.state[a]["momentum_buffer"]], [b.grad.to_dense()], 1e-6)
    a.grad = gradient(a, 1)
    ours.step()
    ours.state[a]["momentum_buffer"] = b.grad
    with pytest.raises(ValueError, match=r"params\[0\]: state 'momentum_buffer': expected shape"):
        ours.step()


@pytest.mark.parametrize("bag", [False, True], ids=["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "Adagrad"])
def test_an_embedding_trains_with_one_changed_line(name, bag):
    ends = []
    for library in (ot, torch.optim):
        torch.manual_seed(0)
        layer = (torch.nn.EmbeddingBag if bag else torch.nn.Embedding)(ROWS, WIDTH, sparse=True)
        optimizer = getattr(library, name)(layer.parameters(), lr=0.05)
        losses = []
        for step in range(20):
            indices = torch.randint(0, 15, (8, 4), generator=torch.Generator().manual_seed(step % 4))
            optimizer.zero_grad(set_to_none=bool(step % 2))
            loss = (layer(indices) ** 2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        ends.append(layer.weight)
    close([ends[0]], [ends[1]], 2e-6)


# ------------------------------------------------------------------------- against optimc.Rows and dense steps

@pytest.mark.parametrize("without_table", [False, True], ids=["exchange table", "NumPy views"])
@each_taking
def test_a_step_is_that_of_optimc_rows(monkeypatch, name, without_table):
    if without_table:
        monkeypatch.setattr(tensors, "EXCHANGE", None)
    p = table()
    w = p.detach().numpy().copy()
    wrapped = getattr(ot, name)([p], **options_of(name))
    ours = optimc.from_torch(wrapped)
    for step in range(6):
        p.grad = gradient(p, step)
        ours.apply([rows(p.grad)], [w])
        wrapped.step()
        assert np.array_equal(w, p.detach().numpy())
        assert (w[12:] == table().detach().numpy()[12:]).all()


@pytest.mark.parametrize("name", BY_ROWS)
def test_a_gradient_of_all_rows_is_a_dense_one(name):
    a, b = table(), table()
    one, two = (getattr(ot, name)([p], **options_of(name)) for p in (a, b))
    for step in range(5):
        b.grad = torch.randn(b.shape, generator=torch.Generator().manual_seed(step))
        a.grad = b.grad.to_sparse(1) if step % 2 else b.grad
        one.step()
        two.step()
    assert same(a, b)


@each_half
@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "AdamW"])
def test_parameters_of_16_bits_have_masters(name, dtype):
    half = table(dtype, (ROWS, 64))
    real = torch.nn.Parameter(half.detach().float())
    pair = [getattr(ot, name)([p], lr=0.01) for p in (half, real)]
    for step in range(5):
        half.grad = gradient(half, step)
        real.grad = gradient(half, step).float()
        for optimizer in pair:
            optimizer.step()
    if dtype == torch.float16:
        assert same(half, real.half())
    else:
        assert (half.float() - real).abs().max() <= 2 ** -8 * real.abs().max()


@pytest.mark.parametrize("storage", [{"state_dtype": "bfloat16"}, {"state_dtype": "int8"}, AT_RANDOM,
                                     {"master_weights": False}], ids=str)
def test_state_in_fewer_bits(storage):
    p = table(HALVES[0], (ROWS, 256))
    ours = ot.SparseAdam([p], lr=0.01, **storage)
    before = p.detach().clone()
    for step in range(4):
        p.grad = gradient(p, step)
        ours.step()
    assert same(p[12:], before[12:]) and (p[:12] != before[:12]).any()
    again = ot.SparseAdam([p], lr=0.01, **storage)
    again.load_state_dict(ours.state_dict())
    for key, tensor in ours.state[p].items():
        assert tensor == 4 if key == "step" else same(tensor, again.state[p][key])


def test_repeated_rows_are_added_in_order_of_occurrence():
    p = torch.nn.Parameter(torch.zeros(3, 1))
    values = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1, 1, 1]]), values, (3, 1))
    ot.SGD([p], lr=1.0).step()
    expected = np.zeros(1, np.float32)
    for value in values.numpy():
        expected += value
    assert p[1].item() == -expected[0] and not p.grad.is_coalesced()


# ------------------------------------------------------------------------------- training programs

def mixed():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"e": torch.nn.Embedding(ROWS, WIDTH, sparse=True), "l": torch.nn.Linear(WIDTH, 2)})


def backward(model, step):
    indices = torch.randint(0, 15, (9,), generator=torch.Generator().manual_seed(step))
    loss = (model["l"](model["e"](indices)) ** 2).mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("name", BY_ROWS)
def test_embeddings_and_dense_layers_in_one_optimizer(name):
    model, apart = mixed(), mixed()
    whole = getattr(ot, name)(model.parameters(), **options_of(name))
    parts = [getattr(ot, name)(apart[key].parameters(), **options_of(name)) for key in "el"]
    for step in range(6):
        for optimizer in (whole, *parts):
            optimizer.zero_grad()
        backward(model, step)
        backward(apart, step)
        for optimizer in (whole, *parts):
            optimizer.step()
    assert all(map(same, model.parameters(), apart.parameters()))
    assert whole._cohorts.turn.step is not None or tensors.EXCHANGE is None


def test_groups_schedulers_hooks_and_closures():
    ends = []
    for library in (ot, torch.optim):
        model = mixed()
        model["l"].weight.requires_grad_(False)
        optimizer = library.SparseAdam([{"params": [model["e"].weight]}, {"params": [table()], "lr": 0.3}], lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        seen = []
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append(1))
        other = optimizer.param_groups[1]["params"][0]
        for step in range(6):
            def closure(step=step, optimizer=optimizer, model=model, other=other):
                optimizer.zero_grad()
                loss = backward(model, step)
                if step > 2:                        # rests until then
                    other.grad = gradient(other, step)
                return loss
            assert optimizer.step(closure).item() > 0
            scheduler.step()
        assert len(seen) == 6
        assert [optimizer.state[p]["step"] for p in (model["e"].weight, other)] == [6, 3]
        ends.append([model["e"].weight, other])
    close(*ends, 5e-6)


def test_a_gradient_scale_and_an_overflow():
    a, b = table(), table()
    ours, plain = ot.SparseAdam([a], lr=0.1), ot.SparseAdam([b], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(4):
        b.grad = gradient(b, step)
        scaler.scale(torch.zeros(()))
        a.grad = torch.sparse_coo_tensor(b.grad._indices(), 8 * b.grad._values(), b.shape)
        if step == 2:
            a.grad._values()[3, 1] = float("inf")
        else:
            plain.step()
        scaler.step(ours)
        scaler.update(8.0)
    assert same(a, b) and ours.state[a]["step"] == 3


def test_copies_and_files_keep_the_run():
    a = table()
    ours = ot.SparseAdam([a], lr=0.1)
    a.grad = gradient(a, 0)
    ours.step()
    file = io.BytesIO()
    torch.save([a, ours], file)
    file.seek(0)
    for p, again in (torch.load(file, weights_only=False), copy.deepcopy([a, ours])):
        q = again.param_groups[0]["params"][0]
        assert q is p and again.state[q]["step"] == 1
        for param, optimizer in ((a, copy.deepcopy(ours)), (q, again)):
            param = optimizer.param_groups[0]["params"][0]
            param.grad = gradient(param, 1)
            optimizer.step()
            assert optimizer.state[param]["step"] == 2
    ours.state[a]["step"] = 10                          # a program's own count
    a.grad = gradient(a, 1)
    ours.step()
    assert ours.state[a]["step"] == 11


def test_gradients_that_change_their_kind():
    a, b = table(), table()
    ours, dense = ot.SGD([a], lr=0.1), ot.SGD([b], lr=0.1)
    for step in range(8):
        b.grad = gradient(b, step).to_dense()
        a.grad = gradient(a, step).to_dense() if step % 3 == 1 else gradient(a, step)
        if step == 5:
            a.data = a.data.clone()
        if step == 6:
            a.grad = None
            ours.step()
            continue
        ours.step()
        dense.step() if step != 6 else None
    close([a], [b], 1e-6)


def test_empty_gradients_count():
    p, q = table(), table()
    for param, optimizer in ((p, ot.SparseAdam([p])), (q, torch.optim.SparseAdam([q]))):
        param.grad = gradient(param, 0, k=0)
        optimizer.step()
        assert same(param, table()) and optimizer.state[param]["step"] == 1
        assert not optimizer.state[param]["exp_avg"].any()


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 2, 3), (ROWS, 0), (ROWS, 1)], ids=str)
def test_shapes(shape):
    a, b = table(shape=shape), table(shape=shape)
    for step in range(3):
        a.grad = gradient(a, step)
        b.grad = a.grad.clone()
    ot.Adagrad([a], lr=0.1).step()
    torch.optim.Adagrad([b], lr=0.1).step()
    close([a.flatten()], [b.flatten()], 1e-6) if a.numel() else None


def test_views_and_gradients_with_a_graph():
    p = table()
    values = torch.complex(torch.zeros(3, WIDTH), torch.ones(3, WIDTH)).conj().imag      # minus one, by a bit
    wide = torch.ones(1, WIDTH).expand(3, WIDTH)
    indices = torch.tensor([[4, 2, 4]])
    for given, sign in ((values, -1), (wide, 1), (wide.clone().requires_grad_(), 1)):
        before = p.detach().clone()
        grad = torch.sparse_coo_tensor(indices, given, p.shape)
        p.grad = grad.detach() if not given.requires_grad else grad
        ot.SGD([p], lr=1.0).step()
        expected = torch.zeros(ROWS, WIDTH)
        expected[2], expected[4] = sign, 2 * sign
        close([before - p], [expected], 1e-6)


def test_gradients_accumulate_after_a_step():
    model = mixed()
    ours = ot.Adam(model.parameters())
    backward(model, 0)
    ours.step()
    before = model["e"].weight.detach().clone()
    backward(model, 1)
    model["e"].weight.grad *= 2
    ours.step()
    changed = (model["e"].weight != before).any(1).nonzero().flatten()
    assert changed.tolist() == model["e"].weight.grad.coalesce().indices()[0].tolist()


# ------------------------------------------------------------------------------------- refused steps

def spoiled(p, kind):
    grad = gradient(p, 1)
    indices, values = grad._indices().clone(), grad._values()
    if kind == "range":
        indices[0, 7] = ROWS
    if kind == "negative":
        indices[0, 7] = -3
    with torch.sparse.check_sparse_tensor_invariants(False):
        if kind in ("range", "negative"):
            return torch.sparse_coo_tensor(indices, values, p.shape)
    if kind == "elements":
        return torch.eye(ROWS, WIDTH).to_sparse()
    if kind == "overlap":
        return torch.sparse_coo_tensor(indices[:, :ROWS], p.detach()[:30], p.shape)
    raise AssertionError(kind)


@pytest.mark.parametrize("without_table", [False, True], ids=["exchange table", "NumPy views"])
@pytest.mark.parametrize("before", [0, 2], ids=["first step", "later step"])
@pytest.mark.parametrize("kind,error,message", [
    ("range", ValueError, r"grads\[1\]\.indices\[7\]: expected a row from 0 to 39, got 40"),
    ("negative", ValueError, r"grads\[1\]\.indices\[7\]: expected a row from 0 to 39, got -3"),
    ("elements", TypeError, r"grads\[1\]: expected a dense tensor, or a sparse one .*, got sparse_dim 2"),
    ("overlap", ValueError, r"grads\[1\] overlaps params\[1\] in memory"),
])
def test_bad_sparse_gradients_change_nothing(monkeypatch, kind, error, message, before, without_table):
    if without_table:
        monkeypatch.setattr(tensors, "EXCHANGE", None)
    params = [table(), table(seed=1)]
    ours = ot.Adagrad(params, lr=0.1)
    for step in range(before):
        for p in params:
            p.grad = gradient(p, step)
        ours.step()
    old, state = [p.detach().clone() for p in params], copy.deepcopy(ours.state_dict()["state"])
    params[0].grad, params[1].grad = gradient(params[0], 1), spoiled(params[1], kind)
    for _ in range(2):
        with pytest.raises(error, match=message):
            ours.step()
        assert all(map(same, params, old))
    now = ours.state_dict()["state"]
    assert all(torch.equal(torch.as_tensor(now[i][key]), torch.as_tensor(value))
               for i in state for key, value in state[i].items())
    params[1].grad = gradient(params[1], 1)
    ours.step()
    assert not same(params[1], old[1])


def test_what_cannot_be_stepped_by_rows():
    across = torch.nn.Parameter(torch.ones(5, 4).t())
    across.grad = torch.ones(4, 5).to_sparse(1)
    with pytest.raises(ValueError, match=r"grads\[0\]: .* strides \(1, 4\): sparse gradients need one"):
        ot.SGD([across], lr=0.1).step()
    p = table(shape=(200, 100))
    p.grad = gradient(p, 0)
    with pytest.raises(ValueError, match=r"grads\[0\]: its weight, .* has slots in 8 bits"):
        ot.Adam([p], state_dtype="int8").step()
    assert same(p, table(shape=(200, 100)))


def test_sparse_adam_refuses_dense_gradients_as_torch_does():
    for library in (ot, torch.optim):
        params = [table(), table()]
        optimizer = library.SparseAdam(params)
        params[0].grad, params[1].grad = gradient(params[0], 0), torch.ones(ROWS, WIDTH)
        with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam"):
            optimizer.step()
        assert same(params[0], table())
    with pytest.raises(ValueError, match="learning rate"):
        ot.SparseAdam([table()], lr=-1.0)
    with pytest.raises(TypeError, match="weight_decay"):
        ot.SparseAdam([table()], weight_decay=0.1)


def test_threads_share_an_optimizer():
    p = table(shape=(20000, 64))
    ours = ot.SparseAdam([p], lr=1e-3)
    p.grad = gradient(p, 0, k=5000, below=20000)
    errors = []

    def work():
        try:
            for _ in range(5):
                ours.step()
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    q = table(shape=(20000, 64))
    q.grad = p.grad
    alone = ot.SparseAdam([q], lr=1e-3)
    for _ in range(15):
        alone.step()
    assert not errors and ours.state[p]["step"] == 15 and torch.equal(bits(p), bits(q))
