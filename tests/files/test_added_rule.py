"""Files of today load after a rule with more hyperparameters and scalars than any has been added."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

import pytest
from places import ROOT

COMPILER = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
NAMES = ", ".join(f"h_{k}" for k in range(9))
RULE = """
RULE(added, velocity)
{
    *velocity = *velocity * c->keep + g;
    STEP(*velocity * c->rate);
}

COEFS(added)
{
    after->third = (step->t > 1 ? before->third : 1) * h->h_8;
    after->first = before->first + 1;
    after->second = before->second - 1;
    c->keep = (real)(1 - POWER(h_8));
    c->rate = (real)(lr * after->third);
}
"""
#: trains an optimizer with the added rule, saves it on the way, and prints whether a loaded one goes on as it does
CHECK = """
import sys, numpy as np, optimc
from optimc.base.arguments import Value
from optimc.checkpoint.saving import load
arguments = {f"h_{k}": Value(0.5) for k in range(9)}
Added = type("Added", (optimc.Optimizer,), {"_rule": "added", "learning_rate": Value(0.5), **arguments})
steps = [0.5, 0.25, 0.125, 0.5]
straight, w = Added(h_8=optimc.schedules.ExponentialDecay(0.5, 3, 0.5)), np.ones(4, np.float32)
for step in range(3):
    straight.apply([w * step], [w])
straight.save(sys.argv[1])
again, other = load(sys.argv[1], {"Added": Added}), w.copy()
for step in range(3):
    straight.apply([w * step], [w])
    again.apply([other * step], [other])
print(len(again._get_running()[0]["products"]), again._scalars()[:2], (w == other).all() and w[0] not in (0, 1))
"""


def edited(path, *changes):
    text = path.read_text("utf-8")
    for pattern, replacement in changes:
        text, n = re.subn(pattern, replacement, text, count=1)
        assert n == 1, pattern
    path.write_text(text, "utf-8")


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which(COMPILER) and (ROOT / "setup.py").exists()),
                    reason="needs Linux, a C compiler and the source tree")
def test_files_load_after_a_larger_rule_was_added(tmp_path):
    pytest.importorskip("setuptools", "77")
    for name in ("csrc", "optimc", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    edited(tmp_path / "csrc" / "kernels" / "kernels.h", (r"MAX_HYPERS = \d+", "MAX_HYPERS = 9"),
           (r"MAX_SCALARS = \d+", "MAX_SCALARS = 3"))
    edited(tmp_path / "csrc" / "optimizers.def",
           (r"\nRULE_ROW\(", rf"\nRULE_ROW(added, (velocity), (NEAREST), ({NAMES}), (keep, rate),"
                               r" (first, second, third,))\n"
                               r"KERNEL_ROW(added, added, PLAIN, SLOT_0)\g<0>"))
    with (tmp_path / "csrc" / "rules.inc").open("a") as file:
        file.write(RULE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OPTIMC_DEBUG": "1"}

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, check=True, timeout=300).stdout

    run("setup.py", "-q", "build_ext", "--inplace", "-j2")
    assert str(tmp_path) in run("-c", "import optimc; print(optimc.__file__)")
    assert run("-c", CHECK, str(tmp_path / "added.safetensors")).split() == ["1", "(6.0,", "-6.0)", "True"]
    run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/files/test_golden.py")
