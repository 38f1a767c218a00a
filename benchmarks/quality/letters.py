"""Losses of a transformer whose optimizer stores numbers in fewer bits: python -m benchmarks.quality.letters

The text is that of Python's own help topics.  A transformer of two layers predicts each letter from the 64 before
it, in 800 steps of 16 rows with AdamW, whose rate falls to 0 along a cosine.  The last tenth of the text is for
validation.  Figures: validation losses by seed, and their geometric mean over float32's.  torch computes in float32
with the weights as they are stored.  `nudged` are float32 runs from slightly other weights: what chance does.
"""

import argparse
import pydoc_data.topics

import ml_dtypes
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import optimc

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 4, 2, 64, 16
BFLOAT16, ALL_INT8 = ml_dtypes.bfloat16, {"m": "int8", "v": "int8"}
#: name -> dtype of the weights, arguments
CASES = {
    "slots bfloat16": (np.float32, {"state_dtype": "bfloat16"}),
    "slots int8": (np.float32, {"state_dtype": "int8"}),
    "slots int8, small weights too": (np.float32, {"state_dtype": ALL_INT8}),
    "split": (BFLOAT16, {}),
    "split, slots bfloat16": (BFLOAT16, {"state_dtype": "bfloat16"}),
    "split, slots int8": (BFLOAT16, {"state_dtype": "int8"}),
    "at random": (BFLOAT16, {"master_weights": False}),
    "at random, slots bfloat16": (BFLOAT16, {"master_weights": False, "state_dtype": "bfloat16"}),
    "at random, slots int8": (BFLOAT16, {"master_weights": False, "state_dtype": "int8"}),
    "float16": (np.float16, {}),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.mlp(self.norm_2(x))


class Model(nn.Module):
    def __init__(self, letters):
        super().__init__()
        self.embedding, self.position = nn.Embedding(letters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.embedding(x) + self.position.weight)))


def text():
    """The numbers of the letters for training and for validation, and how many letters there are."""
    topics = pydoc_data.topics.topics
    joined = "".join(topics[name] for name in sorted(topics))
    number = {letter: i for i, letter in enumerate(sorted(set(joined)))}
    numbers = torch.tensor([number[letter] for letter in joined])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], len(number)


def loss_of(model, numbers, rng, rows):
    begins = rng.integers(len(numbers) - CONTEXT, size=rows)
    batch = torch.stack([numbers[i:i + CONTEXT + 1] for i in begins])
    return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train(seed, steps, dtype=np.float32, nudge=0.0, **arguments):
    """The final validation loss."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    training, validation, letters = text()
    model = Model(letters)
    wide = [parameter.detach().numpy() for parameter in model.parameters()]
    wide[0] *= np.float32(1 + nudge)
    weights = [array.astype(dtype) for array in wide]
    rate = optimc.schedules.CosineDecay(3e-3, steps)
    opt = optimc.AdamW(rate, weight_decay=0.01, seed=seed, **arguments)
    opt.build(weights)
    for _ in range(steps):
        model.zero_grad()
        loss_of(model, training, rng, BATCH).backward()
        opt.apply([parameter.grad.numpy() for parameter in model.parameters()])
        for array, weight in zip(wide, weights, strict=True):
            array[...] = weight
    with torch.no_grad():
        rng = np.random.default_rng(0)
        return np.mean([loss_of(model, validation, rng, 256).item() for _ in range(8)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of cases, separated by ;", default=";".join(CASES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def losses(dtype=np.float32, **others):
        return np.array([train(seed, arguments.steps, dtype, **others) for seed in range(arguments.seeds)])

    def report(name, found):
        print(name.ljust(30), *(f"{loss:.4f}" for loss in found),
              f" {np.exp(np.log(found / exact).mean()):.4f}", flush=True)

    exact = losses()
    report("float32", exact)
    report("float32, nudged", losses(nudge=2.0**-12))
    for name in arguments.only.split(";"):
        dtype, others = CASES[name]
        report(name, losses(dtype, **others))


if __name__ == "__main__":
    main()
