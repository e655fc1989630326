"""Request table, KV pool, page allocator, radix cache."""
