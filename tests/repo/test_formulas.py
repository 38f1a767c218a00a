"""The formula in the docstring of every optimizer can be typeset, and computes what the optimizer does."""

import inspect
import sys

import numpy as np
import pytest
from places import ROOT

from optimc.registry import classes

if not (ROOT / "docs" / "_ext").is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.append(str(ROOT / "docs" / "_ext"))

import formulas

SECTIONS = {name: formulas.section(inspect.cleandoc(cls.__doc__)) for name, cls in classes.items()}
#: arguments with which the formula is the whole update
ARGUMENTS = {"SGD": {"momentum": 0.9}, "LARS": {"momentum": 0.9, "weight_decay": 0.1},
             "Ftrl": {"l1_regularization_strength": 0.01, "l2_regularization_strength": 0.1, "beta": 0.5,
                      "l2_shrinkage_regularization_strength": 0.1},
             "ASGD": {"lambd": 0.1}, "Muon": {"weight_decay": 0}}
SHORTER = {"l1": "l1_regularization_strength", "l2": "l2_regularization_strength",
           "l2_shrinkage": "l2_shrinkage_regularization_strength"}
#: text beside a formula -> where it holds: for what, or for which elements
WHERE = {
    "as long as rho_t <= 5": lambda env: value(("name", "rho_t"), env) <= 5,
    "as soon as rho_t > 5": lambda env: value(("name", "rho_t"), env) > 5,
    "where the gradient keeps its sign": lambda env: env["g"] * env["previous"] > 0,
    "where the sign changes; there the element stays": lambda env: env["g"] * env["previous"] < 0,
}
OVER = {"over columns": -1, "over rows": -2}


def value(node, env):
    """The value of a node of a formula; `env` holds the values of names."""
    kind, *parts = node
    if kind == "number":
        return float(parts[0])
    if kind == "index":
        return at(parts[0], value(parts[1], env), env)
    if kind == "name":
        return at(parts[0][:-2], env["t"], env) if parts[0] in env["series"] else env[parts[0]]
    values = [value(part, env) for part in parts]
    return {
        "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
        "^": np.power, "minus": np.negative, "()": np.asarray, "||": np.abs, "sqrt": np.sqrt, "sign": np.sign,
        "max": np.maximum, "min": np.minimum, "clip": np.clip, "norm": np.linalg.norm,
        "RMS": lambda x: np.sqrt(np.mean(np.square(x))),
        "mean": lambda x: np.mean(x, env.get("axis"), keepdims="axis" in env),
    }[kind](*values)


def at(name, t, env):
    """The value at step t of a name that a formula defines for every step; at step 0 products begin with 1."""
    return value(env["series"][f"{name}_t"], {**env, "t": t}) if t else 1.0


def step(section, env):
    """Computes the lines of a section one after the other, and changes `env`."""
    env["series"] = {left: formulas.parsed(right) for left, _, right, _ in section if left.endswith("_t")}
    for left, _, right, text in section:
        if left in env["series"]:
            continue
        if text == "0 at first" and env["t"] == 1:
            env[left] = np.zeros_like(env["g"])
        elif text == "ns_steps times, with A = y y'":
            newton_schulz(env)
        elif text in WHERE:
            mask = WHERE[text](env)
            if not np.any(mask):
                continue
            env[left] = np.where(mask, value(formulas.parsed(right), env), env[left])
            if "stays" in text:
                env["g"] = np.where(mask, 0, env["g"])
        else:
            axis = {"axis": OVER[text]} if text in OVER else {}
            env[left] = value(formulas.parsed(right), {**env, **axis})


def newton_schulz(env):
    """The line of Muon that is repeated, of matrices."""
    a, b, c, y = (env[name] for name in ("muon_a", "muon_b", "muon_c", "y"))
    for _ in range(int(env["ns_steps"])):
        squares = y @ y.T
        y = a * y + (b * squares + c * squares @ squares) @ y
    env["y"] = y


@pytest.mark.parametrize("name", classes)
def test_every_formula_is_typeset(name):
    assert SECTIONS[name], f"{name} has no section Formula:"
    assert formulas.display(SECTIONS[name]).count("&") == len(SECTIONS[name])


@pytest.mark.parametrize("name", classes)
def test_formulas_compute_what_the_optimizer_does(name):
    cls = classes[name]
    optimizer = cls(**ARGUMENTS.get(name, {}))
    section = SECTIONS[name] + (SECTIONS["Adam"] if name == "AdamW" else [])
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 5))
    env = {argument: getattr(optimizer, argument) for argument in cls._arguments}
    env = {argument: 0.0 if found is None else found for argument, found in env.items()}
    env |= {short: env[long] for short, long in SHORTER.items() if long in env}
    env |= {"longer_side": 5.0, "x": w.copy(), "w": w.copy()}
    optimizer.build([w])
    for t in range(1, 9):
        kept = {slot: np.array(arrays[0]) for slot, arrays in optimizer.slots.items() if arrays[0] is not None}
        shaped = {"row": (3, 1), "row_accumulator": (3, 1), "column": (1, 5)}
        env |= {slot: array.reshape(shaped.get(slot, array.shape)) for slot, array in kept.items()}
        env |= {"g": rng.normal(size=w.shape), "t": float(t)}
        optimizer.apply([env["g"].copy()], [w])
        step(section, env)
        np.testing.assert_allclose(w, env["w"], rtol=1e-7 if name == "Muon" else 1e-12)
        for slot in {left for left, *_ in section} & set(kept):
            np.testing.assert_allclose(optimizer.slots[slot][0].ravel(), np.ravel(env[slot]), rtol=1e-12)


def test_a_wrong_formula_would_be_noticed():
    with pytest.raises(formulas.FormulaError, match="left over"):
        formulas.parsed("a ) b")
    with pytest.raises(formulas.FormulaError, match="cannot read '\\$'"):
        formulas.parsed("a $ b")
    assert formulas.beside("as long as rho_t <= 5") == r"\text{as long as }\rho_{t}\text{ }\le\text{ 5}"
    assert formulas.tex(formulas.parsed("m / (1 - beta_1^t) x")) == r"\frac{m}{1 - \beta_{1}^{t}}\,x"
