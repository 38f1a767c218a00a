"""The benchmark: what it times, what it says, what it does with peers that fail.  Nothing here is timed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from conftest import require
from figures import SETS, figure

import optimc
from optimc import _core
from optimc.__main__ import main
from optimc.base.rules import slots_of
from optimc.cli.bench import command, limit, peers, processes, timing, words
from optimc.cli.bench.peers import Ours, Unsupported, Work
from optimc.cli.bench.processes import Job
from optimc.cli.bench.shapes import read_shapes
from optimc.cli.bench.timing import Contestant, interleaved

SHAPES = [(5, 3), (3,), (40,)]


def call(*argv):
    """The exit code of `bench` with these arguments, in this process."""
    try:
        return main(["bench", *argv])
    except SystemExit as stop:
        return stop.code


# ---------------------------------------------------------------------------------------- the timing


def test_contestants_take_turns():
    done = []
    times = interleaved({name: Contestant(lambda name=name: done.append(name)) for name in "ab"},
                                  repeats=8, seconds=0)
    assert {name: len(measured) for name, measured in times.items()} == {"a": 8, "b": 8}
    rounds = "".join(done)[-32::2]              # a step to warm the cache, and the one that is timed
    assert all({*rounds[k:k + 2]} == {"a", "b"} for k in range(0, 16, 2))
    assert "ab" in rounds[::2] + rounds and len({rounds[k:k + 2] for k in range(0, 16, 2)}) == 2


def test_the_first_eighth_of_a_repeat_warms_the_cache(monkeypatch):
    clock, done = [0.0], []

    def step():
        clock[0] += 0.125 if done else 1.0                  # the first of a repeat is slow
        done.append(0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    times = interleaved({"a": Contestant(step, done.clear, most=8)}, repeats=5, seconds=10)
    assert times == {"a": [0.125e9] * 5}


def test_what_comes_before_a_repeat_comes_once():
    before, done = [], []
    interleaved({"a": Contestant(lambda: done.append(0), lambda: before.append(len(done)), most=7)},
                          repeats=6, seconds=1)
    assert np.diff(before)[-5:].tolist() == [7] * 5             # those that warm the cache included


def test_a_budget_leaves_five_repeats():
    assert len(interleaved({"a": Contestant(lambda: None)}, repeats=50, seconds=0, budget=0)["a"]) == 5


def test_a_slow_contestant_sits_out_turns_evenly():
    done = []
    times = interleaved({
        "slow": Contestant(lambda: (time.sleep(0.02), done.append("s"))),
        "quick": Contestant(lambda: done.append("q"))}, repeats=30, seconds=0, budget=0.2)
    assert [len(times[name]) for name in ("slow", "quick")] == [5, 30]
    assert set(np.diff(np.flatnonzero(np.array(done[-70::2]) == "s"))) <= {6, 7, 8}


def test_after_a_pause_comes_one_step():
    done = []
    interleaved({"a": Contestant(lambda: done.append(0))}, repeats=5, between=lambda: None)
    assert len(done) <= 2 + 10 + 5


def test_a_contestant_that_raises_leaves_the_race():
    calls = []

    def fails():
        calls.append(0)
        if len(calls) > 3:
            raise MemoryError("no more\nof it")
    times = interleaved({"good": Contestant(lambda: None), "bad": Contestant(fails, most=1)}, repeats=6,
                                  seconds=0)
    assert times["bad"] == "MemoryError: no more"
    assert len(times["good"]) == 6


def test_a_summary():
    assert timing.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == {
        "min": 1.0, "low": 2.0, "median": 3.0, "high": 4.0, "max": 5.0, "repeats": 5}


# ------------------------------------------------------------------------------------------ processes


def speaking(tmp_path, monkeypatch, script):
    """Has a script in the place of the children's Python."""
    path = tmp_path / "child"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(path))


JOBS = [Job("first", Work([(4,)])), Job("second", Work([(4,)]), peers=("NumPy out=",))]


