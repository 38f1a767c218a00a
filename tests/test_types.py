"""The generated types are up to date, and what they say is what a checker sees."""

import pathlib

from stubs import text

import optimc


def test_generated_types_are_up_to_date():
    generated = pathlib.Path(optimc.__file__).with_name("optimizers.pyi").read_text()
    assert generated == text(), "run: python tests/stubs.py > optimc/optimizers.pyi"
