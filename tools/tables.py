"""Writes the tables of the documentation that follow from the registry.

A table stands between `<!-- name -->` and `<!-- end -->`; the text around it is left alone.  `make record` writes
them (record.py).
"""

import re

import numpy as np

from optimc import _core
from optimc.base.rules import slots_of
from optimc.registry import classes
from optimc.torch_names import TORCH
from optimc.torch_own import OWN

#: optimc's class -> the names of its classes in optimc.torch
IN_TORCH = {cls: ", ".join(f"`{name}`" for name, counterpart in {**TORCH, **OWN}.items() if counterpart.name == cls)
            for cls in {counterpart.name for counterpart in (*TORCH.values(), *OWN.values())}} | {"Muon": "`Muon`"}


def optimizers():
    """A row per class: what it is, and what it keeps per weight."""
    rows = ["| optimizer | after | keeps per weight |", "| --- | --- | --- |"]
    rows += [f"| `{name}` | {source(cls)} | {state(cls)} |" for name, cls in sorted_classes()]
    return "\n".join(rows)


def all_optimizers():
    """The same with links to the pages of the site, the styles, and the class of optimc.torch; and the pages."""
    rows = ["| optimizer | after | keeps per weight | styles | `optimc.torch` |", "| --- | --- | --- | --- | --- |"]
    rows += [f"| {{py:class}}`~optimc.{name}` | {source(cls)} | {state(cls)} | {', '.join(cls.styles) or '-'} | "
             f"{IN_TORCH.get(name, '-')} |" for name, cls in sorted_classes()]
    pages = [f"optimizers/{name}" for name, _ in sorted_classes()]
    return "\n".join([*rows, "", "```{toctree}", ":hidden:", "", *pages, "```"])


def sorted_classes():
    return sorted(classes.items(), key=lambda item: item[0].lower())


def source(cls):
    """The papers that the first line of a docstring names."""
    return "; ".join(re.findall(r"\(([^()]*?\d{4})", cls.__doc__.split("\n")[0]))


def state(cls):
    return ", ".join(f"`{slot}`" for slot in kept(cls)) or "nothing"


def kept(cls):
    """Slots of any kernel of the class, those of some arguments included."""
    optimizer = cls()
    kernels = {kernel for kernel, (_, rule, _) in _core.kernels.items()
               if rule == cls._rule or kernel == optimizer._kernel_of(None, np.ones(1))}
    names = [(k, name) for kernel in kernels for name, k in slots_of(kernel).items()
             if name not in cls._scratch_slots]
    return list(dict.fromkeys(name for _, name in sorted(names)))


def styled(cls):
    """The arguments of a class that some style sets, in their order."""
    return [name for name in cls._arguments if any(name in preset for preset in cls.styles.values())]


def conventions():
    """A row per argument in which a library differs from the defaults, which are Keras's."""
    rows = ['| optimizer | argument | default | `style="torch"` | `style="optax"` |',
            "| --- | --- | --- | --- | --- |"]
    for name, cls in sorted_classes():
        for argument in styled(cls):
            default = cls._arguments[argument].default
            cells = [f"`{cls.styles[style].get(argument, default)}`" if style in cls.styles else "" for style in
                     ("torch", "optax")]
            rows.append(f"| `{name}` | `{argument}` | `{default}` | {' | '.join(cells)} |")
    return "\n".join(rows)


#: classes whose epsilon is always in the same place -> their denominator
DENOMINATORS = {
    "AdaBelief": r"\sqrt{\hat s} + \epsilon", "Adadelta": r"\sqrt{v + \epsilon}",
    "Adan": r"\sqrt{\hat n} + \epsilon", "Lamb": r"\sqrt{\hat v} + \epsilon",
    "Muon": r"\sqrt{v} + \epsilon", "Nadam": r"\sqrt{\hat v} + \epsilon",
    "RowwiseAdagrad": r"\sqrt{h} + \epsilon", "ScheduleFreeAdamW": r"\sqrt{\hat v} + \epsilon",
}
#: the argument that moves epsilon -> the denominator without and with it (`u` then has its epsilon within)
MOVED = {
    "corrected_epsilon": (r"\sqrt{v} + \epsilon", r"\sqrt{\hat v} + \epsilon"),
    "epsilon_outside": (r"\sqrt{v + \epsilon}", r"\sqrt{v} + \epsilon"),
    "joint_norm": (r"\lVert g \rVert + \lambda \lVert w \rVert + \epsilon",
                   r"\lVert g + \lambda w \rVert + \epsilon"),
    "epsilon_in_norm": (r"u + \epsilon", "u"),
}


def denominator(cls, style):
    """What a step of a class is divided by, in a style."""
    values = {**{name: argument.default for name, argument in cls._arguments.items()}, **cls.styles.get(style, {})}
    for argument, forms in MOVED.items():
        if argument in values:
            return forms[values[argument]]
    return DENOMINATORS[cls.__name__]


def epsilon():
    """A row per class with an epsilon: the denominator, and the default value, in each style."""
    rows = ["| optimizer | optimc | torch | optax |", "| --- | --- | --- | --- |"]
    for name, cls in sorted_classes():
        if "epsilon" not in cls._arguments:
            continue
        cells = [f"${denominator(cls, style)}$, `{cls(style=style).epsilon}`" if style in ("keras", *cls.styles)
                 else "-" for style in ("keras", "torch", "optax")]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


TABLES = {
    "README.md": {"optimizers": optimizers},
    "docs/reference/optimizers.md": {"optimizers": all_optimizers},
    "docs/explain/conventions.md": {"conventions": conventions, "epsilon": epsilon},
}


def filled(path, text):
    """The text of a document with its tables as they should be."""
    for name, make in TABLES[path].items():
        text, n = re.subn(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda m, make=make: m[1] + make() + m[2], text,
                          flags=re.S)
        assert n == 1, (path, name)
    return text
