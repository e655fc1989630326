"""A model's forwards against the limits of a GPU: `python benchmarks/gpu.py`; anywhere: `--device cpu --shape tiny`.

Random weights in the shape of an 8B Llama are made on the device; no file is read. First the limits are measured: bytes
a second of a large copy, operations a second of a large matrix product. Then, at each batch size,

- prefill: one forward of `--input-len` new tokens per request (fewer where they would be more than `--max-tokens`): its
  operations a second, and their share of the product's rate;
- decode: one forward of one token per request after `--context` cached ones (fewer where the memory ends), as single
  launches and, where the device has them, as a captured graph: bytes a second of weights and KV read, and their share
  of the copy's bandwidth. With `--shared` the first half of the context is common to all requests.

At last a row for each kernel, as `benchmarks/kernels.py` prints it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import kernels as kernel_bench
from dslc.core.config import EngineConfig
from dslc.runtime.attention import choose_attention_backend
from dslc.runtime.batch import ForwardBatch, ForwardMode, PrefixGroup
from dslc.runtime.graph_buckets import DecodeGraphs, StaticInputs
from dslc.runtime.loader import empty_model
from dslc.runtime.memory.kv_pool import KVPool, KVShape
from dslc.runtime.memory.request_table import ReqToTokenPool
from dslc.runtime.model_config import ModelConfig
from dslc.runtime.platform import platform_of

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {
    "8b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "ffn": 14336, "vocab": 128256},
    "1b": {"hidden": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "ffn": 8192, "vocab": 128256},
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 300},
}


def config_of(shape: dict[str, int], context: int) -> ModelConfig:
    """The configuration of a Llama of this shape."""
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "intermediate_size": shape["ffn"], "vocab_size": shape["vocab"],
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(fields), "utf-8")
        return ModelConfig.load(Path(folder))


class World:
    """A random model with a pool for `num_tokens` of `batch` requests, and the batches that it can run."""

    def __init__(self, args: argparse.Namespace, batch: int, num_tokens: int) -> None:
        self.platform = platform_of(args.device)
        device = self.platform.device
        shape = SHAPES[args.shape]
        self.context = args.context + args.input_len + 2
        self.config = config_of(shape, self.context)
        dtype = getattr(torch, args.dtype)
        self.act_dtype = self.platform.act_dtype(dtype)
        self.model = empty_model(self.config, device=device, weight_dtype=dtype, act_dtype=self.act_dtype)
        rng = torch.Generator(device).manual_seed(0)
        for name, param in self.model.named_parameters():
            param.fill_(1.0) if "norm" in name else param.normal_(std=0.02, generator=rng)
        kv = KVShape(self.config.num_layers, self.config.num_kv_heads, self.config.head_dim, self.act_dtype)
        self.bytes_per_token = kv.bytes_per_token
        self.pool = KVPool(num_tokens, kv, 1, device)
        for layer in range(self.config.num_layers):
            for part in self.pool.layer(layer):
                part.normal_(generator=rng)
        self.table = ReqToTokenPool(batch, self.context, device)
        config = EngineConfig.of(device=args.device, attention_backend=args.attention_backend)
        self.backend_names = choose_attention_backend(config, self.platform)
        self.backend = self.backend_names.make(self.table)
        # a captured graph keeps the table's address, so it is filled for all positions first
        self.model.model.rotary.at(torch.zeros(1, dtype=torch.int64, device=device), self.context)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that each forward reads: all but the embedding, of which only a few rows are."""
        embedding = self.model.model.embed_tokens.weight
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if p is not embedding)

    @property
    def weight_products(self) -> int:
        """Multiplications per token with weights of the layers; the head's come on top for each row of logits."""
        head = {id(self.model.lm_head.weight), id(self.model.model.embed_tokens.weight)}
        return sum(p.numel() for p in self.model.parameters() if p.dim() == 2 and id(p) not in head)

    def rows(self, batch: int, length: int, shared: int) -> list[int]:
        """Table rows of sequences with slots for `length` tokens, scattered, the first `shared` of them common."""
        rng = np.random.default_rng(0)
        slots = rng.permutation(self.pool.num_tokens) + 1
        common, slots = slots[:shared], slots[shared:]
        found = []
        for i in range(batch):
            row = self.table.alloc()
            assert row is not None
            own = slots[i * (length - shared) : (i + 1) * (length - shared)]
            self.table.write(row, 0, np.concatenate([common, own]))
            found.append(row)
        return found

    def batch(self, rows: list[int], prefix: int, new: int, shared: int) -> ForwardBatch:
        """The forward of `new` tokens after `prefix` cached ones for each row."""
        device, n = self.platform.device, len(rows)

        def tensor(values: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(values), dtype=torch.int64, device=device)

        positions = np.tile(np.arange(prefix, prefix + new), n)
        slots = np.concatenate([self.table.slots(row, prefix, prefix + new) for row in rows])
        ids = np.random.default_rng(1).integers(0, self.config.vocab_size, n * new)
        return ForwardBatch(
            mode=ForwardMode.DECODE if new == 1 else ForwardMode.EXTEND,
            input_ids=tensor(ids), positions=tensor(positions), out_slots=tensor(slots), req_rows=tensor(rows),
            seq_lens=tensor([prefix + new] * n), prefix_lens=tensor([prefix] * n), extend_lens=tensor([new] * n),
            seq_lens_cpu=(prefix + new,) * n, prefix_lens_cpu=(prefix,) * n, extend_lens_cpu=(new,) * n,
            logits_rows=tensor(np.arange(1, n + 1) * new - 1),
            groups=(PrefixGroup(tuple(range(n)), shared),) if shared and n > 1 else (),
        )  # fmt: skip

    def forward(self, fb: ForwardBatch) -> torch.Tensor:
        """Logits of each request's last row; metadata is made already."""
        hidden = self.model(fb.input_ids, fb.positions, fb, self.pool, self.backend)
        return self.model.logits(hidden.index_select(0, fb.logits_rows))

    def run(self, fb: ForwardBatch) -> torch.Tensor:
        self.backend.init_forward_metadata(fb)
        return self.forward(fb)

    def graphs(self, batch: int) -> DecodeGraphs:
        """A captured decode of this many requests."""
        inputs = StaticInputs(batch, self.table.padding_row, self.platform.device)
        return DecodeGraphs(inputs, (batch,), self.platform.capture, self.forward, self.backend.init_forward_metadata)


