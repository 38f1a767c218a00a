"""Checkpoints: exact resume, whole files whatever happens, and nothing loaded that is damaged."""

import copy
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import time
import zlib

import golden
import numpy as np
import pytest
from cases import assert_same_bits, slots_of, values

import optimc
from optimc import checkpoint

SHAPES = {"a": (4, 3), "b": (5,), "c": (), "d": (0, 2), "e": (2, 3, 4)}
OPTIONS = {
    "plain": {},
    "everything": {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True, "gradient_accumulation_steps": 3,
                   "loss_scale_factor": 3.0, "check_finite": "skip"},
}


def weights_of(seed=0):
    rng = np.random.default_rng(seed)
    return {k: values(rng, shape, np.float32 if k != "b" else np.float64) for k, shape in SHAPES.items()}


def steps(optimizer, weights, seeds):
    for seed in seeds:
        optimizer.apply(weights_of(seed), weights)


def same(a, b):
    assert a.iterations == b.iterations and a.get_config() == b.get_config()
    for slot, arrays in slots_of(a).items():
        for x, y in zip(arrays, slots_of(b)[slot], strict=True):
            if x is not None:
                assert_same_bits(x, y)


# ------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("named", [True, False], ids=["named", "by order"])
@pytest.mark.parametrize("name", OPTIONS)
def test_resume_is_bit_exact(case, tmp_path, name, named):
    straight, weights = case.make(**OPTIONS[name]), weights_of()
    if not named:
        weights = dict(enumerate(weights.values()))

    def train(optimizer, arrays, seeds):
        for seed in seeds:
            grads = weights_of(seed)
            optimizer.apply(*((grads, arrays) if named else (list(grads.values()), list(arrays.values()))))

    train(straight, weights, range(1, 6))
    moved = {k: w.copy() for k, w in weights.items()}
    straight.save(tmp_path / "x.safetensors")
    again = optimc.load(tmp_path / "x.safetensors")
    assert not again.built and again.iterations == straight.iterations
    train(straight, weights, range(6, 12))
    train(again, moved, range(6, 12))
    same(straight, again)
    for k in weights:
        assert_same_bits(moved[k], weights[k])


def test_schedules_groups_exclusions_and_wrappers_resume(tmp_path):
    schedule = optimc.schedules.join([0.1, optimc.schedules.CosineDecay(0.1, 20)], [3])
    for make in (lambda: optimc.AdamW(schedule, beta_1=optimc.schedules.PolynomialDecay(0.9, 9, 0.5),
                                      groups=[{"params": "a", "learning_rate": 0.5}]),
                 lambda: optimc.LossScaleOptimizer(optimc.SGD(0.1, momentum=0.9), 8.0, 2),
                 lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.Adam(0.1), {"[ab]": optimc.Lion(0.1)}))):
        straight, weights = make(), weights_of()
        if isinstance(straight, optimc.AdamW):
            straight.exclude_from_weight_decay(var_names=["b", "c"])
        steps(straight, weights, range(1, 5))
        straight.save(tmp_path / "x")
        again, moved = optimc.load(tmp_path / "x"), {k: w.copy() for k, w in weights.items()}
        steps(straight, weights, range(5, 12))
        steps(again, moved, range(5, 12))
        for k in weights:
            assert_same_bits(moved[k], weights[k])
        assert repr(again) == repr(straight)


def test_state_dicts(case):
    a, weights = case.make(use_ema=True), weights_of()
    steps(a, weights, range(1, 4))
    state, start = a.state_dict(), {k: w.copy() for k, w in weights.items()}
    steps(a, weights, range(4, 7))
    for built in (False, True):
        b, moved = case.make(use_ema=True), {k: w.copy() for k, w in start.items()}
        if built:
            b.build(moved)
        b.load_state_dict(state)
        steps(b, moved, range(4, 7))
        same(a, b)
        for k in weights:
            assert_same_bits(moved[k], weights[k])


