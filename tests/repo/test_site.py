"""What builds and checks the site finds what it is for; .ci/site builds the site itself."""

import json
import re
import shutil
import sys

import pytest
from places import ROOT

from optimc import torch_names, torch_own
from optimc.registry import classes

if not (ROOT / "notebooks").is_dir():
    pytest.skip("needs the repository: an sdist has no notebooks", allow_module_level=True)
sys.path += [str(ROOT), str(ROOT / "docs" / "_ext")]        # last: optimc may be an installed one

import site_pages

from tools import check_site, tables

PAGE = '<a href="{}">x</a>'


def made(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_links_that_lead_nowhere_are_found(tmp_path):
    site = made(tmp_path, {
        "index.html": "".join(map(PAGE.format, ("a/b.html", "a/none.html", "a/b.html#here", "a/b.html#gone", "#top",
                                                "https://x.y/z", "a/"))) + "<img src='a/b.html'>",
        "a/b.html": PAGE.format("../index.html?q=1") + "<p id='here'>", "a/index.html": ""})
    assert [fault.split(" ", 1)[1] for fault in check_site.broken(site, check_site.read(site))] == [
        "a/none.html leads to no file", "a/b.html#gone leads to no place on its page",
        "#top leads to no place on its page", "picture a/b.html has no text (alt)"]


def test_links_from_the_root_are_found(tmp_path):
    site = made(tmp_path, {"index.html": "", "a/b.html": PAGE.format("/index.html") + PAGE.format("//x.y/z")})
    assert list(check_site.broken(site, check_site.read(site))) == [
        "a/b.html: /index.html begins with /, and fails on a site that is served below a path"]


def test_only_what_a_reader_clicks_counts(tmp_path):
    head = '<head><link rel="next" href="next.html"><script src="next.html"></script></head>'
    lists = {name: PAGE.format("listed.html") for name in check_site.LISTS}
    site = made(tmp_path, {"index.html": head + "".join(map(PAGE.format, ["a.html", *lists])), "a.html": "",
                           "next.html": "", "listed.html": "", **lists})
    assert check_site.clicks(check_site.read(site)) == {"index.html": 0, "a.html": 1}


SLOW_FORMULA = """<div class='bd-article'><span class='math'>x</span></div><script>
window.MathJax = {startup: {promise: new Promise(resolve => setTimeout(() => {
    document.querySelector('.math').innerHTML = '<mjx-container></mjx-container>'; resolve(); }, 500))}};
</script>"""


@pytest.mark.parametrize("page, faults", [
    (SLOW_FORMULA, []), (SLOW_FORMULA.partition("<script>")[0], ["1 of 1 formulas are not typeset"])],
    ids=["slow", "never"])
def test_formulas_have_time_to_be_typeset(page, faults):
    playwright = pytest.importorskip("playwright.sync_api")
    if not shutil.which("chromium"):
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_content(page)
        assert tab.evaluate(check_site.LOOK) == faults
        browser.close()


def test_names_too_far_from_the_index_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(check_site, "public_names", lambda: ["near", "far", "absent"])
    chain = {f"{k}.html": PAGE.format(f"{k + 1}.html") + f"<p id='{'near' if k == 3 else 'far' if k == 4 else k}'>"
             for k in range(1, 5)}
    site = made(tmp_path, {"index.html": PAGE.format("1.html"), **chain, "5.html": ""})
    assert list(check_site.too_far(check_site.read(site))) == [
        "far is 4 clicks away from the index, expected at most 3", "absent is on no page that the index leads to"]


@pytest.mark.parametrize("place, page, link, expected", [
    ("docs/howto/a.md", "howto/a.md", "../faq.md#x", "../faq.md#x"),
    ("docs/howto/a.md", "howto/a.md", "../../SECURITY.md", "../project/security.md"),
    ("docs/howto/a.md", "howto/a.md", "../../notebooks/torch.ipynb", "../tutorials/torch.ipynb"),
    ("docs/howto/a.md", "howto/a.md", "../../csrc/rules.inc#L3", f"{site_pages.GITHUB}/blob/main/csrc/rules.inc#L3"),
    ("docs/howto/a.md", "howto/a.md", "../../examples", f"{site_pages.GITHUB}/tree/main/examples"),
    ("docs/howto/a.md", "howto/a.md", "../../examples/gallery/plot_a.py", "../gallery/plot_a.rst"),
    ("CHANGELOG.md", "project/changelog.md", "docs/howto/keras.md", "../howto/keras.md"),
    ("notebooks/torch.ipynb", "tutorials/torch.ipynb", "../docs/faq.md", "../faq.md"),
    ("notebooks/torch.ipynb", "tutorials/torch.ipynb", "keras.ipynb", "keras.ipynb"),
    ("docs/faq.md", "faq.md", "https://a.b/c.md", "https://a.b/c.md"),
])
def test_links_hold_on_github_and_on_the_site(place, page, link, expected):
    as_text = place.removesuffix(".ipynb")          # of one cell
    assert site_pages.relinked(f"[text]({link})", as_text, page) == f"[text]({expected})"


def test_code_is_no_link():
    code = "[a](b.md) `x[i](y)`\n```python\nz[i](j)\n```\n[`c`](d.md)\n"
    assert site_pages.relinked(code, "docs/faq.md", "howto/a.md") == \
        "[a](../b.md) `x[i](y)`\n```python\nz[i](j)\n```\n[`c`](../d.md)\n"
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        text = path.read_text("utf-8")
        made = json.loads(site_pages.relinked(text, f"notebooks/{path.name}", f"tutorials/{path.name}"))
        assert [cell for cell in made["cells"] if cell["cell_type"] == "code"] == \
            [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", classes)
def test_every_optimizer_has_a_page(name):
    page = site_pages.page_of(name, classes[name])
    assert f".. autoclass:: optimc.{name}" in page and f".. minigallery:: optimc.{name}" in page
    state = page.partition("## State")[2].partition("##")[0]
    for slot in tables.kept(classes[name]):
        assert f"| `{slot}` |" in state


def test_the_page_of_adapters_has_every_class_of_torch():
    text = (ROOT / "docs" / "reference" / "adapters.md").read_text("utf-8")
    names = [*torch_names.TORCH, *torch_own.OWN, "Muon"]
    assert re.findall(r"py:class:: optimc\.torch\.(\w+)", text) == sorted(names)


def test_no_test_puts_the_tree_before_what_is_installed():
    tests = (ROOT / "tests").rglob("*.py")
    assert not [path for path in tests if re.search(r"sys\.path\.insert\(.*ROOT", path.read_text("utf-8"))]


def test_public_names_are_those_of_the_library():
    names = set(check_site.public_names())
    assert {"optimc.Adam", "optimc.load", "optimc.schedules.CosineDecay", "optimc.Optimizer.apply",
            "optimc.Optimizer.slots"} <= names
    assert not {"optimc.Optimizer.step", "optimc.Optimizer._slots"} & names
