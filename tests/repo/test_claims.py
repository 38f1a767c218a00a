"""The pages of the site say of options, environment variables and figures what the sources hold."""

import json
import re
import sys
import tomllib

import pytest
from pages import keras_gains
from places import ROOT

import optimc
from optimc.base.arguments import Argument, Fixed, Option, Value
from optimc.base.rules import WHOLE

if not (ROOT / "notebooks").exists():
    pytest.skip("needs the repository: an sdist has neither notebooks nor benchmarks", allow_module_level=True)

sys.path.append(str(ROOT))          # last: optimc may be an installed one

from benchmarks import report
from optimc.cli.bench.processes import OURS, STREAM, with_threads
from optimc.cli.bench.words import duration, merged

READ = re.compile(r"""(?:getenv\(|environ(?:\.get\(|\[))["'](OPTIMC_\w+)""")


def page(name):
    return (ROOT / "docs" / name).read_text("utf-8")


def rows(text):
    """The cells of every row of a page's tables whose first cell is code: its content, then the other cells."""
    found = re.findall(r"^\| `([^`|]+)` \| (.*) \|$", text, re.M)
    return [(name, *rest.split(" | ")) for name, rest in found]


def variables_read(root):
    """The environment variables of optimc that a source reads."""
    files = [path for folder in ("optimc", "csrc", "tests", "benchmarks", "tools")
             for ending in ("py", "c", "h", "inc") for path in root.glob(f"{folder}/**/*.{ending}")]
    return {name for path in [root / "setup.py", *files] for name in READ.findall(path.read_text("utf-8"))}


def test_every_environment_variable_has_a_line():
    assert {name for name, *_ in rows(page("reference/environment.md"))} == variables_read(ROOT)


def test_a_new_environment_variable_would_be_noticed(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.c").write_text("const char *a = getenv(" + '"OPTIMC_A");')
    (tmp_path / "setup.py").write_text("environ[" + "'OPTIMC_B'], environ.get(" + '"OPTIMC_C"), "OPTIMC_D"')
    assert variables_read(tmp_path) == {"OPTIMC_A", "OPTIMC_B", "OPTIMC_C"}


def kind(argument):
    if isinstance(argument, Value):
        return "value"
    return "fixed" if isinstance(argument, Fixed) or (isinstance(argument, Option) and argument.fixed) else "setting"


def test_every_option_has_a_line_with_its_kind_and_default():
    common = {name: argument for name, argument in vars(optimc.Optimizer).items()
              if isinstance(argument, (Argument, Fixed))} | {"cautious": optimc.Adam._arguments["cautious"]}
    said = {name: re.match(r"(\w+), `([^`]*)`", cells[0]).groups() for name, *cells in
            rows(page("reference/options.md"))}
    assert said == {name: (kind(argument), repr(getattr(argument, "default", None)).replace("'", '"'))
                    for name, argument in common.items()}
    whole = re.search(r"except for (.*?)\.\n", page("reference/options.md"))[1]
    assert set(re.findall(r"`(\w+)`", whole)) == set(WHOLE)
    assert f"(`AdamW`: `{optimc.AdamW().weight_decay}`)" in page("reference/options.md")


@pytest.fixture(scope="module")
def figures():
    """The committed figures: case -> who -> what was measured."""
    return {case["name"]: merged(case["sets"]) for case in report.load(report.RESULTS)["cases"]}


def test_figures_of_the_reasons_are_those_of_the_results(figures):
    text = " ".join(page("explain/why-it-is-fast.md").split())
    small, million, large = (figures[name] for name in ("lists/small network", "sizes/1 000 000", "sizes/25 000 000"))
    ours, numpy = ([duration(figure[name]["median"]) for figure in (small, large)] for name in (OURS, "NumPy out="))
    assert f"769 weights {ours[0]}, where NumPy needs {numpy[0]}" in text
    assert f"optimc takes {ours[1]}, NumPy {numpy[1]}" in text
    two = [f"{100 * figure[with_threads(OURS, 2)]['ratio']:.0f} %" for figure in (million, large)]
    assert f"Two threads take {two[0]} of the time of one at a million weights, and {two[1]} at 25 million" in text
    assert f"and takes {large['torch fused']['ratio']:.2f} times as long at 25 million" in text
    ratio = figures["options/clip, AdamW, EMA"]["torch fused"]["ratio"]
    assert f"torch's fused AdamW takes {ratio:.2f} times as long as optimc at 25 million" in text
    speed = large[STREAM]["bytes"] / large[STREAM]["median"]
    assert f"reads and writes {speed:.0f} GB/s, so that is {28 / speed:.1f} ns per weight" in text
    assert f"about {duration(figures['sizes/1'][OURS]['median'])}" in text


def test_figures_of_whole_steps_are_those_of_the_adapters_pages():
    table = {cells[0]: cells[1] for cells in
             (line.strip("| ").split(" | ") for line in page("performance/whole-steps.md").splitlines()
              if line.startswith("| "))}
    of = keras_gains(page("howto/keras.md"))
    assert table["Keras on torch, 10 → 64 → 1"] == f"{of['torch'][0]}"
    for backend in ("tensorflow", "jax"):
        said = f"{of[backend][0]} to {of[backend][-1]}: equal or faster"
        assert table[f"Keras on {backend}, three networks"] == said and of[backend][0] >= 1
    # a range of fits that holds 1 shows no gain
    sklearn = [(float(ratio), float(least)) for ratio, least in
               re.findall(r"\| ([\d.]+) \(([\d.]+) to ", page("howto/scikit-learn.md"))]
    gains = [ratio for ratio, least in sklearn if least > 1]
    assert 0 < len(gains) < len(sklearn)
    said, readme = f"{min(gains)} to {max(gains)}", (ROOT / "README.md").read_text("utf-8")
    assert table["scikit-learn's `MLPClassifier`, digits"].startswith(f"{said}; with large batches no gain")
    for text in (page("howto/scikit-learn.md"), readme):
        assert re.search(rf"{said} times.*?with large batches no gain could be measured", " ".join(text.split()))
    against, fused = (f"{gain:.1f}" for gain in torch_gains())
    row = table["torch, network of 4929 weights, against `torch.optim.Adam`"]
    assert row == f"{against} ({fused} against `fused=True`)"
    for text in (page("howto/pytorch.md"), readme):
        assert f"became {fused} to {against} times as fast" in " ".join(text.split())


def torch_gains():
    """Returns the gains that torch.ipynb printed, of whole steps: over torch's default Adam, over its fused one."""
    cells = json.loads((ROOT / "notebooks" / "torch.ipynb").read_text("utf-8"))["cells"]
    printed = "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
    gains = re.findall(r"whole training step ([\d.]+) times optimc's", printed)
    assert len(gains) == 3 and gains[2] == "1.00"
    return float(gains[0]), float(gains[1])


def test_multiples_beyond_the_cache_are_those_of_the_results(figures):
    weights = {case["name"]: case["weights"] for case in report.load(report.RESULTS)["cases"]}
    large = [figures[case]["torch fused"]["ratio"] for case in figures
             if case.startswith(("sizes/", "lists/", "float64/")) and weights[case] >= 10_000_000]
    said = " ".join(page("performance/results.md").split())
    assert f"torch's fused Adam takes {min(large):.2f} to {max(large):.2f} times as long as optimc" in said
    million = figures["sizes/1 000 000"]["torch fused"]["ratio"]
    assert f"With one million weights it takes {million:.2f} times as long" in said


def test_the_entry_to_cite_has_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"version = {{{project['version']}}}" in page("project/citing.md")
    assert f"license = {{{project['license']}}}" in page("project/citing.md")
