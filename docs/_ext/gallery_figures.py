"""Figures of the gallery: their style on the site, and the alternative text that each script gives for its figure.

The figure on the script's own page gets the whole text, its thumbnails on other pages the first sentence.
"""

import re
from pathlib import Path

from optimc.cli.style import BLUE, ORANGE, STYLE

SCRIPTS = Path(__file__).parents[2] / "examples" / "gallery"
#: after Okabe and Ito: readers with any kind of colour vision can tell them apart
COLOURS = [BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
#: the first words of the scripts' names, in the gallery's order
SUBJECTS = ["momentum", "adaptive", "adam", "sign", "layers", "average", "schedule", "decay", "gradient",
            "memory"]


class Order:
    """Sort key for sphinx-gallery: scripts by subject, then by name."""

    def __init__(self, folder):
        pass

    def __call__(self, name):
        return SUBJECTS.index(name.split("_")[1]), name

    def __repr__(self):                 # sphinx compares it with that of the build before
        return "<Order>"


def style(gallery_conf, script):
    """Sets matplotlib's style before each script, for sphinx-gallery's `reset_modules`."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE | {"axes.prop_cycle": plt.cycler(color=COLOURS), "figure.titleweight": "bold",
                                 "figure.titlesize": 11, "axes.titlesize": 10})


def alt_text(source):
    """The text of `.. alt text:`, a comment that ends the docstring of a script and is not shown on its page."""
    found = re.search(r'^\.\. alt text: (.+?)\n"""', source, re.M | re.S)
    return " ".join(found[1].split()) if found else None


def scrape(block, block_vars, gallery_conf):
    """Saves the figures as sphinx-gallery does.  Their alternative text is the script's, not the figure's title."""
    from sphinx_gallery.scrapers import matplotlib_scraper

    rst = matplotlib_scraper(block, block_vars, gallery_conf)
    text = alt_text(Path(block_vars["src_file"]).read_text("utf-8"))
    return re.sub(r"^( +:alt:).*", lambda line: f"{line[1]} {text}", rst, flags=re.M)


def describe_thumbnails(app, doctree):
    """doctree-read: gives the thumbnails of a page their text, which sphinx-gallery leaves empty."""
    from docutils import nodes

    for image in doctree.findall(nodes.image):
        found = re.search(r"sphx_glr_(plot_\w+)_thumb\.png$", image["uri"])
        if found:
            text = alt_text((SCRIPTS / f"{found[1]}.py").read_text("utf-8"))
            image["alt"] = re.split(r"(?<=\.) ", text)[0]


def setup(app):
    app.connect("doctree-read", describe_thumbnails)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
