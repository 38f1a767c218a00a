"""Packages and pages outside the tree tell the truth about it: links, extras, versions, file names."""

import re
import subprocess
import sys
import tomllib

import pytest
from made_pages import written_pages
from places import ROOT

from optimc.base.extras import advice

if not (ROOT / ".github").is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
SOURCE = PROJECT["urls"]["Source"]


def files(*endings):
    """The files of the tree with one of these endings, beside what is built or installed."""
    folders = (".github", "benchmarks", "csrc", "examples", "notebooks", "optimc", "recipe", "tests", "tools")
    found = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*")),
             *written_pages(ROOT, "*")]
    return sorted(path for path in found if path.name.endswith(endings) and path.is_file())


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def links(text):
    """The targets of Markdown's links and images, and of HTML's."""
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", text)


def test_the_description_has_absolute_links_that_lead_to_files():
    pytest.importorskip("setuptools")               # from 3.12 on no environment has it by itself
    command = [sys.executable, "setup.py", "-q", "--long-description"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    found = links(text)
    assert len(found) == len(links((ROOT / "README.md").read_text("utf-8"))) > 10
    assert [link for link in found if not link.startswith("https://")] == []
    ours = [re.match(rf"{SOURCE}/(raw|blob)/v{PROJECT['version']}/([^#]*)", link) for link in found
            if link.startswith(f"{SOURCE}/") and "/actions/" not in link and not link.endswith("/issues")]
    assert all(ours) and [link[2] for link in ours if not (ROOT / link[2]).exists()] == []
    assert {link[1] for link in ours if link[2].endswith(".png")} <= {"raw"}


@pytest.mark.parametrize("page", files(".md"), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_pages_lead_to_files(page):
    targets = [link.split("#")[0] for link in links(page.read_text("utf-8"))]
    assert [link for link in targets
            if link and not re.match(r"https?:|mailto:", link) and not (page.parent / link).exists()] == []


def test_every_address_within_the_project_is_its_own():
    for page in files(".md", ".yml", ".yaml", ".cff", ".toml"):
        for address in re.findall(r"https://github\.com/[\w-]+/optimc\b", page.read_text("utf-8")):
            assert address == SOURCE, page


def test_the_extras_that_are_advised_exist():
    named = set()
    for page in files(".py", ".md", ".ipynb", ".yml"):
        for extras in re.findall(r"pip install[^`\n]*?['\"](?:optimc|\.)\[([\w,]+)\]", page.read_text("utf-8")):
            named |= set(extras.split(","))
    assert named and named <= set(EXTRAS)
    assert all(advice(extra).count(f"[{extra}]") == 2 for extra in EXTRAS)


def test_all_takes_every_extra_of_users():
    """But for DeepSpeed, whose source is built with a torch that is there already."""
    named = {extra for requirement in EXTRAS["all"] for extra in re.search(r"\[(.*)\]", requirement)[1].split(",")}
    assert named == set(EXTRAS) - {"all", "bench", "deepspeed", "docs", "test"}


def test_contributors_install_one_list():
    tools = {name_of(requirement) for requirement in PYPROJECT["dependency-groups"]["lint"]}
    for place in ("CONTRIBUTING.md", ".ci/run"):
        installs = " ".join(re.findall(r"pip install (.*)", (ROOT / place).read_text("utf-8")))
        assert tools <= {name_of(word) for word in re.findall(r"[\w.-]\S*", installs)}, place


def test_every_place_names_the_version():
    version = PROJECT["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_recipe_says_what_pyproject_says():
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text("utf-8")
    assert f'version: "{PROJECT["version"]}"' in recipe
    assert f"homepage: {PROJECT['urls']['Homepage']}\n" in recipe
    assert f"documentation: {PROJECT['urls']['Documentation']}\n" in recipe
    host, run = re.search(r"host:(.*?)run:(.*?)\ntests:", recipe, re.S).groups()
    asked = {kind: {line.strip("- ").replace(" ", "") for line in text.strip().splitlines()}
             for kind, text in (("host", host), ("run", run))}
    assert set(PYPROJECT["build-system"]["requires"]) <= asked["host"]
    assert set(PROJECT["dependencies"]) <= asked["run"]


def test_files_compiled_for_size_exist():
    listed = re.search(r"OFF_THE_STEP_PATH = (.*?)\)\}", (ROOT / "setup.py").read_text("utf-8"), re.S)[1]
    names = re.findall(r'"(\w+)"', listed)
    names += re.findall(r'"(\w+)\.c"', (ROOT / "setup.py").read_text("utf-8"))
    assert names and [name for name in names if not list(ROOT.glob(f"csrc/*/{name}.c"))] == []
