"""The benchmark of storage in fewer bits: which options are refused, who is timed, and how many bytes are counted."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from conftest import require
from figures import figure
from places import ROOT

from optimc.__main__ import main
from optimc.cli.bench import limit, peers, processes, storage, words
from optimc.cli.bench.peers import Ours, Work
from optimc.cli.bench.processes import Job

sys.path.append(str(ROOT))          # last: optimc may be an installed one

SHAPES = [(5000,), (70, 90), (1,)]
N = Work(SHAPES).weights
BLOCKS = sum(-(-n // 256) for n in (5000, 6300, 1))
ALL_BFLOAT16 = {"state_dtype": "bfloat16", "master_weights": False}
INT8 = {"state_dtype": {"m": "int8", "v": "int8"}}


@pytest.fixture(autouse=True)
def bfloat16():
    require("ml_dtypes")


def call(*argv):
    try:
        return main(["bench", *argv])
    except SystemExit as stop:
        return stop.code


# ----------------------------------------------------------------------------------------- the bytes

@pytest.mark.parametrize("work, kept, moved", [
    (Work(SHAPES), 12, 28),
    (Work(SHAPES, arguments={"state_dtype": {"m": "bfloat16"}}), 10, 24),
    (Work(SHAPES, arguments={"state_dtype": "bfloat16"}), 8, 20),
    (Work(SHAPES, arguments=INT8), 6 + 8 * BLOCKS / N, 16 + 16 * BLOCKS / N),
    (Work(SHAPES, "bfloat16"), 12, 26), (Work(SHAPES, "float16"), 14, 30),
    (Work(SHAPES, "bfloat16", arguments=ALL_BFLOAT16), 6, 14), (Work(SHAPES, grads="bfloat16"), 12, 26),
    (Work(SHAPES, "bfloat16", grads="float32"), 12, 28),
    (Work(SHAPES, "bfloat16", "AdamW", {"use_ema": True}), 12, 34),
    (Work(SHAPES, "bfloat16", "Lamb"), 16, 42),             # the weight and its rest are read twice
    (Work(SHAPES, "float64", arguments={"state_dtype": "bfloat16"}), 12, 32),
], ids=str)
def test_all_bytes_are_counted(work, kept, moved):
    counted = storage.sizes(work, Ours(work))
    padding = 12 / N                            # of codes, to whole scales
    assert 0 <= storage.kept(counted) - kept <= padding
    assert counted["moved"] == pytest.approx(moved)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("work", [
    Work(SHAPES, arguments={"state_dtype": "int8"}), Work(SHAPES, "float16", "Lamb"),
    Work(SHAPES, "bfloat16", "AdamW", {**INT8, "use_ema": True, "global_clipnorm": 1.0})], ids=str)
def test_the_stream_leaves_codes_and_masters_as_they_are(work, threads):
    ours = Ours(work)
    ours.step()
    optimizer = ours.optimizer
    arrays = [*ours.weights, *ours.grads, *(optimizer._averages or ()), *(optimizer._masters or ()),
              *(array for arrays in optimizer._slots.values() for array in arrays)]
    before = [array.tobytes() for array in arrays]
    try:
        limit.stream(work, ours, threads)()
        limit.divider(work, ours)()
    except limit.NoLimit as error:
        pytest.skip(str(error))
    assert [array.tobytes() for array in arrays] == before


def test_arrays_that_lie_alike_are_streamed_together():
    work = Work(SHAPES, arguments={"state_dtype": "int8"})          # the last is too small for it
    ours = Ours(work)
    one, = limit.passes(work, ours)
    together = list(limit._together(ours, one))
    assert [[array.itemsize for array in (*read, *both)] for read, both in together] == [
        [4, 4, 1, 1], [4, 4], [4, 4, 1, 1], [4, 4], [4, 4, 4, 4]]
    assert [both[0].size for _, both in together] == [5000, 20, 6300, 25, 1]


# ------------------------------------------------------------------------------------------ the peers

def test_peers_have_the_work_that_they_store_alike():
    torch = ["torch fused", "torch foreach", "torch default"]
    in_8_bits = ["bitsandbytes 8-bit", "torchao 8-bit"]
    assert not {*in_8_bits} & {*peers.suited(Work(SHAPES))}
    assert peers.suited(Work(SHAPES, "bfloat16", arguments=ALL_BFLOAT16)) == torch
    assert peers.suited(Work(SHAPES, "bfloat16", "SGD", {"master_weights": False})) == torch
    assert peers.suited(Work(SHAPES, arguments=INT8)) == in_8_bits
    for other in (Work(SHAPES, "bfloat16"), Work(SHAPES, grads="bfloat16"), Work(SHAPES, "float16"),
                  Work(SHAPES, "bfloat16", arguments={"master_weights": False}),
                  Work(SHAPES, arguments={"state_dtype": {"m": "int8"}}),
                  Work(SHAPES, "bfloat16", arguments={**ALL_BFLOAT16, "state_dtype": {"m": "bfloat16"}}),
                  Work(SHAPES, "bfloat16", grads="float32", arguments=ALL_BFLOAT16)):
        assert peers.suited(other) == []


def test_torch_takes_the_same_step_in_bfloat16():
    require("torch")
    work = Work([(50, 40)], "bfloat16", "AdamW", ALL_BFLOAT16)
    step = peers.torch_step(fused=True)(work)
    ours = Ours(work)
    param, = step.__self__.param_groups[0]["params"]
    step()
    ours.step()
    theirs = param.detach().float().numpy()
    np.testing.assert_allclose(theirs, ours.weights[0].astype("f4"), rtol=2 ** -7)
    assert param.grad.dtype == param.dtype and theirs.tobytes() != work.arrays(0)[0].astype("f4").tobytes()


@pytest.mark.parametrize("name", ["bitsandbytes", "torchao"])
def test_steps_in_8_bits_are_taken(name):
    pytest.importorskip(name)               # no framework beside which optimc stands: never required
    peer, = peers.SETS[name][1].values()
    step = peer.build(Work([(64, 64)], "float32", "AdamW", INT8))
    if name == "bitsandbytes":                  # torchao compiles for half a minute
        step()


# ---------------------------------------------------------------------------------------- the variants

def test_variants_step_in_the_same_process(monkeypatch):
    shapes = [(40_000,)]
    work = Work(shapes)
    variants = {"narrow": Work(shapes, "bfloat16", arguments=ALL_BFLOAT16), "float64": Work(shapes, "float64")}
    job = Job("", work, (1, 2), repeats=5, seconds=0, budget=0, peers=(), variants=variants)
    assert Job.from_json(json.loads(json.dumps(job))) == job._replace(peers=[])
    figures = processes.measure(job, "numpy")
    names = ["optimc", "optimc, 2 threads", "optimc, narrow", "optimc, narrow, 2 threads", "optimc, float64",
             "optimc, float64, 2 threads"]
    assert [name for name in figures if not name.startswith("limit")] == names
    if "median" in figures["limit: memory"]:
        assert figures["limit: memory, narrow"]["bytes"] == 40_000 * 14
        assert 0 < words.share(figures, 1, "narrow") == words.bound(figures, variant="narrow") / figures[
            "optimc, narrow"]["median"]
    assert "limit: memory, float64" not in figures
    assert [figures[name]["moved"] for name in names[::2]] == [28, 14, 56]


def test_a_variant_that_cannot_be_built_is_a_line(monkeypatch):
    def refuse(work):
        if work.narrow:
            raise ImportError("no such numbers")
        return Ours(work)
    monkeypatch.setattr(processes, "Ours", refuse)
    job = Job("", Work([(9,)]), repeats=5, seconds=0, budget=0, peers=(), variants={"n": Work([(9,)], "bfloat16")})
    figures = processes.measure(job, "numpy")
    assert figures["optimc, n"] == {"error": "ImportError: no such numbers"} and figures["optimc"]["repeats"] == 5


# ----------------------------------------------------------------------------------------- the command

@pytest.mark.parametrize("argv, said", [
    (["--state-dtype", "int8", "--optimizer", "sgd"], "--state-dtype: SGD has no slots to store as int8"),
    (["--state-dtype", "int8", "--optimizer", "lion"], "--state-dtype: Lion cannot store m as int8"),
    (["--state-dtype", "bfloat16", "--optimizer", "ftrl"],
     "--state-dtype: Ftrl cannot store accumulator, linear as bfloat16"),
    (["--state-dtype", "int4"], "invalid choice: 'int4'"),
    (["--no-master-weights"],
     "--no-master-weights: only bfloat16 weights can do without a master, got --dtype float32"),
    (["--no-master-weights", "--dtype", "float16"], "can do without a master, got --dtype float16"),
    (["--peers", "bitsandbytes"], "nothing to time: bitsandbytes 8-bit (stores arrays otherwise)"),
])
def test_storage_that_cannot_be_is_one_line(capsys, argv, said):
    assert call(*argv) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_bfloat16_needs_its_package(monkeypatch, capsys):
    def absent(work):
        raise ImportError("bfloat16 weights need ml_dtypes: pip install ml_dtypes")
    monkeypatch.setattr(storage, "Ours", absent)
    assert call("--dtype", "bfloat16") == 2
    assert capsys.readouterr() == (
        "", "optimc bench: error: --dtype bfloat16: bfloat16 weights need ml_dtypes: pip install ml_dtypes\n")


def here(monkeypatch, *missing):
    """Runs the processes' work in this one, a few times only, without these modules."""
    monkeypatch.setattr(processes, "run", lambda jobs, name: [
        (job, processes.measure(job._replace(repeats=5, seconds=0, budget=0), name)) for job in jobs])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(processes.importlib.util, "find_spec",
                        lambda name: None if name in missing else find_spec(name))


