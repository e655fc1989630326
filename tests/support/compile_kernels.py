"""Compiles what wrappers of Triton kernels would launch, for a GPU that need not be there.

    python compile_kernels.py 90        # compute capability 9.0; prints one line per compiled kernel

Runs without TRITON_INTERPRET: launches are caught, and their arguments' types and constants go to the compiler.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

LIMITS = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory of one program


def compiled(function: JITFunction, capability: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The kernel that a launch with these arguments would run."""
    bound = dict(zip(function.arg_names, args, strict=False))
    bound |= {name: options.pop(name) for name in list(options) if name in function.arg_names}
    signature, constants, known = {}, {}, {}
    for at, param in enumerate(function.params):
        value = bound[param.name]
        if param.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[param.name] = "constexpr"
            constants[param.name] = value
        else:
            signature[param.name] = mangle_type(value)
            number = value.data_ptr() if torch.is_tensor(value) else value
            if isinstance(number, int) and number % 16 == 0:  # as a launch tells the compiler
                known[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, known)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def catch_launches(capability: int) -> list[str]:
    """From now on launches compile and compute nothing; a line about each new kernel goes to the returned list."""
    lines: list[str] = []
    seen = set()

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        key = (self.fn.__name__, str([mangle_type(a) if a is not None else None for a in args]), str(options))
        if key in seen:
            return
        seen.add(key)
        kernel = compiled(self, capability, args, dict(options))
        shared = kernel.metadata.shared
        assert shared <= LIMITS[capability], f"{self.fn.__name__} wants {shared} bytes of shared memory"
        lines.append(f"{self.fn.__name__}: {shared} bytes shared, {kernel.metadata.num_warps} warps")

    JITFunction.run = run
    return lines


def launch_all(dtype: torch.dtype, dim: int, group: int) -> None:
    """Every wrapper once, on tensors of the CPU that nothing reads."""
    from dslc.kernels.triton import (
        activation,
        argmax,
        cascade_attention,
        decode_attention,
        extend_attention,
        kv_cache,
        rms_norm,
        rotary,
        sample,
        token_bitmask,
    )

    x, weight = torch.zeros(4, 512, dtype=dtype), torch.zeros(512, dtype=dtype)
    rms_norm.rms_norm(x, weight, 1e-5)
    rms_norm.add_rms_norm(x, x, weight, 1e-5)
    for act in (activation.silu_and_mul, activation.gelu_and_mul, activation.gelu_tanh_and_mul):
        act(x)
    half = torch.zeros(4, 1, dim // 2)
    rotary.rotary_embedding(x.view(4, -1, 128)[..., :dim], half, half)
    rotary.rotary_embedding(x.view(4, -1, 128)[..., :dim], half[..., :8], half[..., :8], True)
    token_bitmask.apply_token_mask_(x, torch.zeros(4, 16, dtype=torch.int32))
    kv_heads, count = 2, 300
    cache = torch.zeros(1024, kv_heads, dim, dtype=dtype)
    q, kv = torch.zeros(count, kv_heads * group, dim, dtype=dtype), torch.zeros(count, kv_heads, dim, dtype=dtype)
    table = torch.zeros(4, 1024, dtype=torch.int32)
    one, many = torch.zeros(1, dtype=torch.int64), torch.full((1,), count)
    rows = torch.zeros(count, dtype=torch.int64)
    kv_cache.store_kv(cache, cache, rows, kv, kv)
    kv_cache.copy_kv(cache, cache, rows, rows)
    logits, four = torch.zeros(4, 5000), torch.zeros(4)
    argmax.argmax_rows(logits)
    sample.sample_rows(logits, four, four.long(), four, four, torch.zeros(4, 2, dtype=torch.int64), four.long())
    words = torch.zeros(count, 10, dtype=torch.int32)
    decode_attention.decode_attention(q, cache, cache, table, rows, rows, rows, 1.0)
    for cap, window in ((0.0, None), (3.0, 64)):
        decode_attention.decode_attention(q[:1], cache, cache, table, one, one, one, 1.0, cap)
        for most in (1, count):
            where = (q, kv, kv, cache, cache, table, one, one, many, one, one)
            extend_attention.extend_attention(*where, 1.0, cap, window, max_rows=most)
            extend_attention.tree_attention(*where, words, rows, 1.0, cap, window, max_rows=most)
            # masks that name later rows too: those of a picture that is seen as a whole
            extend_attention._attended(*where, 1.0, cap, window, False, most, words, rows)
            members = torch.zeros(2, dtype=torch.int64)
            cascade_attention.cascade_attention(
                q, cache, cache, table, one, one, one, rows, members, 1.0, cap, max_members=most
            )
    extend_attention.extend_attention(*where, 1.0, causal=False, max_rows=count)


SHAPES = ((torch.bfloat16, 128, 4), (torch.float16, 80, 7), (torch.float32, 64, 1), (torch.bfloat16, 256, 8))

if __name__ == "__main__":
    lines = catch_launches(int(sys.argv[1]))
    for dtype, dim, group in SHAPES:
        launch_all(dtype, dim, group)
    print("\n".join(lines))
