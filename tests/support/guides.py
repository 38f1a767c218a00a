"""Rows of the migration guides: how they are read from a page, and how both of their sides are run and compared.

A table of a guide follows a comment `<!-- rows: kind -->`, which says how its rows are run (`KINDS`).  The code in
backticks of the first cell is the other library's, that of the second cell optimc's; a third cell is prose.  Both
sides get the same weights and the same gradients for `STEPS` steps, and are compared after each.  They agree within
the tolerance of the guide, or the one that the third cell gives ("within 10⁻⁶").

tests/repo/test_migration_guides.py runs the rows.
"""

import ast
import copy
import pickle
import re
import types

import numpy as np
import pytest
from conftest import require

import optimc
from optimc import schedules

STEPS = 12
#: steps over which schedules are compared
LONG = 30
SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": ()}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def problem(dtype):
    """Weights to start from, and gradients for each step."""
    rng = np.random.default_rng(0)
    start = {name: np.asarray(rng.uniform(0.5, 1.5, shape), dtype) for name, shape in SHAPES.items()}
    grads = [{name: np.asarray(rng.standard_normal(shape) + 0.3, dtype) for name, shape in SHAPES.items()}
             for _ in range(LONG)]
    return start, grads


def run(code, names):
    """Runs code.  Returns the value of an expression, and None for statements."""
    try:
        compiled = compile(code, "a cell", "eval")
    except SyntaxError:
        exec(code, names)
        return None
    return eval(compiled, names)


def array(value):
    """A value of any library as a float64 array."""
    value = getattr(value, "detach", lambda: value)()
    value = getattr(value, "value", value)
    return np.asarray(value, np.float64)


# ----------------------------------------------------------------------------------------- the two sides


class Ours:
    """A training loop of optimc: `opt`, `weights` and `grads`, by name."""

    step = "opt.apply(grads, weights)"
    opt = "opt"

    def __init__(self, start, path):
        self.weights = {name: w.copy() for name, w in start.items()}
        self.names = {"optimc": optimc, "np": np, "copy": copy, "schedules": schedules, "weights": self.weights,
                      "path": path, **{name: getattr(schedules, name) for name in schedules.classes()}}

    def begin_step(self, k, grads):
        self.names |= {"grads": dict(grads), "step": k}

    def now(self):
        return self.weights


class Torch:
    """`params` of a `model`, `optimizer`, and a `loss` whose gradients are those of the step."""

    module, tolerance, dtype = "torch", 1e-9, np.float64
    before, step, opt = "optimizer.zero_grad()\nloss.backward()", "optimizer.step()", "optimizer"
    drop_in = ("torch.optim.", "optimc.torch.")

    def __init__(self, start, path):
        torch = require("torch")
        self.torch, model = torch, torch.nn.Module()
        for name, w in start.items():
            model.register_parameter(name, torch.nn.Parameter(torch.tensor(w)))
        self.model = model
        import torch.optim.lr_scheduler as lr_scheduler
        import torch.optim.swa_utils as swa_utils

        import optimc.torch
        self.names = {"torch": torch, "optimc": optimc, "copy": copy, "model": model,
                      "params": list(model.parameters()), "path": path, **dict(model.named_parameters()),
                      **{name: getattr(lr_scheduler, name) for name in dir(lr_scheduler)},
                      **{name: getattr(swa_utils, name) for name in dir(swa_utils)}}

    def begin_step(self, k, grads):
        parameters = self.model.named_parameters()
        loss = sum((p * self.torch.tensor(grads[name])).sum() for name, p in parameters)
        self.names |= {"loss": loss, "step": k}

    def now(self):
        return dict(self.model.named_parameters())


