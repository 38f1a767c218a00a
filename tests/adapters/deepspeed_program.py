"""A job of DeepSpeed on optimc's kernels: ZeRO 1 to 3 with the optimizer offloaded, float32 and bfloat16.

test_deepspeed.py runs it in a process of its own, with the folder for a checkpoint as its argument.
"""

import logging
import os
import socket
import sys


def main(folder):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    import torch

    import optimc.deepspeed
    optimc.deepspeed.install()
    import deepspeed
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    deepspeed.utils.logger.setLevel(logging.ERROR)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None     # would be compiled, for other ranks
    deepspeed.init_distributed("gloo")
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 20, generator=generator), torch.randn(64, 3, generator=generator)

    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3))

    def engine(stage, options):
        made = deepspeed.initialize(model=network(), config={
            "train_micro_batch_size_per_gpu": 64, "gradient_clipping": 1.0,
            "optimizer": {"type": "Adam", "params": {"lr": 1e-2}},
            "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}, **options})[0]
        base = made.optimizer.optimizer
        assert type(base) is DeepSpeedCPUAdam and type(base.ds_opt_adam) is optimc.torch.ops.AdamOp
        return made

    def losses(engine):
        dtype, found = next(engine.module.parameters()).dtype, []
        for _ in range(5):
            loss = torch.nn.functional.mse_loss(engine(x.to(dtype)).float(), y)
            engine.backward(loss)
            engine.step()
            found.append(loss.item())
        return found

    def torchs():
        net = network()
        optimizer, found = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0), []
        for _ in range(10):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            found.append(loss.item())
        return found

    masters = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    for stage, options, bound in ((1, {}, 1e-5), (2, {"bf16": {"enabled": True}}, 0.01), (2, {"bf16": masters}, 0.03),
                                  (3, {}, 1e-5)):
        first = engine(stage, options)
        begin = losses(first)
        first.save_checkpoint(folder, tag="run")
        end = losses(first)
        again = engine(stage, options)
        again.load_checkpoint(folder, tag="run")
        assert losses(again) == end, (stage, options, "resumed")
        error = max(abs(a - b) for a, b in zip(begin + end, torchs(), strict=True))
        assert error < bound, (stage, options, error)
        print("stage", stage, error)


if __name__ == "__main__":
    main(sys.argv[1])