def test_the_table_says_how_many_bytes_are_kept_and_moved(monkeypatch, capsys, tmp_path):
    here(monkeypatch, "bitsandbytes", "torchao")
    path = tmp_path / "b.json"
    assert call("--shapes", "256x8", "--state-dtype", "int8", "--threads", "1", "--json", str(path)) == 0
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert out.splitlines()[3].endswith("relative time (optimc = 1)  bytes kept  bytes moved")
    assert [cell for cell in rows["optimc"] if cell not in ("noisy",)][-2:] == ["6.03", "16.1"]
    assert [cell for cell in rows["optimc, float32"] if cell not in ("noisy",)][-2:] == ["12", "28"]
    assert "\nBytes per weight: 4 for the weight, 2.03 for slots, 4 for its gradient.\n" in out
    assert ("\nskipped: bitsandbytes 8-bit (bitsandbytes is not installed), torchao 8-bit (torchao is not "
            "installed)\n" in out)
    assert "\nleft out, as they store arrays otherwise: NumPy out=, NumPy plain, torch fused, " in out
    job = json.loads(path.read_text())["job"]
    assert job["work"]["arguments"] == INT8 and job["variants"]["float32"]["arguments"] == {}


def test_masters_and_rounding_are_told(monkeypatch, capsys):
    require("torch")
    here(monkeypatch)
    argv = ["--shapes", "9", "--dtype", "bfloat16", "--threads", "1", "--peers", "torch fused"]
    assert call(*argv) == 0
    out = capsys.readouterr().out
    assert "\nBytes per weight: 2 for the weight, 2 for its master, 8 for slots, 2 for its gradient.\n" in out
    assert "\nleft out, as they store arrays otherwise: torch fused\n" in out and "nearest" not in out
    assert call(*argv, "--state-dtype", "bfloat16", "--no-master-weights") == 0
    out = capsys.readouterr().out
    assert "\ntorch fused " in out and f"\n{storage.TO_NEAREST}\n" in out and "left out" not in out


