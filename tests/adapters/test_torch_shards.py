"""optimc.torch steps DTensors: FSDP2, with offload to the CPU too, and tensor parallel, on two processes."""

import copy
import math

import pytest
from conftest import require

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
pytest.importorskip("torch.distributed.fsdp", reason="this torch has no fully_shard").__dict__.get("fully_shard") \
    or pytest.skip("this torch has no fully_shard", allow_module_level=True)

import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module  # noqa: E402

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is missing")


def model(kind, mesh):
    torch.manual_seed(0)
    width = 8 if kind == "parallel" else 7                  # 7: the last rank has less
    made = torch.nn.Sequential(torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    if kind == "parallel":
        return parallelize_module(made, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    policy = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if kind == "offload" else {}
    fully_shard(made[0], mesh=mesh, **policy)
    return fully_shard(made, mesh=mesh, **policy)


def train(net, optimizer, steps, rank):
    for step in steps:
        torch.manual_seed(2 * step + rank)
        optimizer.zero_grad()
        ((net(torch.randn(4, 5)) - 1) ** 2).mean().backward()
        optimizer.step()


def whole(params):
    return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in params]


def near(a, b, bound=2e-5):
    assert all((p - q).abs().max() <= bound for p, q in zip(a, b, strict=True))


def check_training(kind, name, options, mesh, rank, path):
    """Steps as torch, keeps DTensors in the state, saves and resumes exactly."""
    nets = [model(kind, mesh) for _ in range(3)]
    theirs = getattr(torch.optim, name)(nets[0].parameters(), lr=0.05, **options)
    ours, other = (getattr(ot, name)(net.parameters(), lr=0.05, **options) for net in nets[1:])
    train(nets[0], theirs, range(5), rank)
    train(nets[1], ours, range(5), rank)
    near(whole(nets[0].parameters()), whole(nets[1].parameters()))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        for key, value in theirs.state[p].items():
            mine = ours.state[q][key]
            assert type(mine) is type(value) and mine.shape == value.shape and mine.dtype == value.dtype
            assert not isinstance(value, DTensor) or mine.placements == value.placements
    saved = dict(zip(("model", "optimizer"), get_state_dict(nets[1], ours), strict=True))
    dcp.save(saved, checkpoint_id=path)
    train(nets[2], other, range(1), rank)                   # away from the beginning
    found = dict(zip(("model", "optimizer"), get_state_dict(nets[2], other), strict=True))
    dcp.load(found, checkpoint_id=path)
    set_state_dict(nets[2], other, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    for net, optimizer in ((nets[1], ours), (nets[2], other)):
        train(net, optimizer, range(5, 8), rank)
    near(whole(nets[1].parameters()), whole(nets[2].parameters()), 0)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    train(nets[0], theirs, range(8, 9), rank)
    assert len(get_optimizer_state_dict(nets[1], ours)["state"]) == 4


def check_placements(mesh, rank):
    """A gradient may be spread otherwise than its parameter: sums of it, say."""
    params = [[torch.nn.Parameter(distribute_tensor(torch.arange(6.).reshape(3, 2), mesh, [placement]))
               for placement in (Replicate(), Shard(0), Shard(1))] for _ in range(2)]
    ours, theirs = ot.AdamW(params[0], lr=0.1), torch.optim.AdamW(params[1], lr=0.1)
    for step in range(3):
        for p in (*params[0], *params[1]):
            torch.manual_seed(step + 10 * rank)
            p.grad = DTensor.from_local(torch.randn(3, 2), mesh, [Partial()])
        ours.step()
        theirs.step()
    near(whole(params[0]), whole(params[1]))


def check_storage(mesh, rank):
    """Narrow numbers are DTensors too; codes of 8 bits are refused, for they have no shape."""
    p = torch.nn.Parameter(distribute_tensor(torch.ones(4000, 3).bfloat16(), mesh, [Shard(0)]))
    p.grad = torch.ones_like(p)
    ours = ot.Adam([p], lr=0.25, state_dtype="bfloat16")
    ours.step()
    for key, dtype in (("exp_avg", torch.bfloat16), ("master_param", torch.int16)):
        assert isinstance(ours.state[p][key], DTensor) and ours.state[p][key].dtype == dtype
    assert math.isclose(p.full_tensor().float().mean().item(), 0.75, rel_tol=1e-3)
    with pytest.raises(ValueError, match=r"params\[0\]: a DTensor has no slots of torch.uint8"):
        ot.Adam([p], state_dtype="int8").step()
    ours.reset_master()
    assert not ours.state[p]["master_param"].to_local().any()


def work(rank, path):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{path}/store")
    mesh = init_device_mesh("cpu", (2,))
    for kind, name, options in (("sharded", "AdamW", {}), ("offload", "SGD", {"momentum": 0.9}),
                                ("parallel", "Adagrad", {})):
        check_training(kind, name, options, mesh, rank, f"{path}/{kind}")
    check_placements(mesh, rank)
    check_storage(mesh, rank)
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
