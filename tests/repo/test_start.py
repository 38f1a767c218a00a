"""The pages for the start: what they say of the package is so.  Their examples are run by test_docs.py."""

import re
import tomllib

from places import ROOT

import optimc

FOLDER = ROOT / "docs" / "start"
INSTALL = (FOLDER / "install.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def rows(heading):
    """The cells of the first table below a heading."""
    table = INSTALL[INSTALL.index(f"## {heading}"):].partition("\n|")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def packages(requirements):
    return {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in requirements} - {"optimc"}


def test_extras_are_those_of_the_package():
    extras = PROJECT["optional-dependencies"]
    named = {row[0].strip("`"): row for row in rows("Extras")}
    assert set(named) == set(extras)
    for extra in ("torch", "deepspeed", "keras", "sklearn", "mpi", "thinc", "threadpoolctl", "compare", "notebooks",
                  "bench"):
        said = {word.lower() for word in re.findall(r"[\w-]+", named[extra][2])}
        for package in packages(extras[extra]):
            assert package in said or package.removeprefix("py") in said, (extra, package)
    assert packages(extras["docs"]) >= {"sphinx", "playwright"}
    held = set(named) - {"all", "deepspeed", "bench", "test", "docs"}
    assert set(re.findall(r"[\w-]+", extras["all"][0])[1:]) | {"mpi"} >= held, "all of the above"


def test_versions_are_those_of_the_package():
    needs = dict(row[:2] for row in rows("What it needs"))
    versions = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert needs["Python"] == f"CPython {', '.join(versions[:-1])} or {versions[-1]}"
    numpy, = PROJECT["dependencies"]
    assert needs["packages"].startswith(f"NumPy {numpy.removeprefix('numpy>=')} or newer")
    assert PROJECT["requires-python"] == f">={versions[0]}"
    for system in ("Linux", "macOS", "Windows"):
        assert system in needs["systems"] and any(system in line for line in (*PROJECT["classifiers"], "macOS"))


def test_show_config_prints_what_the_page_shows(capsys):
    shown = re.search(r"^```text\n(.*?)^```", INSTALL, re.S | re.M)[1]

    def form(text):
        return re.sub(r"\d+(\.\d+)*", "0", re.sub(r"built with .*|ISA: .* \(", "", text))

    optimc.show_config()
    assert form(capsys.readouterr().out) == form(shown)
    assert f"optimc {PROJECT['version']}," in shown


def test_its_messages_are_those_of_optimc():
    first = rows("When it fails")[0][0].strip("`")
    assert first in (ROOT / "optimc" / "__init__.py").read_text("utf-8")