def test_float32_is_compared_in_words():
    figures = {"numpy": {"optimc": figure(100.0), "optimc, float32": figure(130.0)}}
    first, *_ = words.recommendation(Work(SHAPES, "bfloat16"), (1,), figures)
    assert first == "In float32, a step takes 1.30 times as long."


# ----------------------------------------------------------------------------- python -m benchmarks

def results():
    storage_cases = pytest.importorskip("benchmarks.storage")
    limits = {"limit: memory, int8, 2 threads": figure(50.0), "limit: divider": figure(40.0)}
    times = {"optimc": 100.0, "optimc, 2 threads": 80.0, "torch fused": 110.0, "optimc, all bfloat16": 90.0,
             "torch fused, all bfloat16": 99.0, "optimc, int8": 200.0, "optimc, int8, 2 threads": 78.0,
             "optimc, m bfloat16": 95.0, "optimc, split, 2 threads": 70.0}
    large = {"group": "storage", "title": "large", "name": "storage/large", "threads": [1, 2], "weights": 25_000_000,
             "variants": [*storage_cases.VARIANTS],
             "sets": {"torch": {name: figure(time) for name, time in times.items()} | limits}}
    small = {**large, "title": "small", "name": "storage/small", "threads": [1], "weights": 1 << 20,
             "sets": {name: {"optimc": figure(100.0), "optimc, int8": figure(150.0),
                             f"{name} 8-bit, int8": figure(time), "limit: memory, int8": figure(90.0, bytes=1 << 24)}
                      for name, time in (("bitsandbytes", 4500.0), ("torchao", 1500.0))}}
    return {"cases": [large, small], "versions": {}, "missing": {}, "interrupted": False, "date": "2026-01-02",
            "cpu": "a CPU", "command": "python -m benchmarks"}


