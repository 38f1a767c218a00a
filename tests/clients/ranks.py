"""One of two ranks over gloo: a small net under DDP or FSDP2, with torch's class and optimc's, saved and resumed.

    python ranks.py RANK FILE KIND          KIND: ddp or fsdp2; both ranks meet in FILE

It prints the largest difference of the weights, and that of a resumed run from one in one piece.
"""

import sys

import torch
from torch import distributed as dist
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import optimc.torch

STEPS = 8


def made(kind, cls):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 33), torch.nn.Tanh(), torch.nn.Linear(33, 1))
    if kind == "ddp":
        net = DistributedDataParallel(net)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
    return net, cls(net.parameters(), lr=0.01, weight_decay=0.1)


def train(net, optimizer, steps):
    for step in steps:
        x = torch.randn(16, 10, generator=torch.Generator().manual_seed(2 * step + dist.get_rank()))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x), x[:, :1]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()


def weights(net):
    options = states.StateDictOptions(full_state_dict=True)
    return torch.cat([value.flatten() for value in states.get_model_state_dict(net, options=options).values()])


def resumed(kind, cls):
    """A run that stops half way and goes on from its state dicts in new objects."""
    first = made(kind, cls)
    train(*first, range(STEPS // 2))
    model, state = states.get_state_dict(*first)
    second = made(kind, cls)
    states.set_state_dict(*second, model_state_dict=model, optim_state_dict=state)
    train(*second, range(STEPS // 2, STEPS))
    return weights(second[0])


def main():
    rank, file, kind = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=2)
    ends = []
    for cls in (optimc.torch.AdamW, torch.optim.AdamW):
        net, optimizer = made(kind, cls)
        train(net, optimizer, range(STEPS))
        ends.append(weights(net))
    again = resumed(kind, optimc.torch.AdamW)
    if rank == "0":
        print(float((ends[0] - ends[1]).abs().max()), float((ends[0] - again).abs().max()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