def test_wrong_states_change_nothing(case):
    optimizer, weights = case.make(), weights_of()
    steps(optimizer, weights, range(1, 4))
    state = optimizer.state_dict()
    before = copy.deepcopy(slots_of(optimizer)), optimizer.iterations
    bad = [{**state, "class_name": "Nothing"}, {**state, "calls": -1}, {**state, "calls": True},
           {**state, "names": ["a"]}, {**state, "waiting": [True]}, {**state, "running": []},
           {**state, "shapes": state["shapes"][:2]}, {**state, "tensors": {**state["tensors"], "x/0": np.ones(1)}}]
    if case.slots:
        first = next(iter(state["tensors"]))
        bad.append({**state, "tensors": {**state["tensors"], first: np.ones(77, np.float32)}})
    bad += [{k: v for k, v in state.items() if k != key} for key in state if key != "tensors"]
    bad += [{**state, key: value} for key in state for value in (None, 1, [[1]]) if (key, value) != ("names", None)
            and (key, value) not in (("calls", 1), ("skipped", 1))]
    for wrong in bad:
        with pytest.raises(optimc.CheckpointError, match=r"^state: "):
            optimizer.load_state_dict(wrong)
        assert optimizer.iterations == before[1]
        for slot, arrays in before[0].items():
            for x, y in zip(arrays, slots_of(optimizer)[slot], strict=True):
                assert x is None or (x == y).all()
    with pytest.raises(TypeError, match="state: expected"):
        optimizer.load_state_dict([])


@pytest.mark.parametrize("name", ["row/0", "column/0", "velocity/1"])
@pytest.mark.parametrize("shape", [(1,), (), (1, 4)])
def test_factors_of_another_shape_are_refused(tmp_path, name, shape):
    optimizer, weights = optimc.Adafactor(), [np.ones((4, 4), np.float32), np.ones(4, np.float32)]
    optimizer.apply([2 * w for w in weights], weights)
    state = optimizer.state_dict()
    state["tensors"][name] = np.ones(shape, np.float32)
    with pytest.raises(optimc.CheckpointError, match=rf"^state: tensor '{name}': expected shape \(4,\)"):
        optimizer.load_state_dict(state)
    description, tensors = optimizer._export()
    checkpoint.format.write(tmp_path / "x", tensors | state["tensors"], {"optimizer": json.dumps(description)})
    with pytest.raises(optimc.CheckpointError, match=f"tensor '{name}'"):
        optimc.load(tmp_path / "x")


def test_functions_cannot_be_stored(tmp_path):
    with pytest.raises(ValueError, match="learning_rate comes from a function"):
        optimc.SGD(lambda: 0.1).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