class Keras:
    """`variables`, a list of Keras's NumPy backend, `grads` and `optimizer`."""

    module, tolerance, dtype = "keras", 1e-5, np.float32
    before, step, opt = "", "optimizer.apply(grads, variables)", "optimizer"
    drop_in = ("keras.optimizers.", "optimc.keras.")

    def __init__(self, start, path):
        keras = require("keras")
        if keras.backend.backend() != "numpy":
            pytest.skip("needs KERAS_BACKEND=numpy")
        import optimc.keras
        self.variables = {name: keras.Variable(w, name=name) for name, w in start.items()}
        self.names = {"keras": keras, "optimc": optimc, "np": np, "variables": list(self.variables.values()),
                      "path": path, **self.variables,
                      **{name: getattr(keras.optimizers.schedules, name)
                         for name in dir(keras.optimizers.schedules) if name[0].isupper()}}

    def begin_step(self, k, grads):
        self.names |= {"grads": list(grads.values()), "step": k}

    def now(self):
        return self.variables


class Optax:
    """`params` and `grads`, dicts of jax arrays, `optimizer` and its `state`."""

    module, tolerance, dtype = "optax", 1e-9, np.float64
    before, opt = "", "optimizer"
    step = "updates, state = optimizer.update(grads, state, params)\nparams = optax.apply_updates(params, updates)"
    drop_in = None

    def __init__(self, start, path):
        jax, optax = require("jax"), require("optax")
        self.jax = jax
        self.names = {"jax": jax, "jnp": jax.numpy, "optax": optax, "path": path,
                      "params": {name: jax.numpy.asarray(w) for name, w in start.items()}}

    def begin_step(self, k, grads):
        self.names |= {"grads": {name: self.jax.numpy.asarray(g) for name, g in grads.items()}, "step": k}

    def now(self):
        return self.names["params"]


class Loop:
    """A loop of NumPy alone: `weights` and `grads`, or `w` and `g` of each weight with names of its own."""

    module, tolerance, dtype = "numpy", 1e-12, np.float64
    drop_in = None

    def __init__(self, start, path):
        self.weights = {name: w.copy() for name, w in start.items()}
        self.names = {"np": np, "lr": 0.1, "weights": self.weights, "path": path}
        self.each = {name: {"np": np, "lr": 0.1, "w": w, **{name: np.zeros_like(w) for name in "mvud"}}
                     for name, w in self.weights.items()}

    def begin_step(self, k, grads):
        self.names |= {"grads": {name: g.copy() for name, g in grads.items()}, "t": k + 1}
        for name, g in grads.items():
            self.each[name] |= {"g": g.copy(), "t": k + 1}

    def run(self, code):
        """Runs code for the lists of weights, or for each weight."""
        if {"weights", "grads"} & {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}:
            run(code, self.names)
        else:
            for names in self.each.values():
                run(code, names)

    def now(self):
        for name, names in self.each.items():           # a scalar that was changed in place is a new number
            if names["w"] is not self.weights[name]:
                self.weights[name][...] = names["w"]
                names["w"] = self.weights[name]
        return self.weights


GUIDE_OF = {"numpy-loop": Loop, "torch": Torch, "keras": Keras, "optax": Optax}


def agree(ours, theirs, tolerance, what):
    """Asserts that two values, or two dicts of them, are finite and equal within a tolerance."""
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), what
        for name in ours:
            agree(ours[name], theirs[name], tolerance, f"{what}, {name}")
        return
    a, b = array(ours), array(theirs)
    assert a.shape == b.shape or a.size == b.size == 1, (what, a.shape, b.shape)
    error = np.abs(a - b).max() / max(1.0, np.abs(b).max())
    assert error <= tolerance, f"{what}: {error} apart"


# ------------------------------------------------------------------------------- how the rows of a kind are run


