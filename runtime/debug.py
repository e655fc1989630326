"""What each layer computes: tensor dumps, and where a model first departs from transformers' one.

    python -m dslc.runtime.debug MODEL_FOLDER --ids 5,17,3 [--dtype float32] [--tolerance 1e-3] [--save FILE]

prints, module by module, the largest difference to transformers' hidden states, and ends with status 1 if one exceeds
the tolerance. The modules are those that both models have under one name: embedding, each layer's attention, MLP and
output, final norm, head.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.config import EngineConfig
from ..core.errors import EngineError, RequestError
from .batch import ForwardBatch, ForwardMode
from .model_runner import ModelRunner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DUMPED = re.compile(r"(.*\.)?(embed_tokens|layers\.\d+(\.self_attn|\.mlp)?|norm|lm_head)")


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one module's output to the reference: the largest absolute one, and the reference's largest value."""

    module: str
    max_abs: float
    scale: float

    def exceeds(self, tolerance: float) -> bool:
        """Whether it is more than `tolerance`, relative to values above 1. NaN always is."""
        return not self.max_abs <= tolerance * max(1.0, self.scale)


@contextmanager
def dump_layers(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block, the dict gets the outputs of each forward: module name -> [rows, ...] float32 on the CPU.

    Modules appear in the order in which they finish. A later forward overwrites an earlier one.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        found[name] = first.detach().to("cpu", torch.float32, copy=True).reshape(-1, first.shape[-1])

    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if DUMPED.fullmatch(name)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def dump_forward(runner: ModelRunner, ids: Sequence[int]) -> dict[str, Tensor]:
    """The outputs of all layers for one prompt in one forward.

    Uses the first slots of the KV pool and one row of the request table: the runner must not be in use by an engine.
    """
    longest = min(runner.num_tokens, runner.context_length)
    if not 0 < len(ids) <= longest:
        raise RequestError(f"takes 1 to {longest} ids, not {len(ids)}", field="ids")
    row = runner.req_to_token.alloc()
    if row is None:
        raise EngineError("all rows of the request table are taken: the runner is in use")
    try:
        fb = _prompt_batch(runner, row, ids)
        with dump_layers(runner.model) as found:
            runner.forward(fb)
    finally:
        runner.req_to_token.free(row)
    return found


def _prompt_batch(runner: ModelRunner, row: int, ids: Sequence[int]) -> ForwardBatch:
    length, device = len(ids), runner.device
    first = runner.kv_pool.page_size  # the slots before are padding
    slots = torch.arange(first, first + length)
    runner.req_to_token.write(row, 0, slots.numpy())

    def tensor(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return ForwardBatch(
        mode=ForwardMode.EXTEND,
        input_ids=tensor(*ids),
        positions=torch.arange(length, device=device),
        out_slots=slots.to(device),
        req_rows=tensor(row),
        seq_lens=tensor(length),
        prefix_lens=tensor(0),
        extend_lens=tensor(length),
        seq_lens_cpu=(length,),
        prefix_lens_cpu=(0,),
        extend_lens_cpu=(length,),
        logits_rows=torch.arange(length, device=device),
    )


def dump_transformers(runner: ModelRunner, ids: Sequence[int]) -> dict[str, Tensor]:
    """The same of transformers' model of the same folder, with the runner's weights' dtype, computed in float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(runner.folder, dtype=runner.dtype)
    model = model.float().eval()
    with torch.inference_mode(), dump_layers(model) as found:
        model(torch.tensor([list(ids)]), use_cache=False)
    return found


def compare(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> list[Difference]:
    """The differences of all modules that both have, in the order in which they were computed."""
    result = []
    for name, output in ours.items():
        expected = reference.get(name)
        if expected is not None and expected.shape == output.shape:
            result.append(Difference(name, float((output - expected).abs().max()), float(expected.abs().max())))
    return result


def first_departure(differences: Sequence[Difference], tolerance: float) -> Difference | None:
    """The first module whose difference exceeds the tolerance."""
    return next((d for d in differences if d.exceeds(tolerance)), None)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m dslc.runtime.debug", description="Compare a model's layers with transformers."
    )
    parser.add_argument("model", help="model folder")
    parser.add_argument("--ids", required=True, help="prompt token ids, separated by commas")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--save", metavar="FILE", help="write our outputs as safetensors")
    args = parser.parse_args(argv)
    ids = [int(number) for number in args.ids.split(",")]
    config = EngineConfig.of(
        model_path=args.model, dtype=args.dtype, device=args.device, max_running_requests=1, max_total_tokens=len(ids)
    )
    runner = ModelRunner(config)
    ours = dump_forward(runner, ids)
    if args.save:
        from safetensors.torch import save_file

        save_file({name: output.contiguous() for name, output in ours.items()}, args.save)
    differences = compare(ours, dump_transformers(runner, ids))
    for d in differences:
        print(f"{d.module:40} {d.max_abs:10.3g}  of {d.scale:10.3g}{'  <--' if d.exceeds(args.tolerance) else ''}")
    departure = first_departure(differences, args.tolerance)
    if departure is not None:
        print(f"first departure: {departure.module}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
