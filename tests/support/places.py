"""Paths: the source tree, the tests, and the PYTHONPATH with which another process can import their helpers."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def search_path(*before):
    """A PYTHONPATH: these folders, those of the helpers, then what this process was given."""
    folders = [*before, TESTS, TESTS / "support", os.environ.get("PYTHONPATH")]
    return os.pathsep.join(str(folder) for folder in folders if folder)