@pytest.mark.skipif(os.name != "posix", reason="a shell script plays the child")
@pytest.mark.parametrize("script, said", [
    ("echo '[\"begun\", 0]'; kill -9 $$", "the process died of SIGKILL"),
    ("echo 'a\nno room' >&2; exit 3", "the process ended: no room"),
    ("exit 3", "the process ended: exit code 3"),
    ("echo '[\"begun\", 0]'; exec sleep 60", "took too long"),
])
def test_a_child_that_dies_is_a_line_for_each_job(tmp_path, monkeypatch, script, said):
    speaking(tmp_path, monkeypatch, script)
    monkeypatch.setattr(processes, "PATIENCE", 0.3 if said == "took too long" else 60.0)
    jobs = [job._replace(budget=0.0) for job in JOBS]
    assert [(job.name, figures) for job, figures in processes.run(jobs, "numpy")] == [
        ("first", {"NumPy out=": {"error": said}, "NumPy plain": {"error": said}}),
        ("second", {"NumPy out=": {"error": said}})]


@pytest.mark.skipif(os.name != "posix", reason="a shell script plays the child")
def test_jobs_after_a_death_are_done(tmp_path, monkeypatch):
    speaking(tmp_path, monkeypatch, f"""
        if mkdir {tmp_path}/once 2>/dev/null; then echo '["begun", 0]'; kill -6 $$; fi
        echo '["begun", 0]'; echo '["done", 0, {{"optimc": {{"median": 1}}}}]'""")
    found = {job.name: figures for job, figures in processes.run(JOBS, "numpy")}
    assert found["first"]["NumPy plain"] == {"error": "the process died of SIGABRT"}
    assert found["second"] == {"optimc": {"median": 1}}


def test_a_job_survives_json():
    job = Job("one", Work([(2, 3), (4,)], "float64", "SGD", {"momentum": 0.5}), (1, 2), peers=("thinc",))
    assert Job.from_json(json.loads(json.dumps(job)))._replace(peers=job.peers) == job


# ----------------------------------------------------------------------------------------------- peers


class Watched(Work):
    """Work that remembers the weights it gave away."""

    given: list = []

    def arrays(self, seed):
        made = super().arrays(seed)
        if seed == 0:
            self.given.append(made)
        return made


IN_PLACE = {name: (set_name, peer) for set_name in ("numpy", "torch", "thinc", "sklearn")
            for name, peer in peers.SETS[set_name][1].items()}


@pytest.mark.parametrize("optimizer, arguments", [
    ("Adam", {}), ("SGD", {"momentum": 0.5}), ("AdamW", {"weight_decay": 0.01}),
    ("AdamW", {"weight_decay": 0.01, "global_clipnorm": 1.0, "use_ema": True}),
], ids=str)
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_peer_does_the_same_step(name, optimizer, arguments):
    peer = IN_PLACE[name][1]
    require(peer.needs)
    Watched.given.clear()
    work = Watched(SHAPES, "float32", optimizer, arguments)
    try:
        step = peer.build(work)
    except Unsupported:
        pytest.skip(f"{name} has no {optimizer} with {arguments}")
    weights = Watched.given[0]
    ours = Ours(Work(SHAPES, "float32", optimizer, arguments))
    ours.optimizer.learning_rate = 1e-3
    for _ in range(3):
        getattr(step, "before", lambda: None)()
        step()
        ours.step()
    start = Work(SHAPES).arrays(0)
    for mine, theirs, first in zip(ours.weights, weights, start, strict=True):
        assert not np.array_equal(theirs, first)
        np.testing.assert_allclose(theirs, mine, rtol=0, atol=3e-5)     # a hundredth of the way


def test_libraries_do_not_get_what_they_lack():
    with pytest.raises(Unsupported):
        peers.numpy_out(Work(SHAPES, optimizer="Lion"))
    with pytest.raises(Unsupported):
        peers.sklearn_adam(Work(SHAPES, arguments={"amsgrad": True}))
    if processes.missing("torch") is None:
        with pytest.raises(Unsupported):
            peers.torch_step(fused=True)(Work(SHAPES, optimizer="Lion"))


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert processes.missing("keras-torch") == "torch"
    assert processes.missing("keras-numpy") is None


# ----------------------------------------------------------------------------------------------- limit


