"""Shards are one checkpoint: a job of any size reads what another wrote, and no other shard fits."""

import itertools
import os
import random

import numpy as np
import pytest
from cases import assert_same_bits, values
from checkpoint_cases import OPTIONS, same, steps, weights_of

import optimc
from optimc import checkpoint


def save_in_shards(path, optimizer, parts, token="0123456789abcdef", grain=1):
    """Writes a checkpoint as `parts` ranks would, each with its part of every weight; gives what the index says."""
    description, tensors = optimizer._export()
    sizes = [int(np.prod(shape)) for shape, _ in description["shapes"]]
    orders = description.pop("orders", "C" * len(sizes))
    cuts = [[size * k // parts // grain * grain for k in range(parts)] + [size] for size in sizes]
    files = [[[i, low, high] for i, (low, high) in enumerate(own) if low < high]
             for own in zip(*(itertools.pairwise(cut) for cut in cuts), strict=True)]
    for rank, segments in enumerate(files):
        held = {i: (low, high) for i, low, high in segments}
        numbered = [(name, int(name.rpartition("/")[2]), array) for name, array in tensors.items()]
        blocks = {}
        for name, i, array in numbered:
            if i in held:
                low, high = (-(-end // checkpoint.shards.unit_of(name)) for end in held[i])
                blocks[name] = array.reshape(-1, order=orders[i])[low:high], low
        checkpoint.shards.write_shard(path, token, rank, blocks)
    shards = {"token": token, "orders": orders, "files": files}
    checkpoint.shards.write_index(path, description, shards)
    return description, shards


@pytest.fixture
def stepped(monkeypatch):
    """An optimizer with state, and its weights; shards are written in blocks of seven elements."""
    monkeypatch.setattr(checkpoint.shards, "SHARD_BLOCK", 7)
    optimizer, weights = optimc.AdamW(**OPTIONS["everything"]), weights_of()
    steps(optimizer, weights, range(1, 6))
    return optimizer, weights


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shards_are_one_checkpoint(stepped, tmp_path, parts):
    optimizer, weights = stepped
    save_in_shards(tmp_path / "x", optimizer, parts)
    again, moved = optimc.load(tmp_path / "x"), {k: w.copy() for k, w in weights.items()}
    steps(optimizer, weights, range(6, 9))
    steps(again, moved, range(6, 9))
    same(again, optimizer)
    for k in weights:
        assert_same_bits(moved[k], weights[k])


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def narrow(request, monkeypatch):
    """An optimizer with slots in 8 and 16 bits, and its weights."""
    monkeypatch.setattr(checkpoint.shards, "SHARD_BLOCK", 300)
    dtype = optimc.base.storage.TYPES[request.param].dtype
    weights = [np.ones((50, 30), dtype, order="F"), np.ones(700, dtype), np.ones((), dtype)]
    optimizer = optimc.Adam(state_dtype={"m": "bfloat16", "v": "int8"})
    step(optimizer, weights)
    return optimizer, weights


def step(optimizer, weights):
    rng = np.random.default_rng(optimizer.iterations)
    optimizer.apply([values(rng, w.shape, np.float32) for w in weights], weights)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shards_with_fewer_bits_are_one_checkpoint(narrow, tmp_path, parts):
    optimizer, weights = narrow
    save_in_shards(tmp_path / "x", optimizer, parts, grain=256)
    again, moved = optimc.load(tmp_path / "x"), [w.copy(order="K") for w in weights]
    for _ in range(2):
        step(optimizer, weights)
        step(again, moved)
    same(again, optimizer)
    for w, m in zip(weights, moved, strict=True):
        assert_same_bits(m, w)


def test_shards_that_divide_a_block_of_codes_are_refused(narrow, tmp_path):
    save_in_shards(tmp_path / "x", narrow[0], 2)
    with pytest.raises(optimc.CheckpointError, match=r"'v.scale/0' is cut within a block of 256"):
        optimc.load(tmp_path / "x")


def test_shards_of_other_types_are_refused(narrow, tmp_path):
    save_in_shards(tmp_path / "x", narrow[0], 2, grain=256)
    shard = tmp_path / "x.0123456789abcdef.1"
    tensors, _ = checkpoint.format.read(shard)
    tensors["m/1@256"] = tensors["m/1@256"].astype(np.float32)
    checkpoint.format.write(shard, tensors, {"shard": "0123456789abcdef"})
    with pytest.raises(optimc.CheckpointError, match="expected uint16, as before, got float32"):
        optimc.load(tmp_path / "x")


@pytest.mark.parametrize("length", [214, 215, 255])
def test_an_index_with_a_long_name(stepped, tmp_path, length):
    optimizer, _ = stepped
    path = tmp_path / ("n" * length)
    save_in_shards(path, optimizer, 2, "0" * 16)
    save_in_shards(path, optimizer, 2)
    same(optimc.load(path), optimizer)
    assert len(os.listdir(tmp_path)) == 3               # the shards of the first save are gone


def test_only_blocks_that_are_wanted_are_read(stepped, tmp_path, monkeypatch):
    optimizer, _ = stepped
    description, shards = save_in_shards(tmp_path / "x", optimizer, 2)
    read, reached = checkpoint.format._read_all, []
    monkeypatch.setattr(checkpoint.format, "_read_all", lambda path, file, array, advance: (
        reached.append(array.nbytes), read(path, file, array, advance))[1])
    whole = {name: array.copy() for name, array in optimizer._export()[1].items()}
    for low, high in ((0, 24), (3, 9), (11, 13), (20, 21), (5, 5)):
        reached.clear()
        pieces = [(0, 0)] * 4 + [(low, high)]                       # of "e", 24 elements of four bytes
        vectors, _ = checkpoint.shards.read_shards(tmp_path / "x", shards, description, pieces)
        assert set(vectors) == ({name for name in whole if name.endswith("/4")} if low < high else set())
        for name, vector in vectors.items():
            assert_same_bits(vector, whole[name].reshape(-1)[low:high])
        assert sum(reached) <= len(vectors) * 4 * (high - low + 2 * 6)


def test_later_saves_replace_shards(stepped, tmp_path):
    optimizer, weights = stepped
    save_in_shards(tmp_path / "x", optimizer, 3)
    optimizer.save(tmp_path / "x.0123456789abcdee")                 # files of others that look alike
    optimizer.save(tmp_path / "y")
    (tmp_path / ".x.0123456789abcdef.1.0123456789abcdef.tmp").touch()
    steps(optimizer, weights, [6])
    save_in_shards(tmp_path / "x", optimizer, 2, token="f" * 16)
    assert sorted(os.listdir(tmp_path)) == ["x", "x.0123456789abcdee", f"x.{'f' * 16}.0", f"x.{'f' * 16}.1", "y"]
    same(optimc.load(tmp_path / "x"), optimizer)


def test_shards_that_do_not_fit_are_refused(stepped, tmp_path):
    optimizer, _ = stepped
    path, changes = tmp_path / "x", {
        "do not cover all weights": lambda shards: shards["files"].pop(),
        "overlap or do not": lambda shards: shards["files"][1].append(shards["files"][0][0]),
        "overlap": lambda shards: shards["files"][0].append([9, 0, 1]),
        "or do not cover": lambda shards: shards["files"][0].__setitem__(0, [0, 0, 6.0]),
        "invalid shard token": lambda shards: shards.__setitem__("token", "../../../etc/pass"),
        "x: ": lambda shards: shards.pop("files"),
        "index": lambda shards: shards.__setitem__("orders", "C"),
        "order": lambda shards: shards.__setitem__("orders", "CCXXX"),
    }
    for message, change in changes.items():
        description, shards = save_in_shards(path, optimizer, 2)
        change(shards)
        checkpoint.shards.write_index(path, description, {"token": "0" * 16} | shards)
        with pytest.raises(optimc.CheckpointError, match=message):
            optimc.load(path)


def test_damaged_shards_are_refused(stepped, tmp_path):
    optimizer, _ = stepped
    save_in_shards(tmp_path / "x", optimizer, 2)
    shard, rng = tmp_path / "x.0123456789abcdef.1", random.Random(0)
    data = shard.read_bytes()
    for _ in range(100):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shard.write_bytes(flipped)
        with pytest.raises(optimc.CheckpointError, match=r"x\.0123456789abcdef\.1"):
            optimc.load(tmp_path / "x")
    checkpoint.format.write(shard, {"m/0": np.zeros(2, np.float32)}, {"shard": "f" * 16})
    with pytest.raises(optimc.CheckpointError, match="not a shard of"):
        optimc.load(tmp_path / "x")
    checkpoint.format.write(shard, {"m/0@x": np.zeros(2, np.float32)}, {"shard": "0123456789abcdef"})
    with pytest.raises(optimc.CheckpointError):
        optimc.load(tmp_path / "x")
    checkpoint.format.write(shard, {"m/0@6": np.zeros(2, np.float32)}, {"shard": "0123456789abcdef"})
    with pytest.raises(optimc.CheckpointError, match="'m/0' is not complete"):
        optimc.load(tmp_path / "x")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.0123456789abcdef\.1"):
        optimc.load(tmp_path / "x")


@pytest.mark.parametrize("entry", [[[4], "(1,2"], [[4], "f4,,f4(("], [[2 ** 47], "float32"], [[4], "float64"]],
                         ids=str)
def test_hostile_shapes_of_an_index_are_refused(tmp_path, entry):
    optimizer = optimc.SGD(momentum=0.9)
    optimizer.build([np.ones(4, np.float32)])
    description, shards = save_in_shards(tmp_path / "x", optimizer, 1)
    description["shapes"], shards["files"] = [entry], [[[0, 0, entry[0][0]]]]
    checkpoint.shards.write_index(tmp_path / "x", description, shards)
    with pytest.raises(optimc.CheckpointError, match="x"):
        optimc.load(tmp_path / "x")


@pytest.mark.parametrize("blocks", [
    {"@0": 2, "@00": 2}, {"@0": 2, "@1": 2, "@3": 1}, {"@2": 2, "@0": 2}, {"@0": 3, "@3": 2}, {"@0": 2}, {"@1": 3},
    {"@0": 4, "@4": 0}, {"": 4, "@0": 4}, {"@0": 4, "": 4}, {"@+0": 4}, {"@0": (4, 1)}, {"@\u0660": 4}, {"@": 4},
    {"9": 4}, {"9@0": 4}], ids=str)
def test_blocks_that_do_not_follow_one_another_are_refused(tmp_path, blocks):
    optimizer = optimc.SGD(momentum=0.9)
    optimizer.build([np.ones(4, np.float32)])
    save_in_shards(tmp_path / "x", optimizer, 1)
    checkpoint.format.write(tmp_path / "x.0123456789abcdef.0",
                     {f"velocity/0{name}": np.ones(n, np.float32) for name, n in blocks.items()},
                     {"shard": "0123456789abcdef"})
    with pytest.raises(optimc.CheckpointError, match=r"x(\.0123456789abcdef\.0)?: tensor 'velocity/0"):
        optimc.load(tmp_path / "x")
