"""`python -m benchmarks`: its cases, what it writes of results, what it measures again.  Nothing here is timed."""

import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import require
from figures import SETS, figure
from places import ROOT

import optimc
from optimc import _core
from optimc.cli.bench import processes, words
from optimc.cli.bench.peers import Ours, Work

sys.path.append(str(ROOT))          # last: optimc may be an installed one

from benchmarks import libraries, report, workloads


def test_the_cases_reach_every_kernel_of_a_vector():
    reached = {cls._kernel_of(None, np.ones(1)) for cls in
               (getattr(optimc, name)(**arguments) for name, arguments in workloads.variants())}
    assert reached == set(_core.kernels) - {"adafactor", "adafactor_rebuilt", "muon"}


def test_cases_have_names_of_their_own():
    names = [f"{case.group}/{case.title}" for case in workloads.cases(2)]
    assert len(set(names)) == len(names)
    assert set(workloads.QUICK) <= set(names) and set(report.ROWS) <= set(names)


def test_optimc_has_an_optimizer_for_every_case():
    for case in workloads.cases(2):
        Ours(case.job.work._replace(shapes=[(4, 4)])).step()


def test_the_networks_are_those_of_their_papers():
    assert len(workloads.resnet50()) == 161 and Work(workloads.resnet50()).weights == 25_557_032
    assert len(workloads.gpt2_small()) == 148 and Work(workloads.gpt2_small()).weights == 124_439_808


@pytest.fixture
def results():
    case = {"group": "sizes", "title": "25 000 000", "optimizer": "Adam", "arguments": {}, "dtype": "float32",
            "arrays": 1, "weights": 25_000_000, "threads": [1, 2]}
    return {"command": "python -m benchmarks", "date": "2026-01-02", "cpu": "a CPU", "versions": {"optimc": "0.1"},
            "missing": {"thinc": "thinc"}, "interrupted": False, "import_ms": 12.0, "seconds": 3,
            "cases": [{**case, "name": "sizes/25 000 000", "sets": SETS},
                      {**case, "name": "lists/small network", "group": "lists", "title": "small network",
                       "weights": 769, "sets": {"torch": {"optimc": figure(700.0), "torch fused": figure(350.0)}}},
                      {**case, "name": "sizes/10", "title": "10", "weights": 10, "sets": {}}]}


def test_the_table_shows_where_we_do_not_win(results):
    lines = report.headline(results).splitlines()
    assert lines[0].endswith(" | optimc | share of hardware limit | NumPy out= | torch fused |")
    assert "| 700 ns | - | - | **350 ns (0.50x)** |" in lines[2]
    assert "| **105 ns** | 95% | 500 ns (5.00x) | 121 ns (1.10x) |" in lines[3]
    brief = report.headline(results, ["sizes/25 000 000"], ["torch fused"], times=False).splitlines()
    assert brief[2:] == ["| one array of 25 million | **105 ns** | 95% | 1.10x |"]


def test_the_readme_compares_each_library_by_its_fastest_way(results):
    figures = results["cases"][1]["sets"]["torch"]
    figures |= {"torch default": figure(300.0), "scikit-learn": figure(7e5), "another": figure(1.0)}
    ours, others, weights = libraries.race(results)
    assert ours["median"] == 700.0 and weights == 769
    assert [(name, entry["median"], way) for name, (entry, way) in others.items()] == [
        ("PyTorch", 300.0, ""), ("scikit-learn", 7e5, "")]
    assert report.message(results) == ("A step of Adam for 769 weights takes 700 ns in optimc; other libraries take "
                                       "this many times as long: PyTorch 0.43, scikit-learn 1,000")


@pytest.mark.parametrize("ratio, text", [(0.5, "0.50"), (9.949, "9.95"), (9.96, "10"), (83.7, "84"), (3902, "3,900")])
def test_multiples_have_as_many_digits_as_they_deserve(ratio, text):
    assert words.multiple(ratio) == text


@pytest.mark.parametrize("stream, said, verdict", [
    (96.0, "96%", "not met"), (99.0, "99%", "met"), (104.0, "at the limit", "met"),
    (110.0, words.NOISY, "not judged")])
def test_no_share_above_the_limit_is_written(results, stream, said, verdict):
    results["cases"][0]["sets"] = {"numpy": {"optimc": figure(100.0), "limit: memory": figure(stream, bytes=1)}}
    assert f"| {said} |" in report.headline(results).splitlines()[3]
    assert f"| sizes/25 000 000: 97% of the limit | {said} | {verdict} |" in report.targets(results)
    assert f" {said} |\n| " in report.whole(results).partition("## sizes")[2]


def test_what_is_committed_has_no_share_above_the_limit():
    above = r"\b(10[1-9]|1[1-9]\d|[2-9]\d\d)(\.\d)?%"
    for path in ("README.md", "docs/performance/results.md", "notebooks/speed.ipynb"):
        assert not re.search(above, (ROOT / path).read_text("utf-8")), path
    text = report.RESULTS.with_suffix(".md").read_text("utf-8")
    assert re.search(r" 9\d% \|$", text, re.M) and not re.search(above + r" \|$", text, re.M)     # spreads may be


def test_targets_are_judged(results):
    text = report.targets(results)
    assert "| lists/small network: at most 600 ns | 700 ns | not met |" in text
    assert "| sizes/25 000 000: 1.05 times as fast as torch fused | 1.1 (torch fused) | met |" in text
    assert "| sizes/25 000 000: 97% of the limit | 95% | not met |" in text
    assert "| import optimc: at most 30 ms more than NumPy's | 12.0 ms | met |" in text


