"""A file is whole whatever happens while it is saved: failing calls, full disks, killed and simultaneous savers."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from checkpoint_cases import steps, weights_of

import optimc
from optimc import checkpoint

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


AT_EXIT = """
import atexit, sys, threading, numpy as np, optimc, ml_dtypes
w = np.ones(1 << 20, sys.argv[2])                       # two threads compute the checksums of such arrays
opt = optimc.Adam(state_dtype="int8")
opt.apply([w * 2], [w])
class Last:
    kept = opt, optimc, sys.argv[1]
    def __del__(self):
        opt, optimc, path = self.kept
        opt.save(path)
        print(optimc.load(path).iterations)
last = Last()
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("code", ["atexit.register(last.__del__); Last.__del__ = lambda self: None", ""],
                         ids=["atexit", "__del__"])
def test_an_optimizer_is_saved_and_loaded_while_the_interpreter_ends(tmp_path, code, dtype):
    done = subprocess.run([sys.executable, "-c", AT_EXIT + code, str(tmp_path / "x"), dtype], capture_output=True,
                          text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("starts", [True, False], ids=["a helper", "none"])
def test_checksums_with_and_without_a_helper(monkeypatch, starts):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    if not starts:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    parts = [np.full(k << 16, k, np.uint8) for k in range(16)]
    assert checkpoint.format._checksums(parts) == [zlib.crc32(part) for part in parts]


@pytest.mark.parametrize("length", [233, 234, 255])
def test_every_length_of_a_file_name_that_the_system_allows(tmp_path, length):
    path = tmp_path / ("n" * length)
    optimc.SGD(0.5).save(path)
    stem = checkpoint.format.stem_of(path.name, checkpoint.format.TEMPORARY)
    left = tmp_path / f".{stem}.{'0' * 16}.tmp"
    left.touch()                                        # as by a saver that was killed
    optimc.SGD(0.25).save(path)
    assert os.listdir(tmp_path) == [path.name] and optimc.load(path).learning_rate == 0.25


def test_a_file_name_that_the_system_refuses_is_named(tmp_path):
    with pytest.raises(OSError, match="name too long") as caught:
        optimc.SGD().save(tmp_path / ("n" * 256))
    assert caught.value.filename == str(tmp_path / ("n" * 256)) and not os.listdir(tmp_path)


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
