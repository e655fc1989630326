"""The attention kernels, interpreted, against their torch twins; and the twins against each other."""

import math

import pytest
import torch
from support.kernel_cases import Paged, assert_twins
from torch.utils._python_dispatch import TorchDispatchMode

from dslc.kernels import cascade_attention, decode_attention, extend_attention, merge_states, tree_attention
from dslc.kernels.token_bitmask import pack_mask

pytest.importorskip("triton")
from dslc.kernels.triton import cascade_attention as triton_cascade
from dslc.kernels.triton import decode_attention as triton_decode
from dslc.kernels.triton import extend_attention as triton_extend
from dslc.kernels.triton import merge_states as triton_merge

torch.set_num_threads(1)
F32, F16 = torch.float32, torch.float16
# kv heads, query heads, head dim, page size, dtype, soft cap
SHAPES = {
    "mha-32": (2, 2, 32, 1, F32, 0.0),
    "gqa2-64": (2, 4, 64, 16, F32, 0.0),
    "gqa4-80-cap": (1, 4, 80, 1, F32, 3.0),
    "gqa8-128-half": (1, 8, 128, 16, F16, 0.0),
    "gqa7-32-half-cap": (1, 7, 32, 1, F16, 5.0),
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def paged(shape, lens, **options):
    kv_heads, heads, dim, page, dtype, cap = SHAPES[shape]
    world = Paged(lens, kv_heads=kv_heads, dim=dim, page=page, dtype=dtype, **options)
    return world, heads, dim, cap


@pytest.fixture(params=[1, 3], ids=["one-split", "splits"])
def splits(request, monkeypatch):
    """Sequences whole, or cut into splits of a few keys."""
    for module in (triton_decode, triton_cascade):
        monkeypatch.setattr(module, "decode_splits", lambda *args: request.param)
    monkeypatch.setattr(triton_extend, "extend_splits", lambda *args: request.param)
    monkeypatch.setattr(triton_decode, "MIN_SPLIT", 16)
    return request.param


@shapes
def test_decode(shape, splits):
    world, heads, dim, cap = paged(shape, [129, 1, 33, 3, 17])
    q = world.randn(5, heads, dim)
    starts = torch.tensor([0, 0, 5, 0, 0])
    ends = torch.tensor([129, 1, 33, 3, 0])  # the last one sees nothing
    args = (q, *world.cache, world.rows, starts, ends, dim**-0.5, cap)
    got, expected = triton_decode.decode_attention(*args), decode_attention.decode_attention(*args)
    assert_twins(got, expected)
    assert got[0][4].abs().sum() == 0 and got[1][4].max() == -math.inf


def test_decode_into_parts_of_chosen_rows():
    world, heads, dim, _ = paged("gqa2-64", [40, 7])
    q = world.randn(6, heads, dim)
    chosen = torch.tensor([4, 1])
    outs = torch.full((2, 3, heads, dim), math.nan)
    lses = torch.full((2, 3, heads), math.nan)
    zeros = torch.zeros(2, dtype=torch.int64)
    triton_decode.decode_parts(
        q, *world.cache, world.rows, zeros, world.lens, outs[:, 1:], lses[:, 1:], dim**-0.5, q_rows=chosen
    )
    assert lses[:, 0].isnan().all() and outs[:, 0].isnan().all()  # others' parts are not touched
    expected = decode_attention.decode_attention(q[chosen], *world.cache, world.rows, zeros, world.lens, dim**-0.5)
    out = torch.zeros(6, heads, dim)
    triton_merge.merge_into(out, outs[:, 1:], lses[:, 1:], chosen, None)
    assert_twins(out[chosen], expected[0])
    assert out[[0, 2, 3, 5]].abs().sum() == 0


def extend_case(shape, prefixes, news, *, prefix_starts=None):
    world, heads, dim, cap = paged(shape, prefixes)
    starts = [2]  # a row that belongs to nobody stands before the first request and after the last
    for n in news:
        starts.append(starts[-1] + n)
    total = starts[-1] + 1
    kv_heads = world.k.shape[1]
    q, k, v = world.randn(total, heads, dim), world.randn(total, kv_heads, dim), world.randn(total, kv_heads, dim)
    where = (
        world.rows,
        torch.tensor(starts[:-1]),
        torch.tensor(news),
        torch.tensor(prefix_starts or [0] * len(news)),
        world.lens,
    )
    mine = slice(2, total - 1)
    return (q, k, v, *world.cache, *where), dim**-0.5, cap, mine


def check_extend(got, expected, mine):
    assert_twins((got[0][mine], got[1][mine]), (expected[0][mine], expected[1][mine]))


@shapes
@pytest.mark.parametrize("window, splits", [(None, 1), (9, 2)], indirect=["splits"])
def test_extend(shape, window, splits):
    args, scale, cap, mine = extend_case(shape, [0, 129, 1], [17, 3, 33])
    got = triton_extend.extend_attention(*args, scale, cap, window)
    check_extend(got, extend_attention.extend_attention(*args, scale, cap, window), mine)


def test_extend_of_many_tiles():
    args, scale, _, mine = extend_case("gqa8-128-half", [5], [67])
    check_extend(
        triton_extend.extend_attention(*args, scale, max_rows=67),
        extend_attention.extend_attention(*args, scale),
        mine,
    )
    args, scale, _, mine = extend_case("mha-32", [0], [150])
    for window in (None, 1, 40):
        check_extend(
            triton_extend.extend_attention(*args, scale, 0.0, window),
            extend_attention.extend_attention(*args, scale, 0.0, window),
            mine,
        )


def test_extend_that_is_not_causal(splits):
    args, scale, cap, mine = extend_case("gqa2-64", [0, 20], [33, 5])
    got = triton_extend.extend_attention(*args, scale, cap, causal=False)
    check_extend(got, extend_attention.extend_attention(*args, scale, cap, causal=False), mine)


def test_extend_from_the_middle_of_a_prefix(splits):
    args, scale, cap, mine = extend_case("gqa2-64", [40, 20], [3, 5], prefix_starts=[17, 20])
    got = triton_extend.extend_attention(*args, scale, cap)
    check_extend(got, extend_attention.extend_attention(*args, scale, cap), mine)


def test_extend_agrees_with_decodes_one_by_one():
    """A run of rows sees what each of them would see decoded alone: two operations, one meaning."""
    (q, k, v, k_cache, v_cache, table, rows, first, count, begin, prefix), scale, cap, mine = extend_case(
        "gqa4-80-cap", [21], [5]
    )
    slots = torch.arange(len(k_cache), len(k_cache) + 5)
    k_cache, v_cache = torch.cat([k_cache, k[mine]]), torch.cat([v_cache, v[mine]])
    wide = torch.cat([table, torch.zeros(len(table), 8, dtype=torch.int32)], dim=1)
    wide[rows[0], 21:26] = slots.int()
    args = (k_cache, v_cache, wide, rows.repeat(5), torch.zeros(5, dtype=torch.int64), torch.arange(22, 27))
    decoded = triton_decode.decode_attention(q[mine], *args, scale, cap)
    extended = triton_extend.extend_attention(
        q, k, v, k_cache, v_cache, table, rows, first, count, begin, prefix, scale, cap
    )
    expected = [torch.nn.functional.pad(x, (*[0, 0] * (x.dim() - 1), 2, 1)) for x in decoded]
    check_extend(extended, expected, mine)


def sees_of(parents):
    """[L, L] bool and depths [L] of a tree."""
    sees = torch.eye(len(parents), dtype=torch.bool)
    depths = [0] * len(parents)
    for i, parent in enumerate(parents):
        if parent >= 0:
            sees[i] |= sees[parent]
            depths[i] = depths[parent] + 1
    return sees, depths


TREES = [[-1, 0, 0, 1, -1, 4, 5, 2, 3], [*range(-1, 34), 10, 35, 0, -1], [-1]]


@pytest.mark.parametrize("shape", ["mha-32", "gqa4-80-cap", "gqa8-128-half"])
@pytest.mark.parametrize("window, splits", [(None, 3), (4, 1)], indirect=["splits"])
def test_trees(shape, window, splits):
    args, scale, cap, mine = extend_case(shape, [33, 0, 65], [len(tree) for tree in TREES])
    total = args[0].shape[0]
    allowed = torch.zeros(total, 40, dtype=torch.bool)
    depths = torch.zeros(total, dtype=torch.int64)
    row = mine.start
    for tree in TREES:
        sees, depth = sees_of(tree)
        allowed[row : row + len(tree), : len(tree)] = sees
        depths[row : row + len(tree)] = torch.tensor(depth)
        row += len(tree)
    words = pack_mask(allowed)
    got = triton_extend.tree_attention(*args, words, depths, scale, cap, window)
    check_extend(got, tree_attention.tree_attention(*args, words, depths, scale, cap, window), mine)


def test_a_chain_is_a_tree_and_a_mask_that_excludes_everything_gives_zeros():
    args, scale, _, mine = extend_case("gqa2-64", [17], [33])
    total = args[0].shape[0]
    chain = torch.zeros(total, 33, dtype=torch.bool)
    chain[mine] = torch.ones(33, 33, dtype=torch.bool).tril()
    depths = torch.zeros(total, dtype=torch.int64)
    depths[mine] = torch.arange(33)
    got = triton_extend.tree_attention(*args, pack_mask(chain), depths, scale)
    check_extend(got, triton_extend.extend_attention(*args, scale), mine)
    args, scale, _, mine = extend_case("gqa2-64", [0], [33])  # no prefix, and no row sees any
    nothing = torch.zeros(args[0].shape[0], 2, dtype=torch.int32)
    for attend in (triton_extend.tree_attention, tree_attention.tree_attention):
        out, lse = attend(*args, nothing, depths, scale)
        assert out[mine].abs().sum() == 0 and lse[mine].max() == -math.inf


def test_a_window_of_no_keys_gives_zeros():
    """A prefix that starts where it ends, and rows whose window begins behind it."""
    args, scale, _, mine = extend_case("mha-32", [9], [3], prefix_starts=[9])
    got = triton_extend.extend_attention(*args, scale, 0.0, 1)
    torch.testing.assert_close(got[0][mine], args[2][mine], atol=1e-5, rtol=1e-5)  # each row sees itself only


@shapes
def test_cascade(shape, splits):
    world, heads, dim, cap = paged(shape, [129, 33, 5])
    q = world.randn(9, heads, dim)
    members = torch.tensor([7, 0, 3, 4, 8])
    member_starts = torch.tensor([0, 3, 3, 5])  # the second group is empty
    starts, ends = torch.tensor([0, 0, 2]), torch.tensor([129, 33, 5])
    args = (q, *world.cache, world.rows, starts, ends, members, member_starts, dim**-0.5, cap)
    got, expected = triton_cascade.cascade_attention(*args), cascade_attention.cascade_attention(*args)
    assert_twins(got, expected)
    outside = torch.tensor([1, 2, 5, 6])
    assert got[0][outside].abs().sum() == 0 and got[1][outside].max() == -math.inf


def test_cascade_and_the_rest_joined_are_decode():
    """Shared keys read once, own keys apart, merged by log-sum-exp: what reading all at once gives."""
    world, heads, dim, _ = paged("gqa2-64", [70])
    n = 20
    q = world.randn(n, heads, dim)
    row = world.rows.repeat(n)
    ends = torch.arange(51, 51 + n)
    scale, zeros = dim**-0.5, torch.zeros(n, dtype=torch.int64)
    one = torch.zeros(1, dtype=torch.int64)
    shared = triton_cascade.cascade_attention(
        q, *world.cache, world.rows, one, one + 50, torch.arange(n), torch.tensor([0, n]), scale
    )
    own = triton_decode.decode_attention(q, *world.cache, row, zeros + 50, ends, scale)
    merged = triton_merge.merge_states(torch.stack([shared[0], own[0]], 1), torch.stack([shared[1], own[1]], 1))
    assert_twins(merged, decode_attention.decode_attention(q, *world.cache, row, zeros, ends, scale), scale=3)


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("n, parts, heads, dim", [(1, 1, 1, 32), (3, 17, 2, 80), (17, 3, 1, 33), (2, 129, 1, 16)])
def test_merge(n, parts, heads, dim, dtype):
    rng = torch.Generator().manual_seed(n)
    outs = torch.randn(n, parts, heads, dim, generator=rng).to(dtype)
    lses = torch.randn(n, parts, heads, generator=rng) * 20
    lses[torch.rand(n, parts, heads, generator=rng) < 0.3] = -math.inf
    lses[0] = -math.inf
    outs.masked_fill_(lses.isneginf().unsqueeze(-1), math.nan)  # what a part that saw nothing has there is not read
    got, expected = triton_merge.merge_states(outs, lses, dtype), merge_states.merge_states(outs, lses, dtype)
    assert_twins(got, expected)
    assert got[0][0].abs().sum() == 0


def test_empty_batches():
    world, heads, dim, _ = paged("mha-32", [3])
    none, q = torch.empty(0, dtype=torch.int64), torch.empty(0, heads, dim)
    assert triton_decode.decode_attention(q, *world.cache, none, none, none, 1.0)[0].shape == q.shape
    kv = torch.empty(0, 2, dim)
    out, _ = triton_extend.extend_attention(q, kv, kv, *world.cache, none, none, none, none, none, 1.0)
    assert out.shape == q.shape


class Allocations(TorchDispatchMode):
    """Sizes, in elements, of the tensors that are made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.empty.memory_format, torch.ops.aten.full.default):
            self.sizes.append(result.numel())
        return result


def test_memory_grows_with_rows_and_not_with_rows_times_keys():
    """FlashAttention's promise: nothing of the size of the scores is ever made."""
    made = {}
    for length in (100, 400):
        args, scale, _, _ = extend_case("mha-32", [length], [8])
        with Allocations() as allocations:
            triton_extend.extend_attention(*args, scale, max_rows=8)
        made[length] = [size for size in allocations.sizes if size]
        q = args[0]
        with Allocations() as allocations:
            ends, rows = args[-1].repeat(3), args[6].repeat(3)
            triton_decode.decode_attention(q[:3], *args[3:6], rows, ends * 0, ends, scale)
        made[length] += allocations.sizes
    splits = {100: 1, 400: 4}
    for length, sizes in made.items():
        assert sizes and max(sizes) <= q.numel() * splits[length], (length, sizes)