def test_results_are_written_and_read_again(results, tmp_path):
    require("matplotlib")
    report.write(tmp_path / "speed.json", results)
    assert report.load(tmp_path / "speed.json") == report.rounded(results)
    text = (tmp_path / "speed.md").read_text()
    assert "ValueError: a / b" in text and "| 26.7 |" in text and "Without thinc: thinc was not installed." in text
    assert (tmp_path / "speed.png").stat().st_size > 1000
    section = report.in_readme(results)
    text = report.filled("a\n<!-- speed -->\nold\n<!-- end -->\nb", section)
    assert text == f"a\n<!-- speed -->\n{section}\n<!-- end -->\nb" == report.filled(text, section)
    with pytest.raises(ValueError, match="has 0 sections"):
        report.filled("no markers", section)


def test_a_picture_is_drawn_again_when_its_results_change(results, tmp_path):
    require("matplotlib")
    from benchmarks import plots
    path = tmp_path / "small.png"
    path.write_bytes(plots.drawn(path, plots.small_network, results))
    path.write_bytes(path.read_bytes() + b"drawn by another matplotlib")
    assert plots.drawn(path, plots.small_network, results) == path.read_bytes()
    results["cases"][1]["sets"]["torch"]["optimc"] = figure(701.0)
    assert plots.drawn(path, plots.small_network, results) != path.read_bytes()
    results["cases"] = []
    assert plots.drawn(path, plots.small_network, results) is None


def test_the_benchmark_runs_one_case(tmp_path):
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--smoke", "--threads", "2",
                           "--cases", "lists/small network", "--peers", "numpy out",
                           "--out", str(tmp_path / "s.json")],
                          cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    case, = report.load(tmp_path / "s.json")["cases"]
    assert case["sets"]["numpy"].keys() == {"optimc", "optimc, 2 threads", "NumPy out="}


def test_an_interrupted_benchmark_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    from benchmarks.__main__ import main as benchmark

    def run(jobs, name):
        yield jobs[0], SETS["numpy"]
        raise KeyboardInterrupt
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr("benchmarks.__main__.import_time", lambda repeats: 1.0)
    assert benchmark(["--cases", "lists/*", "--peers", "numpy", "--out", str(tmp_path / "s.json")]) == 130
    results = report.load(tmp_path / "s.json")
    assert results["interrupted"] and results["cases"][0]["sets"] == {"numpy": SETS["numpy"]}
    assert not results["cases"][1]["sets"]
    assert "interrupted" in capsys.readouterr().out


def test_what_was_disturbed_is_measured_again(tmp_path, monkeypatch, capsys):
    from benchmarks.__main__ import main as benchmark
    calm = {"optimc": {**figure(90.0), "low": 89.0, "high": 91.0}}
    worse, failed = {"optimc": {**figure(99.0), "high": 999.0}}, {"optimc": {"error": "ValueError"}}
    lasting = {"limit: memory": {"error": "NoLimit"}}
    first, calm = {**SETS["numpy"], **lasting}, {**SETS["numpy"], **calm, **lasting}
    runs = {"lists/small network": [first, worse, failed, calm], "lists/50 x 100": [calm]}

    def run(jobs, name):
        for job in jobs:
            yield job, runs[job.name].pop(0)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr("benchmarks.__main__.import_time", lambda repeats: 1.0)
    argv = ["--cases", "lists/small network,lists/50 x 100", "--peers", "numpy out",
            "--out", str(tmp_path / "s.json")]
    assert benchmark([*argv, "--patience", "1"]) == 0
    results = report.load(tmp_path / "s.json")
    assert [case["sets"] for case in results["cases"]] == [{"numpy": calm}] * 2
    assert runs == {"lists/small network": [], "lists/50 x 100": []}
    assert "numpy again: lists/small network; spread 10%, now 2%" in capsys.readouterr().err
    assert "varied by more than 5% were measured again, for up to 1 min in all" in report.source(results)
    # Cases that no target of speed judges wait for those that one does, though they come first.
    still = {**calm, "limit: memory": {**figure(85.0), "low": 84.0, "high": 86.0}}
    runs.update({"lists/1000 x 64": [first, calm], "lists/100 x 10 000": [SETS["numpy"], still]})
    assert benchmark(["--cases", "lists/1000*,lists/100 x*", *argv[2:], "--patience", "1"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split("; ")[0] for line in said if "again" in line] == [
        "numpy again: lists/100 x 10 000", "numpy again: lists/1000 x 64"]
    runs.update({"lists/small network": [SETS["numpy"]], "lists/50 x 100": [calm]})
    assert benchmark(argv) == 0                             # without patience, nothing is
    assert report.load(tmp_path / "s.json")["cases"][0]["sets"] == {"numpy": SETS["numpy"]}


@pytest.mark.parametrize("argv, said", [(["--cases", "nothing"], "there is no case 'nothing'"),
                                        (["--peers", "nobody"], "there is no peer 'nobody'"),
                                        (["--patience", "nan"], "--patience: expected minutes, 0 or more, got nan")])
def test_bad_options_of_the_benchmark_are_one_line(capsys, argv, said):
    from benchmarks.__main__ import main as benchmark
    assert benchmark(argv) == 2
    assert said in capsys.readouterr().err