class Row:
    """A row of a table: the pieces of code on both sides, what else the cells say, and the tolerance."""

    def __init__(self, guide, kind, cells):
        self.guide, self.kind, self.cells = guide, kind, cells
        self.left, self.right = (re.findall(r"`([^`]+)`", cell.replace("\\|", "|")) for cell in cells[:2])
        self.prose = [re.sub(r"`[^`]+`|<br>|\s", "", cell) for cell in cells[:2]]
        self.note = " ".join(cells[2:])
        self.side = GUIDE_OF[guide]

    def __repr__(self):
        return f"{self.guide}-{self.kind.replace(' ', '_')}-{self.cells[0].strip('`')}"

    @property
    def tolerance(self):
        power = re.search(r"within 10⁻([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", self.note)
        return 10.0 ** -int(power[1].translate(SUPERSCRIPTS)) if power else self.side.tolerance

    def sides(self, folder):
        """The loops of both libraries, with the same weights, and the gradients of each step."""
        (folder / "theirs").mkdir(parents=True)
        (folder / "ours").mkdir(parents=True)
        start, grads = problem(self.side.dtype)
        if "finite" in "".join(self.left):
            grads[3] = {name: np.full_like(g, np.nan) for name, g in grads[3].items()}
        theirs = self.side(start, folder / "theirs" / "state")
        return Ours(start, folder / "ours" / "state"), theirs, grads


def trajectory(row, ours, theirs, grads, their_step, our_step, steps=STEPS):
    """Steps both sides and compares the weights after each step, and what the steps return."""
    for k in range(steps):
        for side in (ours, theirs):
            side.begin_step(k, grads[k])
        results = [our_step(), their_step()]
        agree(ours.now(), theirs.now(), row.tolerance, f"step {k + 1}")
        if all(result is not None for result in results):
            agree(*results, row.tolerance, f"value at step {k + 1}")


def start(row, theirs, code):
    """Gives the other library's loop its optimizer."""
    optimizer = run(code, theirs.names)
    if isinstance(theirs, Optax):
        theirs.names["state"] = optimizer.init(theirs.names["params"])
        optimizer = types.SimpleNamespace(init=optimizer.init, update=theirs.jax.jit(optimizer.update))
    theirs.names["optimizer"] = optimizer


def their_whole_step(theirs):
    for code in (theirs.before, theirs.step):
        run(code, theirs.names) if code else None


def constructors(row, folder):
    """Expressions that make an optimizer; both are stepped, and the drop-in class of optimc with the same line."""
    arrays_only(row, folder)
    (left,), drop_in = row.left, row.side.drop_in
    if drop_in:
        again, (first, grads) = left.replace(*drop_in, 1), problem(row.side.dtype)
        assert again != left
        theirs, dropped = row.side(first, folder / "a"), row.side(first, folder / "b")
        start(row, theirs, left)
        start(row, dropped, again)
        assert type(dropped.names["optimizer"]).__module__.startswith("optimc.")
        trajectory(row, dropped, theirs, grads, lambda: their_whole_step(theirs), lambda: their_whole_step(dropped))


#: the optimizers with which rows of lines are run
ADAM = {"torch": ("torch.optim.Adam(params, lr=0.1)", 'optimc.Adam(0.1, style="torch")'),
        "keras": ("keras.optimizers.Adam(0.1)", "optimc.Adam(0.1)"),
        "optax": ("optax.adam(0.1)", 'optimc.Adam(0.1, style="optax")')}


def arrays_only(row, folder):
    """Constructors of which optimc has none in its module for the other library."""
    (left,), (right,) = row.left, row.right
    ours, theirs, grads = row.sides(folder)
    start(row, theirs, left)
    ours.names["opt"] = run(right, ours.names)
    trajectory(row, ours, theirs, grads, lambda: their_whole_step(theirs), lambda: run(ours.step, ours.names))


def sparse_gradients(row, folder):
    """Constructors for gradients by rows.  Those of scale, which has no rows, are left out."""
    (left,), (right,) = row.left, row.right
    ours, theirs, grads = row.sides(folder)
    start(row, theirs, left)
    optimizer = run(right, ours.names)

    def their_step():
        run(theirs.before, theirs.names)
        for param in theirs.names["optimizer"].param_groups[0]["params"]:
            param.grad = param.grad.to_sparse(1)
        run(theirs.step, theirs.names)

    def our_step():
        rows = {name: optimc.Rows(range(len(g)), g) for name, g in ours.names["grads"].items() if g.ndim}
        optimizer.apply(rows, {name: ours.weights[name] for name in rows})

    trajectory(row, ours, theirs, grads, their_step, our_step)