@pytest.mark.parametrize("optimizer, arguments, expected", [
    ("SGD", {}, 12), ("SGD", {"momentum": 0.9}, 20), ("Adam", {}, 28), ("Adam", {"amsgrad": True}, 36),
    ("AdamW", {"use_ema": True, "global_clipnorm": 1.0, "check_finite": "skip"}, 40),
    ("Lion", {"cautious": True}, 28), ("Lamb", {}, 44),
])
def test_bytes_that_a_step_moves(optimizer, arguments, expected):
    work = Work(SHAPES, "float32", optimizer, arguments)
    assert limit.bytes_moved(work, Ours(work)) == expected * work.weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_stream_leaves_the_arrays_as_they_are(dtype, threads):
    work = Work([(1000,), (7, 9), (1,)], dtype, "AdamW", {"use_ema": True, "global_clipnorm": 1.0})
    ours = Ours(work)
    ours.step()
    slots = ours.optimizer._slots
    arrays = [*ours.weights, *ours.grads, *ours.optimizer._averages, *slots["m"], *slots["v"]]
    before = [array.copy() for array in arrays]
    try:
        limit.stream(work, ours, threads)()
        limit.divider(work, ours)()
    except limit.NoLimit as error:
        pytest.skip(str(error))
    for array, kept in zip(arrays, before, strict=True):
        assert np.array_equal(array, kept)


#: roots, divisions and further divisions in double of each pass, counted by hand in csrc/rules.inc
COUNTED = {"sgd": [(0, 0, 0)], "amsgrad": [(1, 1, 0)], "adadelta": [(2, 1, 0)], "adamax": [(0, 1, 0)],
           "nadam": [(1, 3, 1)], "ftrl": [(2, 3, 0)], "schedule_free": [(1, 3, 0)], "muon_adam": [(1, 1, 0)],
           "lamb": [(1, 3, 0), (0, 0, 0)], "adafactor_vector": [(1, 1, 0), (1, 2, 0)]}


@pytest.mark.parametrize("kernel", COUNTED)
def test_roots_and_divisions_are_those_of_the_rule(kernel):
    assert [one[2:] for one in limit.PASSES[kernel] or ()] == COUNTED[kernel]


def test_every_kernel_has_passes_or_is_more_than_a_stream():
    assert limit.PASSES.keys() == _core.kernels.keys()
    assert limit.PASSES["adafactor"] is limit.PASSES["ftrl_power"] is limit.PASSES["muon"] is None
    for kernel, some in limit.PASSES.items():
        moved = {name for one in some or () for name in one.both}
        per_row = {slot for slot, axis in _core.factors.get(_core.kernels[kernel][1], {}).items() if axis < 0}
        assert some is None or moved == {"w", *slots_of(kernel)} - per_row


@pytest.mark.parametrize("dtype, expected", [("float32", 3), ("float64", 4)])
def test_float32_divides_in_double_by_multiplying(dtype, expected):
    work = Work(SHAPES, dtype, "Nadam")
    assert [one.divisions for one in limit.passes(work, Ours(work))] == [expected]


def test_several_passes_have_a_bound_each():
    shapes = [(50_000,)]
    work = Work(shapes, "float32", "Lamb")
    first, last = limit.passes(work, Ours(work))
    assert (first.roots, first.divisions, last.roots, last.divisions) == (1, 3, 0, 0)
    built, failed = processes.contestants(Job("", work, peers=()), "numpy", Ours(work))
    bounds = [f"{processes.PASSES} {k}" for k in ("0 0", "0 1", "1 0")]
    assert failed or [name for name in built if name.startswith(processes.PASSES)] == bounds
    results = dict(zip(bounds, map(figure, (8.0, 9.0, 2.0)), strict=True), optimc=figure(12.0))
    processes._add_passes(results)
    assert list(results) == ["optimc", processes.PASSES]
    assert results[processes.PASSES] == {**figure(11.0), **{
        key: figure(9.0)[key] + figure(2.0)[key] for key in figure(1.0) if key != "repeats"}}
    plain = Work(shapes, "float32", "Adam")
    assert limit.pass_by_pass(plain, Ours(plain)) == []
    assert words.bound({"limit: memory": figure(9.0), "limit: divider": figure(5.0),
                        "limit: pass by pass": figure(11.0)}) == 11.0


