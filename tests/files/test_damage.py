"""Damaged, hostile and foreign files are refused, with one line that says why; nothing of them is run."""

import json
import os
import random
import struct
import zlib

import numpy as np
import pytest
from checkpoint_cases import steps, weights_of

import optimc


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
    assert len(str(caught.value)) < len(str(path)) + 2000
    return str(caught.value)


@pytest.mark.parametrize("own", ["\ud800", "", "\0" * 8, "0000000G", "x" * 5000])
def test_a_checksum_of_the_header_that_is_none(whole, tmp_path, own):
    data, _ = whole
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header["__metadata__"]["header_checksum"] = own
    text = json.dumps(header).encode()
    said = refuse(tmp_path / "x", struct.pack("<Q", len(text)) + text + data[8 + length:])
    assert "its header is damaged: header_checksum" in said and len(said) < len(str(tmp_path)) + 200


def test_an_error_of_a_name_that_is_no_text_can_be_printed(whole, tmp_path):
    said = refuse(tmp_path / "x", rebuilt(whole[0], set_optimizer(
        config__learning_rate={"class_name": "CosineDecay", "config": {"\ud800": 1}})))
    assert "\\ud800" in said and said.encode()


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
    "names that are equal": set_optimizer(names=["a", "b", "c", "d", "a"]),
    "running of text": set_optimizer(running=[["x"] * 11]),
    "no running": set_optimizer(running=[]),
    "running without names": set_optimizer(running=[[0.0] * 10]),
    "running of nothing": set_optimizer(running=[{}]),
    "a product of no hyperparameter": set_optimizer(running=[{"products": {"beta_3": 0.5}, "scalars": {}}]),
    "a product with a name without end": set_optimizer(running=[{"products": {"x" * 9999: 0.5}, "scalars": {}}]),
    "a scalar of no rule": set_optimizer(running=[{"products": {}, "scalars": {"eta": 0.5}}]),
    "a product of text": set_optimizer(running=[{"products": {"beta_1": "x"}, "scalars": {}}]),
    "other slots": set_optimizer(slots=["z"]),
    "a schedule of nothing": set_optimizer(config__learning_rate={"class_name": "os.system", "config": {}}),
    "a schedule with bad arguments": set_optimizer(
        config__learning_rate={"class_name": "CosineDecay", "config": {"x": 1}}),
    "a newer version": lambda header: header["__metadata__"].update(format_version="4"),
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