def before_the_step(row, folder):
    """Lines between the gradients and the step of Adam."""
    ours, theirs, grads = row.sides(folder)
    left, right = ADAM[row.guide]
    start(row, theirs, left)
    ours.names["opt"] = run(right, ours.names)

    def their_step():
        for code in (theirs.before, *row.left, theirs.step):
            run(code, theirs.names) if code else None

    def our_step():
        for code in (*row.right, ours.step):
            run(code, ours.names)

    trajectory(row, ours, theirs, grads, their_step, our_step)


def after_the_step(row, folder):
    """Lines after the step of Adam.  If the last line is an expression on both sides, the values agree."""
    ours, theirs, grads = row.sides(folder)
    left, right = ADAM[row.guide]
    start(row, theirs, left)
    ours.names["opt"] = run(right, ours.names)

    def their_step():
        their_whole_step(theirs)
        return [run(code, theirs.names) for code in row.left][-1]

    def our_step():
        run(ours.step, ours.names)
        return [run(code, ours.names) for code in row.right][-1]

    trajectory(row, ours, theirs, grads, their_step, our_step)


def whole_loop(row, folder):
    """The first line runs once, the other lines at each step.  They do the step themselves."""
    ours, theirs, grads = row.sides(folder)
    for side, (first, *_) in ((ours, row.right), (theirs, row.left)):
        run(first, side.names)
    if isinstance(theirs, Optax):
        theirs.names["state"] = theirs.names["optimizer"].init(theirs.names["params"])
    trajectory(row, ours, theirs, grads,
               lambda: [run(code, theirs.names) for code in row.left[1:]][-1],
               lambda: [run(code, ours.names) for code in row.right[1:]][-1])


def update_rules(row, folder):
    """Lines of NumPy that update a weight `w` by its gradient `g`, or all `weights`; and an optimizer."""
    (right,) = row.right
    ours, theirs, grads = row.sides(folder)
    ours.names["opt"] = run(right, ours.names)

    def their_step():
        for code in row.left:
            theirs.run(code)

    trajectory(row, ours, theirs, grads, their_step, lambda: run(ours.step, ours.names))


def values_by_step(row, folder):
    """Schedules, compared by their values at each step."""
    (left,), (right,) = row.left, row.right
    ours, theirs, _ = row.sides(folder)
    schedule = run(right, ours.names)
    if isinstance(theirs, Torch):
        start(row, theirs, "torch.optim.SGD(params, lr=0.1)")
        optimizer, scheduler = theirs.names["optimizer"], run(left, theirs.names)
        values = []
        for _ in range(LONG):
            values.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    elif isinstance(theirs, Loop):
        values = [eval(left, {"np": np, "t": t}) for t in range(LONG)]
    else:
        values = [run(left, theirs.names)(k) for k in range(LONG)]
    assert len({float(value) for value in values}) > 1
    for k, value in enumerate(values):
        agree(schedule(k), value, row.tolerance, f"step {k}")


def no_counterpart(row, folder):
    """What optimc has not: the left side exists in the other library, and so does what the right side names."""
    _, theirs, _ = row.sides(folder)
    for code in row.left:
        value = run(code, theirs.names)
        assert value is not None, code
        if isinstance(theirs, Torch) and isinstance(value, theirs.torch.optim.Optimizer):
            with pytest.raises(ValueError, match="optimc has no optimizer like torch's"):
                optimc.from_torch(value)
    for code in row.right:
        assert run(code, {"optimc": optimc, "np": np, "schedules": schedules}) is not None, code


