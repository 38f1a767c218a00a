"""Every golden file loads and goes on, bit for bit: those of this version, and those of every version before."""

import golden
import numpy as np
import pytest
from cases import assert_same_bits

FILES = [(name, kind, version) for name, optimizer in golden.optimizers().items()
         for version in golden.versions(name) for kind in golden.kinds(optimizer)]


@pytest.mark.parametrize(("name", "kind", "version"), FILES)
def test_golden_files_load_and_go_on(name, kind, version):
    straight, weights = golden.optimizers()[name], golden.start(name)
    golden.train(straight, weights, 0, 5)
    moved = {k: w.copy() for k, w in weights.items()}
    again = golden.restored(name, kind, version)
    golden.train(straight, weights, 5, 9)
    golden.train(again, moved, 5, 9)
    for k in weights:
        if name == "muon" and weights[k].ndim == 2:
            np.testing.assert_allclose(moved[k], weights[k], atol=1e-4)     # another BLAS, other last bits
        else:
            assert_same_bits(moved[k], weights[k])


def test_no_golden_file_is_left_out():
    assert {golden.path_of(*file) for file in FILES} == set(golden.FOLDER.glob("v*"))
