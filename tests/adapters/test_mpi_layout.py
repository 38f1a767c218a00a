"""optimc/mpi/layout.py: which elements are whose.  It is loaded alone, because `import optimc.mpi` needs MPI."""

import runpy
from pathlib import Path

import numpy as np

import optimc

LAYOUT = runpy.run_path(str(Path(optimc.__file__).parent / "mpi" / "layout.py"))
Layout, Like = LAYOUT["Layout"], LAYOUT["Like"]


def test_a_layout_is_cut_where_it_may():
    likes = [Like(shape, np.dtype(dtype), "C") for shape, dtype in (
        ((3000,), "f4"), ((0, 2), "f4"), ((7, 5), "f8"), ((100, 100), "f4"), ((), "f4"))]
    for cut, expected in (("elements", [0, 4333, 8667, 13001]), ("blocks", [0, 3000 + 2048, 3000 + 3 * 2048, 13001]),
                          ("tensors", [0, 3000, 13000, 13001])):
        layout = Layout(likes, 3, cut)
        assert layout.spaces[np.dtype("f4")][2] == expected
        for i, like in enumerate(likes):
            pieces = sorted(layout.pieces(rank)[i] for rank in range(3) if like.size)
            reached = 0
            for low, high in (piece for piece in pieces if piece[0] < piece[1]):
                assert low == reached
                reached = high
            assert reached == like.size
