"""The migration guides: every row of their tables, and every program, runs on both sides, and both sides agree.

tests/support/guides.py says how the rows of a table are run.
"""

import ast
import inspect
import re

import numpy as np
import pytest
from conftest import require
from guides import GUIDE_OF, STEPS, Row, check, rows_of, run
from places import ROOT

from optimc.registry import classes
from optimc.torch_names import TORCH

FOLDER = ROOT / "docs" / "howto" / "migrate"

pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in (
    "__array__ implementation:DeprecationWarning", "Gradients do not exist for:UserWarning",
    "Detected call of `lr_scheduler.step:UserWarning")]

TEXTS = {page.stem: page.read_text("utf-8") for page in sorted(FOLDER.glob("*.md")) if page.stem != "index"}
ROWS = [row for guide, text in TEXTS.items() for row in rows_of(guide, text)]


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed")
@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_rows_agree(row, tmp_path):
    check(row, tmp_path)


def test_every_guide_has_its_tables():
    assert set(TEXTS) == set(GUIDE_OF) == {row.guide for row in ROWS}
    assert len({repr(row) for row in ROWS}) == len(ROWS)


# ------------------------------------------------------------------------------ the program on the first screen


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("guide", TEXTS)
def test_the_program_trains_alike_before_and_after(guide):
    """The first block of a page is a program as a diff.  Both programs end with the same `loss`."""
    for module in ("torch", "keras", "jax", "optax", "sklearn"):
        if module in TEXTS[guide].partition("```diff")[2].partition("```")[0]:
            require(module)
    lines = re.search(r"^```diff\n(.*?)^```", TEXTS[guide], re.S | re.M)[1].splitlines()
    assert TEXTS[guide].index("```diff") < 600, "not on the first screen"
    losses = {}
    for side in "-+":
        names = {}
        exec("\n".join(line[1:] for line in lines if line[:1] in (side, " ", "")), names)
        losses[side] = names["loss"].item()
    assert losses["-"] == pytest.approx(losses["+"], rel=1e-4) and losses["-"] > 0, losses
    assert any(line[:1] == "+" for line in lines) and len(lines) <= 24


BLOCKS = [(guide, block) for guide, text in TEXTS.items()
          for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)]


@pytest.mark.parametrize("guide,block", BLOCKS, ids=[f"{guide}-{k}" for k, (guide, _) in enumerate(BLOCKS)])
def test_programs_of_the_pages_run(guide, block, tmp_path, monkeypatch):
    for module in ("torch", "keras", "jax", "optax", "sklearn"):
        if re.search(rf"\b{module}\b", block):
            require(module)
    monkeypatch.chdir(tmp_path)
    exec(block, {})


# ---------------------------------------------------------------------------------------------- completeness


def left_of(guide, *kinds):
    """The code on the left of the rows of a guide."""
    return "\n".join("\n".join(row.left) for row in ROWS if row.guide == guide and (not kinds or row.kind in kinds))


#: torch's arguments that choose an implementation
IMPLEMENTATIONS = {"params", "foreach", "fused", "capturable", "differentiable"}


def test_every_optimizer_and_argument_of_torch_is_on_its_page():
    torch = require("torch")
    names = [name for name, cls in vars(torch.optim).items() if isinstance(cls, type)
             and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer]
    assert set(TORCH) <= set(names)
    for name in names:
        calls = re.findall(rf"torch\.optim\.{name}\((.*)\)", left_of("torch"))
        assert calls, f"the page does not say what becomes of torch.optim.{name}"
        if name in TORCH:
            known = set(inspect.signature(getattr(torch.optim, name)).parameters) - IMPLEMENTATIONS
            missing = {argument for argument in known if not any(f"{argument}=" in call for call in calls)}
            assert not missing, (name, missing)