class Mine(optimc.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.5

    def get_config(self):
        return {}


def test_own_schedules_need_their_class(tmp_path):
    optimc.SGD(Mine()).save(tmp_path / "x")
    with pytest.raises(optimc.CheckpointError, match="Could not interpret schedule 'Mine': pass its class"):
        optimc.load(tmp_path / "x")
    assert optimc.load(tmp_path / "x", {"Mine": Mine}).learning_rate == 0.5


# ------------------------------------------------------------------------------------------- the file


def test_any_safetensors_reader_opens_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    optimizer, weights = optimc.Adam(), weights_of()
    weights["f"] = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    grads = {**weights_of(1), "f": np.arange(12, dtype=np.float32).reshape(3, 4)}
    optimizer.apply(grads, weights)
    optimizer.save(tmp_path / "x.safetensors")
    tensors = safetensors.load_file(tmp_path / "x.safetensors")
    for i, name in enumerate(weights):
        for slot in ("m", "v"):
            assert_same_bits(tensors[f"{slot}/{i}"], np.ascontiguousarray(optimizer._slots[slot][i]).reshape(
                weights[name].shape))
    again = optimc.load(tmp_path / "x.safetensors")
    moved = {k: w.copy(order="K") for k, w in weights.items()}
    optimizer.apply(grads, weights)
    again.apply(grads, moved)
    assert_same_bits(moved["f"], weights["f"])


def test_permissions(tmp_path):
    optimizer = optimc.SGD()
    before = os.umask(0o027)
    try:
        optimizer.save(tmp_path / "x")
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
        os.chmod(tmp_path / "x", 0o604)
        optimizer.save(tmp_path / "x")
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_places(tmp_path):
    optimizer = optimc.SGD()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        optimizer.save(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        optimizer.save(tmp_path / "no" / "x")
    with pytest.raises(FileNotFoundError):
        optimc.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        optimc.load(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="not a regular file"):
        optimizer.save(tmp_path / "fifo")
    with pytest.raises(optimc.CheckpointError, match="not a regular file"):
        optimc.load(tmp_path / "fifo")
    (tmp_path / "folder" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/real")
    optimizer.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and optimc.load(tmp_path / "folder" / "real").iterations == 0
    optimizer.save(str(tmp_path / "näme with spaces").encode())
    assert optimc.load(os.fsencode(tmp_path / "näme with spaces")).name == "sgd"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder", "link", "näme with spaces"]


@pytest.mark.parametrize("name", golden.optimizers())
def test_golden_files_load_and_go_on(name):
    straight, weights = golden.optimizers()[name], golden.start()
    golden.train(straight, weights, 0, 5)
    moved = {k: w.copy() for k, w in weights.items()}
    again = optimc.load(golden.path_of(name))
    golden.train(straight, weights, 5, 9)
    golden.train(again, moved, 5, 9)
    for k in weights:
        if name == "muon" and weights[k].ndim == 2:
            np.testing.assert_allclose(moved[k], weights[k], atol=1e-4)     # another BLAS, other last bits
        else:
            assert_same_bits(moved[k], weights[k])


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small checkpoint, and its path."""
    path = tmp_path_factory.mktemp("whole") / "x.safetensors"
    optimizer = optimc.Adam(optimc.schedules.ExponentialDecay(0.1, 5, 0.5), use_ema=True)
    steps(optimizer, weights_of(), range(1, 4))
    optimizer.save(path)
    return path.read_bytes(), path


def refuse(path, data):
    path.write_bytes(data)
    with pytest.raises(optimc.CheckpointError) as caught:
        optimc.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_flipped_bits_are_noticed(whole, tmp_path):
    data, _ = whole
    rng = random.Random(0)
    for _ in range(600):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        refuse(tmp_path / "x", bytes(flipped))


def test_truncation_is_noticed(whole, tmp_path):
    data, _ = whole
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for end in [*range(0, header, 7), *range(header, len(data), 11), len(data) - 1]:
        refuse(tmp_path / "x", data[:end])
    refuse(tmp_path / "x", data + b"\0")


def test_damaged_tensors_are_named(whole, tmp_path):
    data, _ = whole
    length = struct.unpack("<Q", data[:8])[0]
    entries = {k: v["data_offsets"] for k, v in json.loads(data[8:8 + length]).items() if k != "__metadata__"}
    for name, (begin, end) in entries.items():
        if end > begin:
            flipped = bytearray(data)
            flipped[8 + length + begin] ^= 1
            assert f"tensor {name!r} is damaged" in refuse(tmp_path / "x", bytes(flipped))
    (a, b), (c, d) = entries["m/0"], entries["v/0"]
    swapped = bytearray(data)
    start = 8 + length
    swapped[start + a:start + b], swapped[start + c:start + d] = data[start + c:start + d], data[start + a:start + b]
    assert "tensor 'm/0' is damaged" in refuse(tmp_path / "x", bytes(swapped))


def rebuilt(data, change):
    """The file with its header changed, and the checksum made to fit: damage by somebody who knows the format."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    change(header)
    header["__metadata__"]["header_checksum"] = "0" * 8
    text = json.dumps(header, separators=(",", ":")).encode()
    own = f'"header_checksum":"{zlib.crc32(text):08x}"'.encode()
    text = text.replace(b'"header_checksum":"00000000"', own)
    return struct.pack("<Q", len(text)) + text + data[8 + length:]


def set_optimizer(**changes):
    def change(header):
        description = json.loads(header["__metadata__"]["optimizer"])
        for key, value in changes.items():
            part = description
            *path, last = key.split("__")
            for name in path:
                part = part[name]
            part[last] = value
        header["__metadata__"]["optimizer"] = json.dumps(description)
    return change


HOSTILE = {
    "another class": set_optimizer(class_name="NoSuch"),
    "a class by path": set_optimizer(class_name="os.system"),
    "a class that is none": set_optimizer(class_name=["x"]),
    "a negative rate": set_optimizer(config__learning_rate=-1.0),
    "a rate of text": set_optimizer(config__learning_rate="1"),
    "no configuration": set_optimizer(config=None),
    "an unknown argument": set_optimizer(config__no_such=1),
    "negative calls": set_optimizer(calls=-5),
    "calls beyond 64 bits": set_optimizer(calls=2 ** 70),
    "fractional calls": set_optimizer(calls=1.5),
    "calls of true": set_optimizer(calls=True),
    "shapes of text": set_optimizer(shapes=[["x"]] * 5),
    "fewer shapes": set_optimizer(shapes=[]),
    "another dtype": set_optimizer(shapes=[[[4, 3], "float64"]] * 5),
    "a dtype that NumPy cannot parse": set_optimizer(shapes=[[[4, 3], "01,f4"]] * 5),
    "sizes that are none": set_optimizer(shapes=[[[-4, 3], "float32"]] * 5),
    "an object dtype": set_optimizer(shapes=[[[4, 3], "object"]] * 5),
    "names that do not fit": set_optimizer(names=["a"]),
    "running of text": set_optimizer(running=[["x"] * 11]),
    "no running": set_optimizer(running=[]),
    "other slots": set_optimizer(slots=["z"]),
    "a schedule of nothing": set_optimizer(config__learning_rate={"class_name": "os.system", "config": {}}),
    "a schedule with bad arguments": set_optimizer(
        config__learning_rate={"class_name": "CosineDecay", "config": {"x": 1}}),
    "a newer version": lambda header: header["__metadata__"].update(format_version="2"),
    "a version of text": lambda header: header["__metadata__"].update(format_version="-1"),
    "another format": lambda header: header["__metadata__"].update(format="pt"),
    "metadata that is no text": lambda header: header["__metadata__"].update(x=1),
    "no metadata": lambda header: header["__metadata__"].pop("optimizer"),
    "metadata that is no JSON": lambda header: header["__metadata__"].update(optimizer="{"),
    "a missing tensor": lambda header: header.pop("m/0"),
    "a missing checksum": lambda header: header["__metadata__"].update(checksums="{}"),
    "checksums of nothing": lambda header: header["__metadata__"].update(checksums="[]"),
    "a hole": lambda header: header["v/0"].update(data_offsets=[n + 4 for n in header["v/0"]["data_offsets"]]),
    "an overlap": lambda header: header["v/0"].update(data_offsets=header["m/0"]["data_offsets"]),
    "a negative size": lambda header: header["m/0"].update(shape=[-4, -3]),
    "a size beyond all": lambda header: header["m/0"].update(shape=[2 ** 62, 2 ** 62]),
    "a fractional size": lambda header: header["m/0"].update(shape=[4.0, 3]),
    "a size of true": lambda header: header["m/0"].update(shape=[True, 12]),
    "another shape": lambda header: header["m/0"].update(shape=[3, 4]),
    "too many axes": lambda header: header["m/0"].update(shape=[1] * 70 + [12]),
    "an unknown dtype": lambda header: header["m/0"].update(dtype="Q8"),
    "an entry that is none": lambda header: header.update({"m/0": 3}),
    "an entry of a list": lambda header: header.update({"m/0": [1, 2, 3]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(whole, tmp_path, name):
    refuse(tmp_path / "x", rebuilt(whole[0], HOSTILE[name]))


@pytest.mark.parametrize("data", [
    b"", b"\x80\x04.", b"PK\x03\x04" + b"\0" * 100, struct.pack("<Q", 2 ** 63) + b"{}", struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 4) + b" {} ", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 100_000) + b"[" * 100_000,
    struct.pack("<Q", 200_000) + b'{"a":' * 40_000, struct.pack("<Q", 17) + b'{"a": 1, "a": 2}x',
    struct.pack("<Q", 20) + b'{"__metadata__": {}}', struct.pack("<Q", 20) + b'{"__metadata__": 3 }',
    struct.pack("<Q", 4) + b"{\xff\xff}", b"\0" * 64], ids=lambda data: repr(data[:24]))
def test_what_is_no_checkpoint_is_refused(tmp_path, data):
    refuse(tmp_path / "x", data)


def test_pickles_are_never_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    refuse(tmp_path / "x", pickle.dumps(Evil()))
    np.savez(tmp_path / "y.npz", x=np.array([Evil()], dtype=object))
    with pytest.raises(optimc.CheckpointError):
        optimc.load(tmp_path / "y.npz")
    assert not (tmp_path / "pwned").exists()


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at:at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        else:
            data[at:at + 4] = data[(end := rng.randrange(len(data))):end + 4]
        if len(data) < 2:
            break
    return bytes(data)


def bytes_of(optimizer):
    return {name: (array.shape, array.tobytes()) for name, array in optimizer.state_dict()["tensors"].items()}


def test_mutated_files_raise_nothing_else(whole, tmp_path, soak):
    """Half of them with the header's checksum made to fit, so that what is behind it is reached."""
    rng, original = random.Random(1), whole[0]
    tensors = bytes_of(optimc.load(whole[1]))
    length = struct.unpack("<Q", original[:8])[0]
    path = tmp_path / "x"
    for k in range(100_000 if soak else 4_000):
        if k % 2:
            data = mutated(original, rng)
        else:
            text = mutated(original[8:8 + length], rng)
            blank = text.replace(text[text.find(b'"header_checksum":"') + 19:][:8], b"0" * 8, 1)
            own = f'"header_checksum":"{zlib.crc32(blank):08x}"'.encode()
            data = struct.pack("<Q", len(text)) + blank.replace(b'"header_checksum":"00000000"', own) \
                + original[8 + length:]
        if data == original:
            continue
        path.write_bytes(data)
        try:
            loaded = optimc.load(path)
        except optimc.CheckpointError:
            continue
        assert k % 2 == 0 and bytes_of(loaded) == tensors       # a change of what may be otherwise: a rate, a name


# ------------------------------------------------------------------------------------------- faults


SYSTEM_CALLS = ["open", "fsync", "replace", "chmod", "close"]


@pytest.mark.parametrize("first", [True, False], ids=["new file", "over an old one"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()],
                         ids=lambda error: type(error).__name__)
def test_every_failing_call_leaves_a_whole_file(tmp_path, monkeypatch, first, error):
    """The N-th system call of a save fails, for every N, until a save needs no more calls."""
    path = tmp_path / "x"
    optimizer, weights = optimc.Adam(), weights_of()
    steps(optimizer, weights, range(1, 3))
    if not first:
        optimizer.save(path)
    old = None if first else path.read_bytes()
    steps(optimizer, weights, range(3, 5))
    state = optimizer.state_dict()
    for n in range(60):
        left = [n]
        done = []

        def failing(function, left=left, done=done):
            def call(*args, **kwargs):
                if left[0] == 0:
                    left[0] -= 1
                    raise error
                left[0] -= 1
                result = function(*args, **kwargs)
                done.append(function)
                return result
            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "chmod"):
                patch.setattr(checkpoint.format.os, name, failing(getattr(os, name)))
            patch.setattr(checkpoint.format, "_write_all", failing(checkpoint.format._write_all))
            patch.setattr(checkpoint.format.fcntl, "flock", failing(checkpoint.format.fcntl.flock))
            try:
                optimizer.save(path)
                finished = True
            except type(error):
                finished = False
        if finished and left[0] >= 0:
            break
        replaced = os.replace in done
        if replaced or not first:
            loaded = optimc.load(path)
            assert loaded.iterations == (4 if replaced else 2)
            assert replaced or path.read_bytes() == old
        else:
            assert not path.exists()
        assert [p.name for p in tmp_path.iterdir()] == ([] if first and not replaced else ["x"])
        if replaced:
            if first:
                path.unlink()
            else:
                path.write_bytes(old)
        after = optimizer.state_dict()
        assert all((after["tensors"][k] == v).all() for k, v in state["tensors"].items())
    assert n > 10 and optimc.load(path).iterations == 4


def test_short_writes_are_finished(tmp_path, monkeypatch):
    optimizer, weights = optimc.Adam(), weights_of()
    steps(optimizer, weights, range(1, 3))
    monkeypatch.setattr(checkpoint.format, "BLOCK", 3)
    optimizer.save(tmp_path / "x")
    assert optimc.load(tmp_path / "x").iterations == 2


def test_a_full_disk(tmp_path):
    """A limit on the size of files stands for the full disk."""
    code = f"""
import resource, signal, numpy as np, optimc
w = [np.ones(300_000, np.float32)]
opt = optimc.Adam()
opt.apply([w[0] * 2], w)
opt.save({str(tmp_path / "x")!r})
opt.apply([w[0] * 2], w)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    opt.save({str(tmp_path / "x")!r})
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "27"
    assert optimc.load(tmp_path / "x").iterations == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


SAVER = """
import sys, numpy as np, optimc
w = [np.full(int(sys.argv[2]), 1.0, np.float32)]
opt = optimc.Adam()
opt.apply([w[0] * 2], w)
print("ready", flush=True)
while True:
    opt.save(sys.argv[1])
    opt.apply([w[0] * 2], w)
"""


def test_killed_savers_lose_no_checkpoint(tmp_path):
    path = tmp_path / "x"
    rng = random.Random(0)
    optimizer = optimc.Adam()
    optimizer.apply([np.ones(3, np.float32)], [np.ones(3, np.float32)])
    optimizer.save(path)
    left = 0
    for _ in range(25):
        saver = subprocess.Popen([sys.executable, "-c", SAVER, str(path), "400000"], stdout=subprocess.PIPE)
        saver.stdout.readline()
        time.sleep(rng.random() * 0.1)
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        assert optimc.load(path).iterations >= 1
        left += len(list(tmp_path.iterdir())) - 1
    optimizer.save(path)                                # sweeps what the killed have left
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_living_savers_file_is_not_swept(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    mine = tmp_path / f".x.{'0' * 16}.tmp"
    others = [tmp_path / ".x.short.tmp", tmp_path / f".y.{'0' * 16}.tmp", tmp_path / f"x.{'0' * 16}.tmp"]
    for file in (mine, *others):
        file.write_bytes(b"")
    with open(mine, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        optimc.SGD().save(tmp_path / "x")
        assert mine.exists()
    others += [tmp_path / f".x.{'1' * 16}.tmp", tmp_path / f".x.{'2' * 16}.tmp"]
    others[-2].mkdir()
    os.mkfifo(others[-1])
    optimc.SGD().save(tmp_path / "x")
    assert not mine.exists() and all(file.exists() for file in others)


def test_a_file_swept_before_it_is_locked_is_written_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock, sweeps = fcntl.flock, [1, 2, 3]

    def flock(file, operation):
        if operation == fcntl.LOCK_EX and sweeps:               # another save begins just before
            sweeps.pop()
            checkpoint.format._sweep(str(tmp_path), "x")
        lock(file, operation)

    monkeypatch.setattr(checkpoint.format.fcntl, "flock", flock)
    optimc.SGD(0.25).save(tmp_path / "x")
    assert not sweeps and os.listdir(tmp_path) == ["x"] and optimc.load(tmp_path / "x").learning_rate == 0.25


def test_savers_and_readers_at_once(tmp_path):
    path = tmp_path / "x"
    optimc.SGD().save(path)
    savers = [subprocess.Popen([sys.executable, "-c", SAVER, str(path), "50000"], stdout=subprocess.PIPE)
              for _ in range(2)]
    try:
        for saver in savers:
            saver.stdout.readline()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert optimc.load(path).iterations >= 0
    finally:
        for saver in savers:
            saver.kill()
            saver.wait()
            saver.stdout.close()


def test_other_threads_wait_for_a_save(tmp_path):
    import threading
    w = np.zeros(500_000, np.float32)
    optimizer = optimc.SGD(1.0, momentum=0.5)
    optimizer.apply([np.ones_like(w)], [w])
    stop = threading.Event()

    def work():
        while not stop.is_set():
            optimizer.apply([np.ones_like(w)], [w])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            optimizer.save(tmp_path / "x")
            velocity = optimc.load(tmp_path / "x")._slots["velocity"][0]
            assert (velocity == velocity[0]).all()
    finally:
        stop.set()
        thread.join()


def test_the_file_may_be_open_while_it_is_replaced(tmp_path):
    optimc.SGD(0.5).save(tmp_path / "x")
    with open(tmp_path / "x", "rb") as file:
        before = file.read(20)
        optimc.Adam(0.25).save(tmp_path / "x")
        file.seek(0)
        assert file.read(20) == before
    assert optimc.load(tmp_path / "x").learning_rate == 0.25


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("locks", [True, False])
def test_only_a_locked_file_is_open_when_it_is_moved(tmp_path, monkeypatch, locks):
    """Without locks the system is Windows, which moves no open file."""
    opened, move = [], os.replace

    def replace(source, target):
        names = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        opened.append(os.path.realpath(source) in names)
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    if not locks:
        monkeypatch.setattr(checkpoint.format, "fcntl", None)
    optimizer = optimc.Adam(0.25)
    optimizer.save(tmp_path / "file")
    assert opened == [locks]
    assert optimc.load(tmp_path / "file").learning_rate == 0.25
# ------------------------------------------------------------------------------------------- shards


def save_in_shards(path, optimizer, parts, token="0123456789abcdef"):
    """Writes a checkpoint as `parts` ranks would, each with its part of every weight; gives what the index says."""
    description, tensors = optimizer._export()
    sizes = [int(np.prod(shape)) for shape, _ in description["shapes"]]
    files = [[[i, size * k // parts, size * (k + 1) // parts] for i, size in enumerate(sizes)
              if size * k // parts < size * (k + 1) // parts] for k in range(parts)]
    for rank, segments in enumerate(files):
        held = {i: (low, high) for i, low, high in segments}
        numbered = [(name, int(name.rpartition("/")[2]), array) for name, array in tensors.items()]
        checkpoint.shards.write_shard(path, token, rank, {
            name: (array.reshape(-1)[held[i][0]:held[i][1]], held[i][0]) for name, i, array in numbered if i in held})
    shards = {"token": token, "orders": "C" * len(sizes), "files": files}
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
        "leave something out": lambda shards: shards["files"].pop(),
        "overlap or leave": lambda shards: shards["files"][1].append(shards["files"][0][0]),
        "overlap": lambda shards: shards["files"][0].append([9, 0, 1]),
        "leave something": lambda shards: shards["files"][0].__setitem__(0, [0, 0, 6.0]),
        "a token that is none": lambda shards: shards.__setitem__("token", "../../../etc/pass"),
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