def test_targets_of_storage_are_judged():
    from benchmarks import report
    lines = report.targets(results()).splitlines()
    for line in ("large: m bfloat16: 1.0 times as fast as float32 | 1.05 | met |",
                 "large: int8: 0.6 times as fast as float32 | 0.50 | not met |",
                 "large: int8, 2 threads: 1.1 times as fast as float32, or 95% of the limit | 1.03, 64% | not met |",
                 "large: split, 2 threads: 1.05 times as fast as float32 | 1.14 | met |",
                 "large: all bfloat16: 1.2 times as fast as torch fused | 1.1 | not met |",
                 "small: int8: 20 times as fast as bitsandbytes 8-bit | 30 | met |",
                 "small: int8: 20 times as fast as torchao 8-bit | 10 | not met |"):
        assert f"| storage/{line}" in lines
    assert report.raced(results()) == {"storage/large", "storage/small"}


def test_near_the_limit_is_fast_enough():
    from benchmarks import report
    found = results()
    figures = found["cases"][0]["sets"]["torch"]
    figures["limit: memory, int8, 2 threads"] = figure(75.0)
    assert "float32, or 95% of the limit | 1.03, 96% | met |" in report.targets(found)
    figures["limit: memory, int8, 2 threads"] = {**figure(75.0), "max": 999.0}
    assert "| 1.03, limit too noisy to judge | not judged |" in report.targets(found)


def test_each_variant_has_its_bytes_and_its_share():
    from benchmarks import report
    rows = [line.split(" | ") for line in report.whole(results()).splitlines() if " 8-bit" in line or "int8" in line]
    by_name = {row[1]: row for row in rows}
    assert by_name["optimc, int8"][8] == "16" and by_name["optimc, int8"][11].rstrip(" |") == "60%"
    assert by_name["limit: memory, int8"][8] == "16" and by_name["torchao 8-bit, int8"][8] == ""


def test_without_its_peers_a_case_with_variants_is_still_timed(monkeypatch):
    from benchmarks import __main__ as benchmark
    monkeypatch.setattr(processes, "missing", lambda name: "it" if name != "numpy" else None)
    job = Job("", Work([(4,)]), peers=("torch fused",), variants={"n": Work([(4,)], "bfloat16")})
    assert benchmark.sets_of(job) == ["numpy", "torch"]
    assert benchmark.sets_of(job._replace(variants={})) == ["torch"]
    monkeypatch.setattr(processes, "missing", lambda name: None)
    assert benchmark.sets_of(job) == ["torch"]


def test_optimc_has_an_optimizer_for_every_variant():
    from benchmarks import workloads
    variants = [work for case in workloads.cases(2) for work in case.job.variants.values()]
    assert len(variants) == 7
    for work in variants:
        Ours(work._replace(shapes=[(4, 4)])).step()