def test_every_scheduler_of_torch_is_on_its_page():
    scheduler = require("torch.optim.lr_scheduler")
    left = left_of("torch", "schedules", "no counterpart")
    for name, cls in vars(scheduler).items():
        if isinstance(cls, type) and issubclass(cls, scheduler.LRScheduler) and not name.startswith("_") \
                and cls is not scheduler.LRScheduler:
            assert name in left, f"the page does not say what becomes of {name}"


def test_every_optimizer_and_schedule_of_keras_is_on_its_page():
    keras = require("keras")
    left = left_of("keras")
    for module in (keras.optimizers, keras.optimizers.schedules):
        for name, cls in vars(module).items():
            if isinstance(cls, type) and name not in ("Optimizer", "OptimizerMap", "LearningRateSchedule"):
                assert re.search(rf"\b{name}\(", left), f"the page does not say what becomes of {name}"


def test_every_optimizer_of_optax_is_on_its_page():
    optax = require("optax")
    left = left_of("optax")
    for name, make in vars(optax).items():
        if inspect.isfunction(make) and make.__module__ == "optax._src.alias":
            assert re.search(rf"optax\.{name}\b", left), f"the page does not say what becomes of optax.{name}"


def test_every_style_is_on_the_page_of_its_library():
    for name, cls in classes.items():
        for style in cls.styles:
            right = "\n".join("\n".join(row.right) for row in ROWS if row.guide == style)
            assert f"optimc.{name}(" in right, (style, name)


# ------------------------------------------------------------------------------- rows that are wrong are noticed

WRONG = [("torch", "constructors", ["`torch.optim.Adam(params, eps=1e-3)`", "`optimc.Adam(epsilon=1e-3)`"]),
         ("torch", "constructors", ["`torch.optim.SGD(params)`", "`optimc.SGD()`"]),
         ("torch", "constructors", ["`torch.optim.SGD(params)`", "the same"]),
         ("torch", "constructors", ["`torch.optim.SGD(params)` and more", '`optimc.SGD(style="torch")`']),
         ("torch", "before the step", ["`torch.nn.utils.clip_grad_norm_(params, 1.0)`", "`opt.clipnorm = 1.0`",
                                       "within 10⁻⁶"]),
         ("torch", "after the step", ['`optimizer.state[kernel]["exp_avg"]`', '`opt.slots["v"]["kernel"]`']),
         ("torch", "schedules", ["`ExponentialLR(optimizer, gamma=0.9)`", "`ExponentialDecay(0.1, 1, 0.8)`"]),
         ("torch", "other arithmetic", ["`torch.optim.Adam(params)`", '`optimc.Adam(style="torch")`']),
         ("keras", "constructors", ["`keras.optimizers.SGD(0.1)`", "`optimc.SGD(0.2)`"]),
         ("optax", "constructors", ["`optax.sgd(0.1)`", "`optimc.SGD(0.1, momentum=0.5)`"]),
         ("numpy-loop", "update rules", ["`w -= lr * g`", "`optimc.SGD(0.1, momentum=0.1)`"])]


@pytest.mark.parametrize("guide,kind,cells", WRONG)
def test_a_wrong_row_is_noticed(guide, kind, cells, tmp_path):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(Row(guide, kind, cells), tmp_path)


def test_a_table_without_its_kind_is_noticed():
    with pytest.raises(AssertionError, match="needs one of"):
        rows_of("torch", "text\n\n| a | b |\n| --- | --- |\n| `1` | `2` |\n")


# --------------------------------------------------------------------------------------- what epsilon means