def test_without_a_compiler_there_is_no_limit(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    limit.compiled.cache_clear()
    work = Work([(processes.LIMITED,)])
    built, others = processes.contestants(Job("", work, peers=()), "numpy", Ours(work))
    assert list(built) == ["optimc"]
    assert others == {processes.STREAM: {"error": "no C compiler 'no-such-compiler'"}}


# ------------------------------------------------------------------------------------------ the command


def test_a_library_that_was_disturbed_is_marked(monkeypatch, capsys):
    def times(median, slowest):
        return {"min": median * 0.9, "median": median, "max": median * slowest, "low": median, "high": median}

    figures = {"optimc": times(100.0, 1.1), "NumPy out=": times(5e3, 1.1), "NumPy plain": times(8e3, 4.0)}
    monkeypatch.setattr(command, "_timed", lambda job, there: {"numpy": figures})
    assert main(["bench", "--shapes", "4", "--peers", "numpy out,numpy plain"]) == 0
    rows = {line[:12].strip(): line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert rows["NumPy out="][-1] == "50" and rows["NumPy plain"] == ["80", "noisy"]


def test_the_command_times_and_recommends(tmp_path):
    done = subprocess.run([sys.executable, "-m", "optimc", "bench", "--shapes", "4x3,3", "--seconds", "0.01",
                           "--peers", "numpy out", "--json", str(tmp_path / "b.json")],
                          capture_output=True, text=True, timeout=100, check=True)
    assert re.search(r"^Adam, float32, 2 arrays, 15 weights; ", done.stdout)
    assert re.search(r"^optimc +\S+ [nµm]s .* 1\.00( +noisy)?$", done.stdout, re.M)
    assert re.search(r"^NumPy out= ", done.stdout, re.M)
    assert done.stdout.splitlines()[3].endswith("relative time (optimc = 1)")
    assert re.search("times as fast as the fastest peer here, NumPy out=.|^Too noisy to judge: ", done.stdout, re.M)
    assert done.stderr.startswith("timing 1 of 1: NumPy out= (about 0.01 s, and the time to load it)\n")
    assert "torch" not in done.stdout.split("\n\n", 1)[1]
    figures = json.loads((tmp_path / "b.json").read_text())
    assert figures["sets"]["numpy"]["NumPy out="]["min"] > 0 and figures["versions"]["optimc"] == optimc.__version__


def test_shapes_come_from_files_too(tmp_path):
    arrays = {"kernel": np.zeros((4, 3), np.float16), "bias": np.zeros(3)}
    np.savez(tmp_path / "net.npz", **arrays)
    assert read_shapes(str(tmp_path / "net.npz")) == [(4, 3), (3,)]
    require("safetensors.numpy").save_file(arrays, tmp_path / "net.safetensors")
    assert sorted(read_shapes(str(tmp_path / "net.safetensors"))) == [(3,), (4, 3)]


@pytest.mark.parametrize("argv, said", [
    (["--shapes", "10xx"], "expected shapes like"), (["--shapes", ""], "expected shapes like"),
    (["--shapes", "0"], "expected shapes like"), (["--shapes", "3,-2"], "expected shapes like"),
    (["--shapes", "999999999999"], "999,999,999,999 weights need about"),
    (["--shapes", "none.npz"], "none.npz: No such file"), (["--shapes", "none.safetensors"], "No such file"),
    (["--shapes", "bad.npz"], "not a .npz file"), (["--shapes", "bad.safetensors"], "not a .safetensors file"),
    (["--shapes", "text.npz"], "not a .npz file"), (["--shapes", "list.safetensors"], "not a .safetensors file"),
    (["--shapes", "empty.npz"], "there are no weights in it"),
    (["--optimizer", "adamm"], "--optimizer: there is no optimizer 'adamm': did you mean adam?"),
    (["--peers", "zz"], "there is no peer 'zz'"),
    (["--peers", ","], "expected names"), (["--seconds", "0"], "expected a number above 0"),
    (["--seconds", "nan"], "expected a number above 0"), (["--threads", "-1"], "--threads: expected"),
    (["--threads", "0"], "--threads: expected"), (["--json", "no/b.json"], "--json no/b.json: there is no folder no"),
    (["--dtype", "f2"], "invalid choice"),
])
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    for name in ("bad.npz", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"\x05\0\0\0\0\0\0\0nonsense")
    (tmp_path / "list.safetensors").write_bytes(b"\x0e\0\0\0\0\0\0\0" + b'{"a":[1, 2]}  ')
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("a.txt", "hello")
    np.savez(tmp_path / "empty.npz", a=np.zeros(0))
    assert call(*argv) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    answering(monkeypatch, SETS["numpy"])
    assert call("--json", str(tmp_path), "--peers", "numpy") == 2
    assert "Is a directory" in capsys.readouterr().err


def answering(monkeypatch, figures, *missing):
    """Has the processes answer with these figures at once, without these modules."""
    monkeypatch.setattr(processes, "run", lambda jobs, name: [(job, figures) for job in jobs])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(processes.importlib.util, "find_spec",
                        lambda name: None if name in missing else find_spec(name))


def test_nothing_to_time_is_an_error(monkeypatch, capsys):
    answering(monkeypatch, SETS["torch"], "torch")
    assert call("--peers", "torch fused") == 2
    out, err = capsys.readouterr()
    assert not out and err == (
        "optimc bench: error: --peers: nothing to time: torch fused (torch is not installed)\n")


@pytest.mark.parametrize("figures, said", [
    ({}, "nothing was timed: no process answered"),
    ({"NumPy out=": {"error": "the process died of SIGKILL"}},
     "nothing was timed: NumPy out=: the process died of SIGKILL")])
def test_an_empty_result_is_an_error(figures, said, monkeypatch, capsys):
    answering(monkeypatch, figures)
    assert call("--peers", "numpy out") == 2
    assert capsys.readouterr().err.endswith(f"\noptimc bench: error: {said}\n")


def test_what_was_skipped_is_named_with_the_reason(monkeypatch, capsys):
    answering(monkeypatch, {**SETS["numpy"], "NumPy plain": {"skipped": "timed for Adam only"}}, "torch")
    assert call("--peers", "numpy out,numpy plain,torch default") == 0
    out = capsys.readouterr().out
    assert "\nskipped: torch default (torch is not installed), NumPy plain (timed for Adam only)\n" in out
    assert "\noptimc: its Adam is 5 times as fast as the fastest peer here, NumPy out=.\n" in out


@pytest.mark.parametrize("name, build, optimizer, why", [
    ("NumPy out=", peers.numpy_out, "SGD", "timed for Adam only"),
    ("scikit-learn", peers.sklearn_adam, "SGD", "timed for Adam and SGD with momentum only"),
    ("torch", peers.torch_step(), "Lion", "has no Lion"), ("optax", peers.optax_jit, "Ftrl", "has no Ftrl")])
def test_a_peer_says_why_it_is_skipped(name, build, optimizer, why):
    require({"scikit-learn": "sklearn", "NumPy out=": "numpy"}.get(name, name))
    with pytest.raises(Unsupported, match=f"^{why}$"):
        build(Work(SHAPES, optimizer=optimizer))


def test_a_job_tells_who_was_skipped():
    figures = processes.measure(Job("", Work(SHAPES, optimizer="SGD"), repeats=5, seconds=0, budget=0), "numpy")
    assert figures["NumPy out="] == figures["NumPy plain"] == {"skipped": "timed for Adam only"}
    assert figures["optimc"]["repeats"] == 5 and words.merged({"numpy": figures}).keys() == {"optimc"}


@pytest.mark.parametrize("ns, text", [(0.5, "0.500 ns"), (999.4, "999 ns"), (999.9, "1.00 µs"), (1234, "1.23 µs"),
                                      (12345678, "12.3 ms"), (5e9, "5.00 s"), (5e11, "500 s")])
def test_durations(ns, text):
    assert words.duration(ns) == text


def test_ratios_are_of_one_process():
    merged = words.merged(SETS)
    assert merged["torch fused"]["ratio"] == pytest.approx(1.1) and merged["NumPy out="]["ratio"] == 5.0
    assert words.share(SETS["numpy"]) == 0.95


def test_the_share_of_the_limit_is_one_within_a_process():
    sets = {str(k): {"optimc": figure(ours), "limit: memory": figure(limit)}
            for k, (ours, limit) in enumerate([(10.0, 9.0), (20.0, 10.0), (30.0, 30.0)])}
    assert words.share(words.merged(sets)) == 0.9           # the medians themselves would say 0.5


@pytest.mark.parametrize("ours, least, said", [
    (10.0, 9.04, "90%"), (10.0, 9.94, "99%"), (10.0, 9.96, "at the limit"), (10.0, 10.4, "at the limit"),
    (10.0, 10.6, words.NOISY), (10.0, 17.9, words.NOISY)])
def test_nothing_above_the_limit_is_a_share_of_it(ours, least, said):
    figures = {"optimc": figure(ours), "limit: memory": figure(least)}
    assert words.share_of_limit(figures) == words.share_of_limit(words.merged({"numpy": figures})) == said
    assert words.share_of_limit({"optimc": figure(ours)}) == ""


@pytest.mark.parametrize("name", ["optimc", "limit: memory", "limit: divider"])
def test_a_busy_machine_is_too_noisy_to_judge_but_one_of_three_processes_may_be_disturbed(name):
    calm = {"optimc": figure(10.0), "limit: memory": figure(9.0), "limit: divider": figure(3.0)}
    busy = {**calm, name: {**calm[name], "max": 3.1 * calm[name]["min"]}}
    assert words.share_of_limit(calm) == "90%"
    assert words.share_of_limit(busy) == words.NOISY
    assert words.share_of_limit(words.merged({"a": calm, "b": busy, "c": calm})) == "90%"
    assert words.share_of_limit(words.merged({"a": busy, "b": busy, "c": calm})) == words.NOISY


def test_what_every_process_times_is_the_median_of_them():
    ours = words.merged(SETS)["optimc"]
    assert ours == {**figure(105.0), "min": 90.0, "max": 132.0, "repeats": 10, "ratio": 1.0,
                    "swing": pytest.approx(1.2 / 0.9)}
    assert words.merged(SETS)["torch default"] == {"error": "ValueError: a | b"}


@pytest.mark.parametrize("peer, said", [(200.0, "optimc: its Adam is 2 times as fast as the fastest peer here, p."),
                                        (101.0, "optimc or p: within 5% of each other"),
                                        (50.0, "p: it is 2 times as fast as optimc here.")])
def test_recommendations_follow_the_figures(peer, said):
    figures = {**SETS["numpy"], "p": figure(peer)}
    del figures["NumPy out="]
    first, second, third = words.recommendation(Work([(100,)]), (1, 2), {"numpy": figures})
    assert first.startswith(said)
    assert second == "2 threads are 1.7 times as fast as one."
    assert third.startswith("optimc runs at 95% of memory bandwidth on one thread: only")


def test_a_recommendation_names_what_bounds_the_step():
    figures = {"optimc": figure(100.0), "limit: memory": figure(60.0), "limit: divider": figure(80.0)}
    assert words.recommendation(Work([(100,)]), (1,), {"numpy": figures}) == [
        "optimc runs at 80% of divide throughput on one thread."]
    figures["limit: memory"] = figure(102.0)
    assert words.recommendation(Work([(100,)]), (1,), {"numpy": figures}) == [
        "optimc runs at the limit of memory bandwidth on one thread: only an optimizer with fewer slots, or more "
        "threads, would be faster."]


CALM = {"optimc": figure(100.0), "optimc, 2 threads": figure(60.0), "limit: memory": figure(90.0), "p": figure(300.0)}


@pytest.mark.parametrize("name", CALM)
def test_of_a_busy_machine_it_gives_no_advice(name):
    assert len(words.recommendation(Work([(100,)]), (1, 2), {"numpy": CALM})) == 3
    busy = {**CALM, name: {**CALM[name], "max": 6.2 * CALM[name]["min"]}}
    assert words.recommendation(Work([(100,)]), (1, 2), {"numpy": busy}) == [
        "Too noisy to judge: the slowest repeat took 6.2 times as long as the fastest. Run it again on a quieter "
        "machine, or with more --seconds."]


def test_who_beats_the_limit_is_too_noisy_to_judge():
    said, = words.recommendation(Work([(100,)]), (1, 2), {"numpy": {**CALM, "limit: memory": figure(179.0)}})
    assert said.startswith("Too noisy to judge: optimc came out faster than the machine's limit. ")
    assert "%" not in said


def test_a_slow_peer_may_vary():
    figures = {**CALM, "q": {**figure(900.0), "max": 9000.0}}
    first, *_ = words.recommendation(Work([(100,)]), (1, 2), {"numpy": figures})
    assert first == "optimc: its Adam is 3 times as fast as the fastest peer here, p."


def test_threads_are_praised_beyond_the_spread_only():
    figures = {"optimc": figure(100.0), "optimc, 2 threads": figure(93.0)}
    _, = [said for said in words.recommendation(Work([(100,)]), (1, 2), {"numpy": figures})
          if said == "2 threads are no faster than one for these shapes: one is enough."]
