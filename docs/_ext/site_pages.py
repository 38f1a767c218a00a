"""Pages that the build makes of what stands elsewhere in the repository, and links that hold on GitHub and here.

The notebooks and the project's own documents are copied into docs/; every optimizer of the registry gets a page.  A
link that leaves docs/ leads to the copy of its target if there is one, otherwise to GitHub.
"""

import os
import re
from pathlib import Path

import numpy as np

from optimc.registry import classes
from tools import tables

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
GITHUB = "https://github.com/optimc/optimc"
#: file of the repository -> the page that is its copy
COPIES = {
    "CHANGELOG.md": "project/changelog.md", "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md", "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    "csrc/README.md": "project/code.md",
    **{f"notebooks/{path.name}": f"tutorials/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb"))},
}
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s]+)\)")


def relinked(text, place, page):
    """The text of a page with links as they are seen from docs/PAGE, where it stands at PLACE in the repository."""
    def link(found):
        name, sign, heading = found[2].partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(place), name))
        inside = target.removeprefix("docs/") if target.startswith("docs/") else COPIES.get(target)
        if inside is None and name.endswith((".png", ".svg")):
            return found[1] + os.path.relpath(ROOT / target, (DOCS / page).parent) + ")"
        if inside is None:
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{found[1]}{GITHUB}/{kind}/main/{target}{sign}{heading})"
        return f"{found[1]}{os.path.relpath(inside, os.path.dirname(page) or '.')}{sign}{heading})"

    return LINK.sub(link, text)


def write(page, text):
    """Writes a page unless it is the same already: what is older than its output is not built again."""
    path = DOCS / page
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def page_of(name, cls):
    """The page of an optimizer: its docstring, its state, its defaults by style, the examples that use it."""
    optimizer, weight = cls(), np.zeros((3, 2), np.float32)
    optimizer.apply([np.ones_like(weight)], [weight])
    kept = {slot: arrays[0] for slot, arrays in optimizer.slots.items() if slot not in cls._scratch_slots}
    state = [f"| `{slot}` | {'only with some arguments or shapes' if kept.get(slot) is None else kept[slot].shape} |"
             for slot in tables.kept(cls)]
    styles = [(argument, cls._arguments[argument].default, *(cls.styles.get(style, {}).get(argument)
                                                             for style in ("torch", "optax")))
              for argument in cls._arguments if any(argument in preset for preset in cls.styles.values())]
    lines = [
        f"# {name}", "", "```{eval-rst}", f".. autoclass:: optimc.{name}", "   :no-members:", "```", "",
        "The options of every optimizer, from `weight_decay` to `groups`, are on the page [Options](../options.md).",
        "[Base class](../optimizer.md) lists its methods.", "", "## State", "",
        *(["Arrays that it keeps for a weight of shape (3, 2), in the weight's dtype. `opt.slots` shows them.", "",
           "| slot | shape |", "| --- | --- |", *state] if state else ["It keeps nothing."]), "",
        "## Defaults by style", "",
        *(["The defaults are Keras's.  With `style=` they are those of another library"
           " ([conventions](../../explain/conventions.md)).", "",
           "| argument | Keras | `style=\"torch\"` | `style=\"optax\"` |", "| --- | --- | --- | --- |",
           *(f"| `{argument}` | `{default}` | {shown(torch)} | {shown(optax)} |"
             for argument, default, torch, optax in styles)]
          if styles else ["The defaults are Keras's or the paper's; torch and optax have no others."]), "",
        "## In the gallery", "", "```{eval-rst}", f".. minigallery:: optimc.{name}", "```", "",
    ]
    return "\n".join(lines)


def shown(value):
    """A value in a table; a style without one has Keras's."""
    return "as Keras" if value is None else f"`{value}`"


def make(app, config):
    """config-inited: writes the pages that are made of other files."""
    for place, page in COPIES.items():
        write(page, relinked((ROOT / place).read_text("utf-8"), place, page))
    for name, cls in classes.items():
        write(f"reference/optimizers/{name}.md", page_of(name, cls))


def relink(app, docname, source):
    """source-read: links of a page that stands in docs/ itself."""
    page = os.path.relpath(app.env.doc2path(docname), app.srcdir)
    if page.endswith(".md") and page not in COPIES.values():
        source[0] = relinked(source[0], f"docs/{page}", page)


def setup(app):
    app.connect("config-inited", make)
    app.connect("source-read", relink)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