def other_arithmetic(row, folder):
    """Optimizers of one name that do not agree: both run, and they differ by more than the tolerance."""
    (left,), (right,) = row.left, row.right
    ours, theirs, grads = row.sides(folder)
    ours.names["opt"] = run(right, ours.names)
    start(row, theirs, left)
    with pytest.raises(AssertionError, match=r"step \d+, \w+: .* apart"):
        trajectory(row, ours, theirs, grads, lambda: their_whole_step(theirs), lambda: run(ours.step, ours.names))


class Sklearn:
    """Names of scikit-learn."""

    tolerance, dtype = 1e-9, np.float64

    def __init__(self, start, path):
        require("sklearn")
        import sklearn.linear_model
        import sklearn.neural_network
        self.names = {"sklearn": sklearn}


GUIDE_OF["scikit-learn"] = Sklearn


def fitted(pieces, module):
    """The network that code makes with the classes of a module, and fits unless the code has done so."""
    from sklearn.model_selection import GridSearchCV
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 5))
    y = X @ rng.standard_normal(5) + 0.1 * rng.standard_normal(60)
    names = {"optimc": optimc, "np": np, "pickle": pickle, "X": X, "y": y, "GridSearchCV": GridSearchCV,
             "MLPRegressor": module.MLPRegressor, "MLPClassifier": module.MLPClassifier}
    net = [run(piece, names) for piece in pieces][-1]
    if net is None or "net" in names:
        return names["net"]
    net.set_params(hidden_layer_sizes=(8,), max_iter=20, random_state=0)
    return net.fit(X, y > 0 if isinstance(net, module.MLPClassifier) else y)


def estimators(row, folder):
    """Networks of scikit-learn and of optimc, and of optimc with scikit-learn's line, fitted to the same data."""
    require("sklearn")
    import sklearn.neural_network

    import optimc.sklearn
    theirs = fitted(row.left, sklearn.neural_network)
    for ours in (fitted(row.right, optimc.sklearn), fitted(row.left, optimc.sklearn)):
        assert type(ours).__module__ == "optimc.sklearn"
        for name in ("coefs_", "intercepts_"):
            for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
                agree(a, b, row.tolerance, name)
        if hasattr(theirs, "loss_curve_"):
            agree(np.array(ours.loss_curve_), np.array(theirs.loss_curve_), row.tolerance, "loss curve")


KINDS = {"constructors": constructors, "arrays only": arrays_only, "before the step": before_the_step,
         "after the step": after_the_step, "whole loop": whole_loop, "update rules": update_rules,
         "schedules": values_by_step, "no counterpart": no_counterpart,
         "other arithmetic": other_arithmetic, "estimators": estimators, "sparse gradients": sparse_gradients}


# ------------------------------------------------------------------------------------------- rows of a page


def rows_of(guide, text):
    """The rows of all tables of a page.  A table without its kind is an error."""
    found, lines = [], text.splitlines()
    for i, line in enumerate(lines):
        if not line.startswith("|") or (i and lines[i - 1].startswith("|")):
            continue
        kind = re.fullmatch(r"<!-- rows: (.*) -->", lines[i - 2] if lines[i - 1] == "" else lines[i - 1])
        assert kind and kind[1] in KINDS, f"{guide}: the table below line {i} needs one of {sorted(KINDS)}"
        for row in lines[i + 2:]:
            if not row.startswith("|"):
                break
            found.append(Row(guide, kind[1], [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]))
    return found


def check(row, folder):
    """Runs a row.  Raises an AssertionError if a cell cannot be run, or the sides differ."""
    assert len(row.cells) in (2, 3) and row.left and (row.right or row.kind == "no counterpart"), row.cells
    assert row.kind == "no counterpart" or not any(row.prose), f"prose beside code: {row.cells}"
    if row.guide == "optax":
        with require("jax").enable_x64(True):
            KINDS[row.kind](row, folder)
    else:
        KINDS[row.kind](row, folder)
