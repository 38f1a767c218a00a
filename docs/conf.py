"""Configuration of the site.  `make docs` builds it in docs/_build/html; docs/_ext has what is optimc's own."""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.append(str(HERE.parent))            # at the end: an installed optimc comes before this tree

import site_pages  # noqa: E402

import optimc  # noqa: E402

project = "optimc"
author = "The optimc developers"
copyright = "The optimc developers"
version = release = optimc.__version__

extensions = [
    "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design", "sphinx_copybutton", "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline", "myst_nb", "gallery_figures", "site_pages",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "code"                   # `name` in docstrings
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!optimc).*")]         # Python's and NumPy's own names: no page here has them
suppress_warnings = ["config.cache", "mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"               # the tests run the notebooks and compare what they print

autodoc_member_order = "bysource"
autodoc_typehints = "none"              # Args: says shapes and dtypes; the stubs hold the types
autodoc_mock_imports = ["deepspeed", "mpi4py", "threadpoolctl"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 90
add_module_names = False
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery", "gallery_dirs": "gallery", "filename_pattern": r"/plot_",
    "backreferences_dir": "gallery/used", "doc_module": ("optimc",), "inspect_global_variables": False,
    "download_all_examples": False, "show_memory": False, "remove_config_comments": True,
    "abort_on_example_error": True, "reference_url": {"optimc": None}, "capture_repr": (),
    "image_scrapers": ("gallery_figures.scrape",), "reset_modules": ("matplotlib", "gallery_figures.style"),
    "within_subsection_order": "gallery_figures.Order", "thumbnail_size": (600, 330), "notebook_extensions": set(),
    "show_signature": False, "write_computation_times": False,
}
warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")

html_theme = "pydata_sphinx_theme"
html_title = "optimc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "github_url": site_pages.GITHUB,
    "navbar_align": "left", "header_links_before_dropdown": 7, "show_toc_level": 2, "navigation_with_keys": False,
    "footer_start": ["copyright"], "footer_end": ["theme-version"],
    "search_bar_text": "Search, for example: weight_decay",
    "pygments_light_style": "default", "pygments_dark_style": "github-dark",
}
html_context = {"default_mode": "auto"}
