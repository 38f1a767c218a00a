"""The gallery: every script is short, runs without a warning, draws one figure, and prints what its text claims."""

import ast
import re
import runpy
import sys

import pytest
from conftest import require
from places import ROOT

from optimc import schedules
from optimc.registry import classes

require("matplotlib")
require("sklearn")
SCRIPTS = {path.stem.removeprefix("plot_"): path for path in sorted(ROOT.glob("examples/gallery/*.py"))}
#: what must hold of the numbers that a script prints after each label
CLAIMS = {
    "adam_bias_correction": lambda n: n["without"] == [3.16, 6.57] and n["with bias correction"] == [1, 1],
    "adam_epsilon": lambda n: 0.8e-7 < n["Adam, epsilon 1e-7"][0] < 1.2e-7 < 0.8e-4 < n["Adam, epsilon 1e-4"][0]
    < 1.2e-4 < n["RMSprop, epsilon 1e-7"][0] < 3e-4,
    "adam_lazy_rows": lambda n: n["dense Adam"][0] == n["lazy Adam"][0]
    and all(0.45 < lazy / dense < 0.75 for dense, lazy in zip(n["dense Adam"][1:5], n["lazy Adam"][1:5], strict=True))
    and n["lazy Adam"][6] > 0.5 > 0.2 > n["dense Adam"][6] > n["Adagrad"][6],
    "adam_radam": lambda n: n["RAdam"][-3] == 1 and n["RAdam"][-2] < 0.1 < 0.5 < n["RAdam"][-1] < 0.7
    and n["Adam"][-3:] == [1, 1, 1] and 0.49 < n["Adam with a linear warm-up"][-1] < 0.51,
    "adaptive_adabelief": lambda n: n["Adam"][0] == 1 and n["AdaBelief"][0] > 80
    and n["AdaBelief"][1] < 0.02 and n["Adam"][1] < 0.02,
    "adaptive_adadelta": lambda n: n["0.001"][-1] == 2.3 and n["0.1"][-1] > 1.5 and n["1.0"][-1] < 0.5,
    "adaptive_moving_minimum": lambda n: n["RMSprop(0.1)"][1] < 0.35 and n["Adagrad(2)"][1] > 0.9
    and n["Adagrad(2)"][0] < 0.3,
    "average_asgd": lambda n: n["average"][0] < n["weights"][0] / 3,
    "average_ema": lambda n: n["average"][1] < n["weights"][0] and n["weights"][1] > 0.5,
    "average_schedule_free": lambda n: all(free < cosine for cosine, free in n.values()) and len(n) == 3,
    "decay_decoupled": lambda n: 0.35 < n["decoupled"][0] <= n["decoupled"][1] < 0.39
    and n["coupled"][0] < 0.05 < 0.95 < n["coupled"][1],
    "decay_ftrl": lambda n: n["Adagrad"][0] == 0 and n["Ftrl"][0] > 40 and n["Ftrl"][-1] > n["Adagrad"][-1],
    "gradient_clipping": lambda n: n["global_clipnorm=0.1"] == [0.15] and n["not clipped"][0] > 2,
    "gradient_loss_scale": lambda n: n["skipped steps"][0] < 30 and n["scale"] == [2**24, 2**15],
    "gradient_outlier": lambda n: 4000 < n["Adam"][0] < 5000 and 4000 < n["Adamax"][0] < 5000
    and 9000 < n["Yogi"][0] < 10_500 and n["AMSGrad"][1] == 0.3 and n["Adam"][-1] == 1,
    "layers_adafactor": lambda n: n["Adam"][:3] == [2048, 64, 32] and n["Adam"][3] > 0.85,
    "layers_lars_lamb": lambda n: n["LARS"] == n["LAMB"] == [1, 1] and n["SGD"][1] > 900 and n["Adam"][1] > 9000,
    "layers_muon": lambda n: n["Muon"][0] > 0.8 and n["Muon"][1] > 0.1 > n["Adam"][1] > n["SGD"][1]
    and n["SGD"][0] < 0.3 and n["SGD"][1] < 0.01,
    "memory_rounding": lambda n: n["float32"] == n["bfloat16, at random"] == [0.86, 0.0121]
    and n["8 bits, at random"] == [0.87, 0.012] and n["bfloat16, to nearest"] == [1.04, 1.0413],
    "momentum_swing": lambda n: n["Nesterov momentum"][0] > n["classical momentum"][0]
    and n["Nesterov momentum"][-1] < 50 < 80 < n["classical momentum"][-1],
    "momentum_ravine": lambda n: n["momentum 0.8"][1] < n["gradient descent"][1] / 100,
    "momentum_turn": lambda n: n == {"Adam": [6], "Nadam": [5], "Adan": [5]},
    "schedule_range_test": lambda n: min(n, key=lambda rate: n[rate][-1]) == "0.3162" and n["3.1623"][-1] > 2
    and len(n) == 11,
    "schedule_shapes": lambda n: n == {},
    "sign_lion": lambda n: n["Lion"] == [0.2, 0.2] and n["SGD"][0] < 0.001 and n["SGD"][1] > 0.5,
    "sign_rprop": lambda n: n["569 rows, Rprop"][0] < n["569 rows, Adam"][0]
    and n["16 rows, Rprop"][0] > n["16 rows, Adam"][0],
}


def numbers(printed):
    """The numbers after the colon of each printed line, by what stands before it."""
    lines = (line.partition(": ") for line in printed.splitlines())
    return {label: [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?", text)]
            for label, _, text in lines}


def names(path):
    """The names that a script takes from optimc and from its modules."""
    return {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=SCRIPTS)
def test_form(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    from gallery_figures import SUBJECTS, alt_text

    text = path.read_text("utf-8")
    assert path.match("plot_*.py") and path.stem.split("_")[1] in SUBJECTS
    assert max(map(len, text.splitlines())) <= 88
    title, rule, *body = ast.get_docstring(ast.parse(text)).splitlines()
    assert rule == "=" * len(title) and body[1]
    code = re.sub(r'^r?""".*?"""', "", text, flags=re.S).splitlines()
    assert len([line for line in code if line.strip() and not line.startswith("#")]) <= 40
    assert f'fig.suptitle("{title}")' in text and text.endswith("plt.show()\n")
    assert 80 < len(alt_text(text)) < 450


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_draws_what_it_says(name, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS[name])])
    try:
        runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
        assert len(plt.get_fignums()) == 1
        figure = plt.gcf()
        figure.canvas.draw()
        axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
        assert figure.get_supxlabel() or all(ax.get_xlabel() or ax.get_title() for ax in axes)
        assert figure.get_supylabel() or axes[0].get_ylabel()
    finally:
        plt.close("all")
    assert CLAIMS[name](numbers(capsys.readouterr().out))


def test_every_claim_is_of_a_script():
    assert set(CLAIMS) == set(SCRIPTS)


def test_every_optimizer_and_schedule_is_shown():
    used = set.union(*map(names, SCRIPTS.values()))
    assert {*classes, *schedules.public()} <= used
