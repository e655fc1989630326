"""Rows that see what comes after them, as those of a picture do: every backend against attention written out."""

import pytest
import torch
from support.attention_world import OPTIONS, World, check

from dslc.runtime.attention import planner

torch.set_num_threads(1)
BACKENDS = ["torch_native", "torch_deterministic", "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


@pytest.mark.parametrize("options", ["gqa", "window", "window-cap"])
def test_rows_of_a_block_see_each_other(backend, options):
    world = World(backend, **OPTIONS[options])
    a, b, c, d = (world.sequence() for _ in range(4))
    check(world.run([(a, 12)], blocks=[[(3, 9)]]))
    check(world.run([(b, 9), (c, 7)], blocks=[[(0, 4), (4, 9)], None]))
    # Behind a prefix, beside decodes and plain chunks; a block longer than the window; two blocks in one piece.
    check(world.run([(a, 8), (b, 1), (c, 5)], blocks=[[(13, 19)], None, None]))
    check(world.run([(c, 30), (d, 70)], blocks=[[(12, 24), (26, 40)], [(2, 68)]]))
    check(world.run([(a, 1), (b, 1), (c, 1), (d, 1)]))


def test_a_piece_may_begin_inside_a_block(backend):
    """The rows before it, which are cached, saw all of the block when they were computed."""
    world = World(backend, **OPTIONS["window"])
    a = world.sequence()
    check(world.run([(a, 10)]))
    check(world.run([(a, 9)], blocks=[[(6, 15)]]))
    check(world.run([(a, 1)], blocks=[[(15, 20)]]))


def test_trees_stand_behind_blocks(backend):
    world = World(backend, **OPTIONS["window"])
    a, b = world.sequence(), world.sequence()
    check(world.run([(a, 4), (b, 3)]))
    chain = list(range(-1, 9))  # ten rows in a chain, then a tree on the last of them
    parents = [*chain, 9, 9, 10, 11]
    check(world.run([(a, len(parents)), (b, 6)], parents=[parents, None], blocks=[[(6, 12)], [(4, 8)]]))


def test_long_pieces_are_cut_into_blocks_of_queries_only(backend, monkeypatch):
    monkeypatch.setattr(planner, "QUERY_BLOCK", 8)
    world = World(backend, **OPTIONS["window"])
    a = world.sequence()
    check(world.run([(a, 5)]))
    check(world.run([(a, 80)], blocks=[[(7, 40), (41, 60)]]))