CONVENTIONS = (ROOT / "docs" / "explain" / "conventions.md").read_text("utf-8")
EPSILONS = re.search(r"<!-- epsilon -->\n(.*?)\n<!-- end -->", CONVENTIONS, re.S)[1].splitlines()[2:]
#: the denominators of the table, of an optimizer after t steps of the same gradient g; one epsilon is in the slot
DENOMINATORS = {
    r"\sqrt{v} + \epsilon": lambda o, v, correction: np.sqrt(v) + o.epsilon,
    r"\sqrt{\hat v} + \epsilon": lambda o, v, correction: np.sqrt(v / correction) + o.epsilon,
    r"\sqrt{\hat n} + \epsilon": lambda o, v, correction: np.sqrt(v / correction) + o.epsilon,
    r"\sqrt{v + \epsilon}": lambda o, v, correction: np.sqrt(v + o.epsilon),
    r"u + \epsilon": lambda o, v, correction: v + o.epsilon,
    "u": lambda o, v, correction: v,
}
#: where the rest of the step depends on epsilon too, or weights are not all stepped alike
ELSE = {"AdaBelief", "Adadelta", "LARS", "Lamb", "Muon", "RowwiseAdagrad", "ScheduleFreeAdamW"}
CELLS = [(row.split("|")[1].strip(" `"), style, cell.strip()) for row in EPSILONS
         for style, cell in zip(("keras", "torch", "optax"), row.split("|")[2:5], strict=True) if cell.strip() != "-"]


def last_step(cls, style, epsilon):
    """The last of ten steps with the same gradient, and the optimizer."""
    arguments = {name: 0.9 for name in ("beta_1", "rho", "beta_2", "beta_3") if name in cls._arguments}
    opt, w, g = cls(0.1, epsilon=epsilon, weight_decay=0.0, style=style, **arguments), np.zeros(1), np.full(1, 0.3)
    for _ in range(10):
        before = w.copy()
        opt.apply([g], [w])
    return w - before, opt


@pytest.mark.parametrize("name,style,cell", CELLS)
def test_denominators_are_those_of_the_steps(name, style, cell):
    formula, default = re.fullmatch(r"\$(.*)\$, `(.*)`", cell).groups()
    cls = classes[name]
    assert cls(style=style).epsilon == float(default)
    if name in ELSE:
        return
    steps, denominators = [], []
    for epsilon in (0.0, 0.1):
        step, opt = last_step(cls, style, epsilon)
        slot = next(slot for slot in ("u", "n", "v", "accumulator") if slot in opt.slots)
        correction = 1 - (opt.beta_3 if slot == "n" else getattr(opt, "beta_2", 0.5)) ** 10
        steps.append(step)
        denominators.append(DENOMINATORS[formula](opt, opt.slots[slot][0], correction))
    np.testing.assert_allclose(steps[0] / steps[1], denominators[1] / denominators[0], rtol=1e-12)
    assert denominators[1] != denominators[0]


# ------------------------------------------------------------------------------------ no argument is there in vain

#: arguments that have no effect on the weights: on ASGD's average alone
IDLE = {("ASGD", "t0")}


def last_weights(call, row, folder):
    """The weights of optimc after all steps with the optimizer that a call makes."""
    ours, _, grads = row.sides(folder)
    ours.names["opt"] = run(ast.unparse(call), ours.names)
    for k in range(STEPS):
        ours.begin_step(k, grads[k])
        run(ours.step, ours.names)
    return ours.weights


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind in ("constructors", "arrays only", "update rules")],
                         ids=repr)
def test_every_argument_has_an_effect(row, tmp_path):
    """Without it the weights differ; or a row would agree whatever the argument means.

    `style` may have no effect, because the other arguments can be all that it sets; so may a default that is given.
    """
    if row.guide == "optax":
        require("jax")
    call, = (ast.parse(piece, mode="eval").body for piece in row.right)
    given = last_weights(call, row, tmp_path)
    for k, keyword in enumerate(call.keywords):
        known = classes[call.func.attr]._arguments if call.func.attr in classes else {}
        is_default = keyword.arg in known and ast.unparse(keyword.value) == str(known[keyword.arg].default)
        if keyword.arg == "style" or is_default or (call.func.attr, keyword.arg) in IDLE:
            continue
        less = ast.Call(call.func, call.args, call.keywords[:k] + call.keywords[k + 1:])
        (tmp_path / str(k)).mkdir()
        without = last_weights(less, row, tmp_path / str(k))
        assert any(not np.array_equal(given[name], without[name]) for name in given), keyword.arg
