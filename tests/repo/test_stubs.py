"""The generated types are up to date, and what they say is what a checker sees."""

import pathlib

import pytest
from stubs import text

import optimc
from optimc.registry import classes


@pytest.mark.parametrize("module", sorted({cls.__module__.partition(".")[2] for cls in classes.values()}))
def test_generated_types_are_up_to_date(module):
    generated = pathlib.Path(optimc.__file__).with_name(f"{module}.pyi").read_text()
    assert generated == text(module), f"run: python tests/support/stubs.py {module} > optimc/{module}.pyi"
