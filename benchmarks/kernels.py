"""Each kernel against its torch form and against the machine: `python benchmarks/kernels.py [--only rms_norm ...]`.

One row per operation and shape: the implementation that the registry picks, microseconds of it and of plain torch,
bytes that must move (each input read once, each output written once) over its time, and what share that is of a large
copy's bandwidth on the same machine; for the products of attention also the share of a large matrix product's rate.
With `--quick` everything is tiny. On the CPU the torch forms are timed alone: interpreted Triton kernels say nothing of
speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dslc.kernels.registry import TORCH, choose, operations, torch_form
from dslc.kernels.token_bitmask import pack_mask
from dslc.runtime.sampling.random import stream_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Case:
    """Arguments of one call. `num_bytes` and `flops` are what it cannot do without."""

    operation: str
    label: str
    args: tuple[Any, ...]
    num_bytes: int
    flops: int = 0
    shape: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """How large the cases are: tokens of a prefill, requests and context of decodes, an 8B model's layer or less."""

    tokens: int = 4096
    batch: int = 32
    context: int = 4096
    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 128256
    page: int = 16


QUICK = Size(24, 3, 40, 64, 96, 4, 2, 16, 300, 4)


def _size_of(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def cases(size: Size, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Every operation once or more, on random numbers."""
    rng = torch.Generator(device).manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=rng, device=device).to(dtype)

    yield from _row_wise(size, randn)
    yield from _cache(size, randn, device)
    yield from _attention(size, randn, device)
    yield from _vocabulary(size, randn, device)


def _row_wise(size: Size, randn: Callable[..., torch.Tensor]) -> Iterator[Case]:
    weight = randn(size.hidden)
    for rows in (size.batch, size.tokens):
        x, residual = randn(rows, size.hidden), randn(rows, size.hidden)
        wide = {"size": size.hidden}
        yield Case("rms_norm", f"{rows} x {size.hidden}", (x, weight, 1e-5), 2 * _size_of(x), shape=wide)
        yield Case("add_rms_norm", f"{rows} x {size.hidden}", (x, residual, weight, 1e-5), 4 * _size_of(x), shape=wide)
        gated = randn(rows, 2 * size.inner)
        for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
            yield Case(name, f"{rows} x {size.inner}", (gated,), _size_of(gated) * 3 // 2)
        q = randn(rows, size.heads + size.kv_heads, size.head_dim)
        cos, sin = (randn(rows, 1, size.head_dim // 2, dtype=torch.float32) for _ in range(2))
        yield Case("rotary_embedding", f"{rows} x {q.shape[1]} heads", (q, cos, sin), 2 * _size_of(q))


def _cache(size: Size, randn: Callable[..., torch.Tensor], device: torch.device) -> Iterator[Case]:
    pool = [randn(2 * size.tokens + 1, size.kv_heads, size.head_dim) for _ in range(2)]
    order = torch.randperm(2 * size.tokens, generator=torch.Generator().manual_seed(0)).to(device) + 1
    for rows in (size.batch, size.tokens):
        k, v = (randn(rows, size.kv_heads, size.head_dim) for _ in range(2))
        yield Case("store_kv", f"{rows} tokens", (*pool, order[:rows], k, v), 4 * _size_of(k))
        far = order[size.tokens : size.tokens + rows]
        yield Case("copy_kv", f"{rows} tokens", (*pool, order[:rows], far), 4 * _size_of(k))


def _attention(size: Size, randn: Callable[..., torch.Tensor], device: torch.device) -> Iterator[Case]:
    heads, kv_heads, dim, page = size.heads, size.kv_heads, size.head_dim, size.page
    pages = -(-size.context // page)
    num_slots = (size.batch * pages + 1) * page
    k_cache, v_cache = (randn(num_slots, kv_heads, dim) for _ in range(2))
    order = torch.randperm(size.batch * pages, generator=torch.Generator().manual_seed(0)) + 1
    slots = (order.view(size.batch, pages, 1) * page + torch.arange(page)).flatten(1)
    table = slots[:, : size.context].int().to(device)
    cache = (k_cache, v_cache, table)

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, device=device)

    row = _size_of(k_cache[0]) * 2
    scale = dim**-0.5
    for batch, splits in ((1, "one"), (size.batch, "many")):
        q, rows = randn(batch, heads, dim), torch.arange(batch, device=device)
        args = (q, *cache, rows, torch.zeros_like(rows), torch.full_like(rows, size.context), scale)
        work = batch * size.context
        yield Case(
            "decode_attention", f"{splits} x {size.context} keys", args, work * row, 4 * work * heads * dim,
        )  # fmt: skip
    q, all_rows = randn(size.batch, heads, dim), torch.arange(size.batch, device=device)
    zero, whole = ints(0), ints(size.context)
    args = (q, *cache, zero, zero, whole, all_rows, ints(0, size.batch), scale)
    flops = 4 * size.batch * size.context * heads * dim
    yield Case("cascade_attention", f"{size.batch} share {size.context}", args, size.context * row, flops)
    outs, lses = randn(size.batch, 8, heads, dim, dtype=torch.float32), randn(size.batch, 8, heads, dtype=torch.float32)
    yield Case("merge_states", f"{size.batch} x 8 parts", (outs, lses, q.dtype), _size_of(outs), shape={"parts": 8})

    new, prefix = size.tokens // 2, min(size.context, size.tokens) // 2
    q, k, v = randn(new, heads, dim), randn(new, kv_heads, dim), randn(new, kv_heads, dim)
    pairs = new * prefix + new * (new + 1) // 2
    args = (q, k, v, *cache, zero, zero, ints(new), zero, ints(prefix))
    least = 2 * _size_of(q) + (prefix + new) * row
    yield Case("extend_attention", f"{new} after {prefix}", (*args, scale), least, 4 * pairs * heads * dim)
    rows = min(new, 64)
    sees = pack_mask(torch.ones(rows, rows, dtype=torch.bool).tril()).to(device)
    depths = torch.arange(rows, device=device)
    args = (q[:rows], k[:rows], v[:rows], *cache, zero, zero, ints(rows), zero, ints(prefix), sees, depths, scale)
    pairs = rows * prefix + rows * (rows + 1) // 2
    yield Case("tree_attention", f"{rows} after {prefix}", args, (prefix + rows) * row, 4 * pairs * heads * dim)


def _vocabulary(size: Size, randn: Callable[..., torch.Tensor], device: torch.device) -> Iterator[Case]:
    for batch in (1, size.batch):
        logits = randn(batch, size.vocab, dtype=torch.float32) * 3
        allowed = torch.rand(batch, size.vocab, generator=torch.Generator().manual_seed(0)) < 0.5
        mask = pack_mask(allowed).to(device)
        barred = _size_of(logits) // 2 + _size_of(mask)
        yield Case("apply_token_mask", f"{batch} x {size.vocab}", (logits.clone(), mask), barred)
        yield Case("argmax_rows", f"{batch} x {size.vocab}", (logits,), _size_of(logits))
        row = torch.ones(batch, device=device)
        keys = torch.tensor([stream_key(0, i) for i in range(batch)], device=device)
        steps = torch.zeros(batch, dtype=torch.int64, device=device)
        for label, top_k, top_p in (("plain", size.vocab, 1.0), ("top-k 50, top-p 0.9", 50, 0.9)):
            args = (logits, row, torch.full_like(steps, top_k), row * top_p, row * 0.0, keys, steps)
            yield Case("sample_rows", f"{batch} x {size.vocab}, {label}", args, _size_of(logits))


def seconds(run: Callable[[], Any], device: torch.device, min_time: float) -> float:
    """Median seconds of a call. On a GPU by events, with a cold cache; elsewhere by the clock."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=25, rep=max(20, int(min_time * 1e3)), return_mode="median")) * 1e-3
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < min_time:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@dataclass(frozen=True)
class Limits:
    """What the machine does at its best, measured: bytes a second of a copy, operations a second of a product."""

    bandwidth: float
    rate: float

    def __str__(self) -> str:
        return (
            f"a large copy moves {self.bandwidth / 1e9:,.0f} GB/s, a large product does {self.rate / 1e12:,.2f} TFLOP/s"
        )


def limits(device: torch.device, dtype: torch.dtype, quick: bool) -> Limits:
    """Measure both, on sizes beyond any cache unless `quick`."""
    num_bytes = 1 << 22 if quick else (1 << 31 if device.type == "cuda" else 1 << 28)
    side = 256 if quick else (8192 if device.type == "cuda" else 1024)
    source = torch.randint(0, 100, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    min_time = 0.01 if quick else 0.3
    return Limits(
        2 * num_bytes / seconds(lambda: target.copy_(source), device, min_time),
        2 * side**3 / seconds(lambda: a @ b, device, min_time),
    )


HEADER = (
    f"{'operation':18} {'shape':32} {'runs':>7} {'us':>10} {'torch us':>10} {'GB/s':>8} {'of copy':>8} {'of rate':>8}"
)


def row_of(case: Case, device: torch.device, dtype: torch.dtype, best: Limits, min_time: float) -> str:
    """The line of one case."""
    on_vocabulary = case.operation in ("apply_token_mask", "argmax_rows", "sample_rows")
    kernel = choose(case.operation, device=device, dtype=torch.float32 if on_vocabulary else dtype, **case.shape)
    twin = torch_form(case.operation)
    plain = seconds(lambda: twin(*case.args), device, min_time)
    taken = plain if kernel.name == TORCH else seconds(lambda: kernel.run(*case.args), device, min_time)
    rate = f"{case.flops / taken / best.rate:8.1%}" if case.flops else f"{'':8}"
    return (
        f"{case.operation:18} {case.label:32} {kernel.name:>7} {taken * 1e6:10,.1f} {plain * 1e6:10,.1f} "
        f"{case.num_bytes / taken / 1e9:8,.1f} {case.num_bytes / taken / best.bandwidth:8.1%} {rate}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on the CPU")
    parser.add_argument("--only", nargs="+", choices=sorted(operations()), help="these operations")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    size = QUICK if args.quick else Size()
    if device.type == "cpu" and not args.quick:
        size = Size(
            tokens=512, batch=8, context=512, hidden=768, inner=2048, heads=12, kv_heads=4, head_dim=64, vocab=32000
        )
    best = limits(device, dtype, args.quick)
    print(f"{device}, {dtype}, torch {torch.__version__}; {best}")
    print(HEADER)
    min_time = 0.002 if args.quick else 0.1
    with torch.inference_mode():
        for case in cases(size, device, dtype):
            if not args.only or case.operation in args.only:
                print(row_of(case, device, dtype, best, min_time), flush=True)


if __name__ == "__main__":
    main()
