"""optimc/mpi/layout.py: which elements are whose.  It is loaded alone, because `import optimc.mpi` needs MPI."""

import doctest
import runpy
from pathlib import Path

import numpy as np
import pytest

import optimc
from optimc import _core

LAYOUT = runpy.run_path(str(Path(optimc.__file__).parent / "mpi" / "layout.py"))
Layout, Like, block_order, buckets = (LAYOUT[name] for name in ("Layout", "Like", "block_order", "buckets"))
LIKES = [Like(shape, np.dtype(dtype), order) for shape, dtype, order in (
    ((3000,), "f4", "C"), ((0, 2), "f4", "C"), ((7, 5), "f8", "F"), ((100, 100), "f4", "F"), ((), "f4", "C"),
    ((90, 110), "f8", "C"))]
CUTS = ("elements", "codes", "blocks", "tensors")


def test_a_layout_is_cut_where_it_may():
    for cut, expected in (("elements", [0, 4333, 8667, 13001]), ("codes", [0, 3000 + 1280, 3000 + 22 * 256, 13001]),
                          ("blocks", [0, 3000 + 2048, 3000 + 3 * 2048, 13001]), ("tensors", [0, 3000, 13000, 13001])):
        layout = Layout(LIKES, 3, cut)
        assert layout.spaces[np.dtype("f4")][2] == expected


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_shares_are_all_elements_once(cut, ranks):
    layout = Layout(LIKES, ranks, cut)
    pieces = [layout.pieces(rank) for rank in range(ranks)]
    for i, like in enumerate(LIKES):
        reached = 0
        for low, high in (own[i] for own in pieces if own[i][0] < own[i][1]):
            assert low == reached
            reached = high
        assert reached == like.size
    for dtype in layout.spaces:
        assert sum(layout.share(dtype, rank) for rank in range(ranks)) == sum(
            like.size for like in LIKES if like.dtype == dtype)


@pytest.mark.parametrize("cut", CUTS)
def test_a_piece_has_the_shape_that_its_optimizer_is_told(cut):
    layout = Layout(LIKES, 3, cut)
    arrays = [np.arange(like.size, dtype=like.dtype).reshape(like.shape, order=like.order) for like in LIKES]
    for rank in range(3):
        for i, (low, high) in enumerate(layout.pieces(rank)):
            piece = layout.piece_of(i, low, high, arrays[i])
            assert layout.likes_of(rank)[i].fits(piece)
            assert piece.reshape(-1, order=LIKES[i].order).tolist() == list(range(low, high))
            assert layout.piece_of(i, low, high, None) is None


def test_a_table_of_many_rows_is_cut_between_rows():
    likes = [Like((5,), np.dtype("f4")), Like((900_000, 7), np.dtype("f4")), Like((4, 5), np.dtype("f4"))]
    for cut, grain in (("elements", 7), ("codes", 7 * 256)):
        layout = Layout(likes, 4, cut)
        for rank in range(4):
            low, high = layout.pieces(rank)[1]
            assert low % grain == 0 and layout.likes_of(rank)[1].shape == ((high - low) // 7, 7)
    assert Layout(likes[1:], 4, "blocks").pieces(1)[0][0] % 2048 == 0       # 7 * 2048 is too much of a share
    assert Layout(likes[2:], 3, "elements").likes_of(1)[0].shape == (7,)        # elements 6 .. 12 of rows of 5
    assert Layout(likes[2:], 2, "elements").likes_of(1)[0].shape == (2, 5)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_a_layout_without_some_weights_keeps_the_pieces_of_the_others(cut, ranks):
    layout = Layout(LIKES, ranks, cut)
    others = layout.without({0, 5})
    for rank in range(ranks):
        whole, own = layout.pieces(rank), others.pieces(rank)
        assert own[0] == own[5] == (0, 0) and [own[i] for i in (1, 2, 3, 4)] == [whole[i] for i in (1, 2, 3, 4)]
        for dtype in others.spaces:
            starts = {i: at - low for i, low, _, at in layout.segments(dtype, rank)}
            runs = [element for bucket in buckets(others, rank, 4000) if bucket.dtype == dtype
                    for run in bucket.runs for element in range(*run)]
            assert runs == [starts[i] + k for i in starts if i not in (0, 5) for k in range(*whole[i])]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("most", [1, 4000, 1 << 22])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_buckets_are_all_elements_once(ranks, most, cut):
    layout, block = Layout(LIKES, ranks, cut), 1 if cut == "elements" else 256
    for me in range(ranks):
        seen = [np.zeros(like.size, int) for like in LIKES]
        reached = dict.fromkeys(layout.spaces, 0)
        for bucket in buckets(layout, me, most):
            assert bucket.size * bucket.dtype.itemsize <= max(most, ranks * block * bucket.dtype.itemsize)
            assert bucket.begin == reached[bucket.dtype] and bucket.own == bucket.counts[me]
            reached[bucket.dtype] = bucket.end
            filled = np.zeros(bucket.size, int)
            for start, segments in zip(bucket.starts, bucket.segments, strict=True):
                for i, low, high, at in segments:
                    assert LIKES[i].dtype == bucket.dtype and low % block == 0
                    assert high % block == 0 or high == LIKES[i].size
                    seen[i][low:high] += 1
                    filled[start + at:start + at + high - low] += 1
            assert (filled == 1).all()
        assert all((count == 1).all() for count in seen)
        assert reached == {dtype: layout.share(dtype, me) for dtype in layout.spaces}


def test_sums_of_blocks_are_sorted_by_weight_and_place():
    for ranks in (1, 2, 3, 5):
        layout = Layout(LIKES, ranks, "blocks")
        come = [(i, low) for rank in range(ranks) for i, (first, last) in enumerate(layout.pieces(rank))
                for low in range(first, last, _core.SUM_BLOCK)]
        assert layout.blocks().sum() == len(come)
        assert [come[k] for k in block_order(layout.blocks())] == sorted(come)


def test_the_example_of_the_order():
    test, = doctest.DocTestFinder().find(block_order, "block_order", globs=LAYOUT, module=False)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
