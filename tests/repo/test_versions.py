"""Every place that names versions of Python names the same ones."""

import re
import tomllib

import pytest
from places import ROOT

if not (ROOT / ".github").is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)


def versions():
    """Place -> the versions that it names, from the oldest."""
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "tests.yml").read_text())
    return {
        "classifiers": re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text),
        "wheels": [f"3.{minor}" for minor in re.findall(r"cp3(\d+)-\*", project["tool"]["cibuildwheel"]["build"])],
        "workflow": re.findall(r'"(3\.\d+)"', matrix[1]),
    }


def test_all_places_name_the_same_versions():
    named = versions()
    assert all(of == named["classifiers"] for of in named.values()), named
    assert len(named["classifiers"]) > 1


def test_the_oldest_version_is_the_one_required():
    oldest = versions()["classifiers"][0]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={oldest}"
    assert f"needs Python {oldest} or newer" in (ROOT / "README.md").read_text()