@dataclass(frozen=True)
class Timed:
    """Median seconds of a forward."""

    seconds: float

    @classmethod
    def of(cls, run: Callable[[], object], synchronize: Callable[[], None], rounds: int) -> Timed:
        for _ in range(2):
            run()
        times = []
        for _ in range(rounds):
            synchronize()
            begin = time.perf_counter()
            run()
            synchronize()
            times.append(time.perf_counter() - begin)
        return cls(statistics.median(times))


def prefill_row(world: World, batch: int, input_len: int, limits: kernel_bench.Limits, rounds: int) -> str:
    """Time of a prefill, and its rate."""
    rows = world.rows(batch, input_len, 0)
    fb = world.batch(rows, 0, input_len, 0)
    taken = Timed.of(lambda: world.run(fb), world.platform.synchronize, rounds).seconds
    free(world, rows)
    config, tokens = world.config, batch * input_len
    attention = 4 * batch * (input_len * (input_len + 1) // 2) * config.num_heads * config.head_dim * config.num_layers
    head = 2 * batch * config.vocab_size * config.hidden_size
    rate = (2 * world.weight_products * tokens + head + attention) / taken
    return (
        f"prefill  {batch:5} {input_len:8} {'':8} {taken * 1e3:10.2f} {tokens / taken:12,.0f} "
        f"{rate / 1e12:9.2f} TFLOP/s {rate / limits.rate:7.1%} of the product"
    )


def decode_rows(
    world: World, batch: int, context: int, shared: int, limits: kernel_bench.Limits, rounds: int
) -> list[str]:
    """Time of a decode step, launched and replayed, and its bandwidth."""
    rows = world.rows(batch, context + 1, shared)
    fb = world.batch(rows, context, 1, shared)
    ways: dict[str, Callable[[], object]] = {"launched": lambda: world.run(fb)}
    if world.platform.supports_graphs:
        graphs = world.graphs(batch)
        ways["graph"] = lambda: graphs.run(fb)
    num_keys = batch * (context + 1 - shared) + shared
    num_bytes = world.weight_bytes + num_keys * world.bytes_per_token
    lines = []
    for name, run in ways.items():
        taken = Timed.of(run, world.platform.synchronize, rounds).seconds
        lines.append(
            f"decode   {batch:5} {context:8} {name:8} {taken * 1e3:10.2f} {batch / taken:12,.0f} "
            f"{num_bytes / taken / 1e9:9.1f} GB/s    {num_bytes / taken / limits.bandwidth:7.1%} of the copy"
        )
    free(world, rows)
    return lines


def free(world: World, rows: list[int]) -> None:
    for row in rows:
        world.table.free(row)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", default="8b", choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument(
        "--max-tokens", type=int, default=16384, help="new tokens of one prefill, all requests together"
    )
    parser.add_argument("--shared", action="store_true", help="half of the decodes' context is common to all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-kernels", action="store_true", help="leave the rows of single kernels out")
    args = parser.parse_args(argv)
    platform = platform_of(args.device)
    quick = args.shape == "tiny"
    limits = kernel_bench.limits(platform.device, getattr(torch, args.dtype), quick)
    print(f"{platform.describe()}, torch {torch.__version__}, {args.dtype}, shape {args.shape}\n{limits}")
    with torch.inference_mode():
        model_rows(args, limits, platform.free_memory())
    if not args.no_kernels:
        size = ["--quick"] if quick else []
        kernel_bench.main(["--device", str(platform.device), "--dtype", args.dtype, *size])


