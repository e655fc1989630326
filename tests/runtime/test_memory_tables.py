"""The request table and the KV pool: what is written is read back, and nothing older."""

import random

import numpy as np
import pytest
import torch

from dslc.runtime.memory.allocator import MemoryAccountError
from dslc.runtime.memory.kv_pool import KVPool, KVShape, tokens_in_budget
from dslc.runtime.memory.request_table import ReqToTokenPool

torch.set_num_threads(1)


def test_table_against_a_dict_model():
    """Rows are distinct while out; entries are what was written last, and 0 where nothing was, also after reuse."""
    rng = random.Random(0)
    table = ReqToTokenPool(6, 32)
    model: dict[int, dict[int, int]] = {}
    for _ in range(3000):
        action = rng.random()
        if action < 0.3:
            row = table.alloc()
            assert (row is None) == (len(model) == 6)
            if row is not None:
                assert row not in model
                model[row] = {}
        elif action < 0.5 and model:
            row = rng.choice(sorted(model))
            del model[row]
            table.free(row)
        elif action < 0.75 and model:
            row, start = rng.choice(sorted(model)), rng.randint(0, 31)
            values = [rng.randint(1, 999) for _ in range(rng.randint(0, 32 - start))]
            table.write(row, start, np.array(values, dtype=np.int64))
            model[row].update(enumerate(values, start))
        elif model:
            rows = [rng.choice(sorted(model)) for _ in range(4)]
            places = list({(row, rng.randint(0, 31)) for row in rows})
            values = [rng.randint(1, 999) for _ in places]
            table.write_many(*np.array(places).T, np.array(values))
            for (row, position), value in zip(places, values, strict=True):
                model[row][position] = value
        assert table.num_free_rows == 6 - len(model)
        for row in range(6):
            expected = [model.get(row, {}).get(i, 0) for i in range(32)]
            assert table.device[row].tolist() == table.host[row].tolist() == expected
    assert table.device.dtype == torch.int32
    assert table.padding_row == 6 and not table.host[6].any()


def test_a_mirrored_table_follows_every_write():
    """Off the CPU the device holds a copy; it is kept equal by writes alone (seen on the meta of a second tensor)."""
    table = ReqToTokenPool(3, 8)
    table.device, table._mirrored = torch.zeros((4, 8), dtype=torch.int32), True  # as on a GPU: memory of its own
    row, other = table.alloc(), table.alloc()
    table.write(row, 2, np.array([5, 6, 7]))
    table.write_many(np.array([row, other, other]), np.array([0, 3, 4]), np.array([9, 8, 7]))
    assert np.array_equal(table.device.numpy(), table.host) and table.host.any()
    table.free(row)
    assert np.array_equal(table.device.numpy(), table.host) and not table.host[row].any()


def test_table_refuses_what_does_not_fit():
    table = ReqToTokenPool(2, 4)
    row = table.alloc()
    with pytest.raises(MemoryAccountError, match="5 tokens, more than max_context_len 4"):
        table.write(row, 3, np.array([1, 2]))
    with pytest.raises(MemoryAccountError, match="more than max_context_len 4"):
        table.write_many(np.array([row]), np.array([4]), np.array([1]))
    table.free(row)
    with pytest.raises(MemoryAccountError, match="given back twice"):
        table.free(row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pool_keeps_what_is_stored_in_any_order(dtype):
    pool = KVPool(32, KVShape(num_layers=3, num_kv_heads=2, head_dim=4, dtype=dtype), page_size=4)
    generator = torch.Generator().manual_seed(0)
    slots = torch.randperm(31, generator=generator)[:20] + 1
    k, v = torch.randn(2, 3, 20, 2, 4, generator=generator)
    for layer in range(3):
        pool.store(layer, slots, k[layer], v[layer])
    untouched = sorted(set(range(36)) - set(slots.tolist()))
    for layer in range(3):
        stored_k, stored_v = pool.layer(layer)
        assert stored_k.dtype == dtype and stored_k.shape == (36, 2, 4)
        assert torch.equal(stored_k[slots], k[layer].to(dtype)) and torch.equal(stored_v[slots], v[layer].to(dtype))
        assert not stored_k[untouched].any() and not stored_v[untouched].any()


def test_padding_rows_touch_only_the_padding_slot():
    pool = KVPool(8, KVShape(num_layers=1, num_kv_heads=1, head_dim=2))
    pool.store(0, torch.tensor([3, 0, 0, 0]), torch.ones(4, 1, 2), torch.ones(4, 1, 2))
    assert pool.k[0].sum(dim=(1, 2)).nonzero().flatten().tolist() == [0, 3]


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("budget", [0, 1_000, 99_999, 100_000, 1 << 20])
def test_a_byte_budget_gives_the_exact_number_of_slots(page_size, budget):
    """The pool, padding page included, fits the budget, and one page more would not."""
    shape = KVShape(num_layers=2, num_kv_heads=2, head_dim=8, dtype=torch.bfloat16)
    num_tokens = tokens_in_budget(budget, shape, page_size)
    assert num_tokens % page_size == 0
    assert (num_tokens + 2 * page_size) * shape.bytes_per_token > budget
    if num_tokens:
        pool = KVPool(num_tokens, shape, page_size)
        tensors = pool.k + pool.v
        assert pool.num_bytes == sum(tensor.nbytes for tensor in tensors) <= budget
        assert pool.num_pages * page_size == num_tokens
        assert len({tensor.data_ptr() for tensor in tensors}) == 4


def test_pool_size_is_whole_pages():
    with pytest.raises(ValueError, match="multiple of page_size 16"):
        KVPool(40, KVShape(1, 1, 1), page_size=16)
