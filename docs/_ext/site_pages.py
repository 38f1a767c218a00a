"""Pages that the build makes of what stands elsewhere in the repository, and links that hold on GitHub and here.

The notebooks and the project's own documents are copied into docs/; every optimizer of the registry gets a page.  A
link that leaves docs/ leads to the copy of its target if there is one, otherwise to GitHub.
"""

import inspect
import json
import os
import re
import tomllib
from pathlib import Path

import formulas
import numpy as np

from optimc.registry import classes
from tools import tables

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
GITHUB = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Source"]
#: file of the repository -> the page that is its copy
COPIES = {
    "CHANGELOG.md": "project/changelog.md", "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md", "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    "csrc/README.md": "project/code.md",
    **{f"notebooks/{path.name}": f"tutorials/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb"))},
}
#: a script of the gallery, of which sphinx-gallery makes a page
GALLERY = re.compile(r"examples/gallery/(plot_\w+)\.py")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5}|\d{4}\.\d{4})")
#: a link to a file; code comes first, so that what looks like a link in it is none
LINK = re.compile(r"^(?: *)(```|~~~).*?^ *\1|`[^`\n]*`|(\]\()(?![a-z]+:|#)([^)\s]+)\)", re.S | re.M)


def relinked(text, place, page):
    """The text of a page with links as they are seen from docs/PAGE, where it stands at PLACE in the repository.

    In a notebook only the links of its text change.
    """
    if place.endswith(".ipynb"):
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relinked("".join(cell["source"]), place.removesuffix(".ipynb"), page)
        return json.dumps(notebook, indent=1, ensure_ascii=False)

    def link(found):
        if not found[2]:
            return found[0]
        name, sign, heading = found[3].partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(place), name))
        inside = target.removeprefix("docs/") if target.startswith("docs/") else COPIES.get(target)
        if script := GALLERY.fullmatch(target):
            inside = f"gallery/{script[1]}.rst"
        if inside is None and name.endswith((".png", ".svg")):
            return found[2] + os.path.relpath(ROOT / target, (DOCS / page).parent) + ")"
        if inside is None:
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{found[2]}{GITHUB}/{kind}/main/{target}{sign}{heading})"
        return f"{found[2]}{os.path.relpath(inside, os.path.dirname(page) or '.')}{sign}{heading})"

    return LINK.sub(link, text)


def write(page, text):
    """Writes a page unless it is the same already: what is older than its output is not built again."""
    path = DOCS / page
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


#: the page of an optimizer
PAGE = """\
# {name}

{summary}

$$
{formula}
$$

{letters}

## Arguments, slots, example

```{{eval-rst}}
.. autoclass:: optimc.{name}
   :no-members:
```

[Options](../options.md) explains the arguments of every optimizer, from `weight_decay` to `groups`; the
[base class](../optimizer.md) has the methods.

## State

{state}

## Defaults by style

{styles}

## In the gallery

```{{eval-rst}}
.. minigallery:: optimc.{name}
```
"""


def page_of(name, cls):
    """The page of an optimizer: its docstring, its state, its defaults by style, the examples that use it."""
    summary, lines = inspect.getdoc(cls).partition("\n")[0], formulas.section(inspect.getdoc(cls))
    letters = ["$g$ is the gradient", "$w$ the weight", "$t$ the number of the step, from 1",
               *(f"${letter}$ is `{word}`" for letter, word in formulas.letters(lines))]
    return PAGE.format(
        name=name, summary=ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", summary),
        formula=formulas.display(lines), letters=f"Here {', '.join(letters)}.",
        state=state_of(cls), styles=styles_of(cls))


def state_of(cls):
    """A table of the slots: the shape of each, and with which argument or for which weight it is kept."""
    switches = [{name: True} for name, argument in cls._arguments.items()
                if argument.default is False and name != "nesterov"]
    cases = [({}, (3, 2), ""), ({}, (2,), "for a weight of shape (2,)")]
    cases += [(given, (3, 2), f"with `{next(iter(given))}=True`") for given in switches]
    cases += [({"momentum": 0.9}, (3, 2), "with `momentum=0.9`")] * ("momentum" in cls._arguments)
    found = {}
    for given, shape, words in cases:
        optimizer = cls(**given)
        optimizer.build([np.zeros(shape, np.float32)])
        for slot, arrays in optimizer.slots.items():
            for array in arrays.values():
                found.setdefault(slot, f"{array.shape}{', ' * bool(words)}{words}")
    rows = [f"| `{slot}` | {found[slot]} |" for slot in tables.kept(cls)]
    scratch = [f"`{slot}` is scratch memory of the weight's size, which no checkpoint holds."
               for slot in cls._scratch_slots]
    return "\n".join([
        "Arrays that it keeps for a weight of shape (3, 2), in the weight's dtype. `opt.slots` shows them.", "",
        "| slot | shape |", "| --- | --- |", *rows,
        "", *scratch])


def styles_of(cls):
    """A table of the arguments in which a library differs from Keras."""
    names = tables.styled(cls)
    if not names:
        return "Keras's or the paper's; `style=` changes nothing here."

    def shown(style, name):
        return f"`{cls.styles[style][name]}`" if name in cls.styles.get(style, {}) else "as Keras"

    rows = [f"| `{name}` | `{cls._arguments[name].default}` | {shown('torch', name)} | {shown('optax', name)} |"
            for name in names]
    return "\n".join([
        "The defaults are Keras's. With `style=` they are those of another library",
        "([conventions](../../explain/conventions.md)).", "",
        "| argument | Keras | `style=\"torch\"` | `style=\"optax\"` |", "| --- | --- | --- | --- |", *rows])


def make(app, config):
    """config-inited: writes the pages that are made of other files, and deletes those whose file is gone."""
    sources = {*COPIES.values(), *(f"reference/optimizers/{name}.md" for name in classes)}
    scripts = {path.stem for path in ROOT.glob("examples/gallery/*.py")}
    made = [*DOCS.glob("tutorials/*.ipynb"), *DOCS.glob("reference/optimizers/*.md")]
    for path in [path for path in made if path.relative_to(DOCS).as_posix() not in sources] \
            + [path for path in DOCS.glob("gallery/plot_*.rst") if path.stem not in scripts]:
        path.unlink()
    for place, page in COPIES.items():
        write(page, relinked((ROOT / place).read_text("utf-8"), place, page))
    for name, cls in classes.items():
        write(f"reference/optimizers/{name}.md", page_of(name, cls))


def relink(app, docname, source):
    """source-read: links of a page that stands in docs/ itself."""
    page = os.path.relpath(app.env.doc2path(docname), app.srcdir)
    if page.endswith(".md") and page not in COPIES.values():
        source[0] = relinked(source[0], f"docs/{page}", page)


def shorten(app, what, owner, cls, options, lines):
    """autodoc-process-docstring: leaves out of a class what its page says before: what it is, and the formula."""
    text = "\n".join(lines)
    if cls in classes.values():
        text = formulas.SECTION.sub("", text.partition("\n")[2] + "\n")
        lines[:] = re.sub(r"^Options of every optimizer.*", "", text, flags=re.M).splitlines()


def setup(app):
    app.connect("config-inited", make)
    app.connect("autodoc-process-docstring", shorten, priority=100)     # before napoleon
    app.connect("source-read", relink)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