def model_rows(args: argparse.Namespace, limits: kernel_bench.Limits, free_bytes: int) -> None:
    """The model's part: made once, for the largest batch that the memory holds."""
    shape = SHAPES[args.shape]
    size = torch.finfo(getattr(torch, args.dtype)).bits // 8
    head = shape["hidden"] // shape["heads"]
    per_token = 2 * shape["layers"] * shape["kv_heads"] * head * 4  # float32 at most
    layer = shape["hidden"] * (2 * shape["hidden"] + 2 * shape["kv_heads"] * head + 3 * shape["ffn"])
    weights = size * (layer * shape["layers"] + 2 * shape["vocab"] * shape["hidden"])
    wanted = max(max(args.batch) * (args.context + 1), args.max_tokens)
    num_tokens = min(wanted, max(1, int(0.8 * free_bytes - weights) // per_token))
    world = World(args, max(args.batch), num_tokens)
    print(
        f"{world.weight_bytes / 1e9:.2f} GB of weights read per forward, {world.bytes_per_token} bytes of KV a token, "
        f"attention {world.backend_names.prefill} and {world.backend_names.decode}"
    )
    print(f"{'':8} {'batch':>5} {'tokens':>8} {'':8} {'ms':>10} {'tokens/s':>12}")
    for batch in args.batch:
        input_len = max(2, min(args.input_len, args.max_tokens // batch, num_tokens // batch))
        print(prefill_row(world, batch, input_len, limits, args.rounds), flush=True)
    for batch in args.batch:
        context = max(1, min(args.context, num_tokens // batch - 1))
        shared = context // 2 if args.shared else 0
        for line in decode_rows(world, batch, context, shared, limits, args.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
