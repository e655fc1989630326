"""Weights in the order that matrix products on a CPU want: for our own in C++, or without a compiler for oneDNN's.

torch's own product of float32 goes through a library that reaches less than half of some CPUs' rate, and the one of
bfloat16 reorders the weights anew at each call. The packed product is an internal operation of torch: it is tried
before it is trusted, and F.linear stays where it is slower or missing: chosen for each shape by measuring.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ...kernels.native.library import LinearWeights, NativeLinear
from .linear import Linear, MergedLinear, packed_product

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ...kernels.native.library import Library

log = logging.getLogger(__name__)

ROW_COUNTS = (1, 8, 32)  # what is measured; a count between them goes with the one below
REPEATS, ENOUGH, ENOUGH_S = 7, 3, 0.02  # rounds of a measurement: so many, or as many as fit, but not fewer than that
CLEARLY = 0.8  # what is not expected to be the faster way must be so by more than noise
TOLERANCE = 0.02  # of the largest output, bfloat16's rounding included
SINGLE_BYTES = 1 << 19  # reading a larger weight in float32 takes longer than it saves
EVICTED = 1 << 20  # numbers that are read before a single row is timed: in a model other weights come between


def use_native_linears(model: nn.Module, library: Library) -> None:
    """Give each linear layer of the model its product in C++ (a second copy of the weights; tied ones have one).

    Raises MemoryError; a layer of a dtype that it does not know stays as it is.
    """
    made: dict[tuple[int, int], NativeLinear] = {}
    for module in model.modules():
        if not isinstance(module, Linear) or type(module) not in (Linear, MergedLinear):
            continue
        weight, bias = module.weight, module.bias
        if weight.dtype not in (torch.float32, torch.bfloat16):
            continue
        key = id(weight), id(bias)
        if key not in made:
            given = LinearWeights(weight.detach(), None if bias is None else bias.detach().float())
            made[key] = NativeLinear(library, given)
        module.native = made[key]


def pack_linears(model: nn.Module, *, measured: bool = True) -> None:
    """Give each linear layer of the model packed weights (a second copy) where that is faster.

    `measured` False packs all, for any number of rows: a choice that comes out the same in every run. Else small
    weights of bfloat16 stand there in float32 too if that is faster for a single row: oneDNN takes some 25 us to begin,
    torch's own product of float32 a few.
    """
    found: dict[tuple[object, ...], int | None] = {}
    singles: dict[tuple[object, ...], bool] = {}
    packed: dict[int, Tensor] = {}  # tied weights are packed once
    for module in model.modules():
        if not isinstance(module, Linear) or type(module) not in (Linear, MergedLinear):
            continue
        weight = module.weight
        if weight.device.type != "cpu":
            continue
        kind = (*weight.shape, weight.dtype, module.bias is None)
        try:
            if id(weight) not in packed:
                packed[id(weight)] = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
            if kind not in found:
                found[kind] = _from_rows(module, packed[id(weight)], measured)
        except (RuntimeError, AttributeError, TypeError) as error:  # not built in, or another signature
            log.info("weights are not packed: %s", error)
            return
        rows = found[kind]
        if rows is not None:
            module.packed, module.packed_from = packed[id(weight)], rows
        if not measured or weight.dtype != torch.bfloat16 or 4 * weight.numel() > SINGLE_BYTES:
            continue
        module.single = weight.detach().float(), None if module.bias is None else module.bias.detach().float()
        if kind not in singles:
            singles[kind] = _is_faster_in_float32(module)
        if not singles[kind]:
            module.single = None


def _from_rows(layer: Linear, packed: Tensor, measured: bool) -> int | None:
    """From how many rows on the packed product is no worse; None if never, or if it is wrong."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(ROW_COUNTS[-1], layer.in_features, generator=rng).to(layer.weight.dtype)
    expected = F.linear(rows, layer.weight, layer.bias).float()
    wrong = (packed_product(rows, packed, layer.bias).float() - expected).abs().max()
    if not wrong <= TOLERANCE * expected.abs().max():
        log.warning("the packed product of %s is off by %g; it is not used", list(layer.weight.shape), float(wrong))
        return None
    if not measured:
        return 1
    best: int | None = None
    for count in reversed(ROW_COUNTS):
        plain, ours = _seconds(
            lambda x=rows[:count]: F.linear(x, layer.weight, layer.bias),  # type: ignore[misc]
            lambda x=rows[:count]: packed_product(x, packed, layer.bias),  # type: ignore[misc]
        )
        if plain < CLEARLY * ours:
            break
        best = count
    return best


def _is_faster_in_float32(layer: Linear) -> bool:
    """Whether one row of float32 should go through a layer's weight in float32 rather than in its own dtype."""
    single = layer.single
    row = torch.randn(1, layer.in_features, generator=torch.Generator().manual_seed(0))
    others = torch.zeros(EVICTED)

    def through(chosen: tuple[Tensor, Tensor | None] | None) -> None:
        layer.single = chosen
        layer.rows(row)

    in_own, in_float32 = _seconds(lambda: through(None), lambda: through(single), before=others.sum)
    layer.single = single
    return in_float32 < CLEARLY * in_own


def _seconds(*ways: Callable[[], object], before: Callable[[], object] = lambda: None) -> list[float]:
    """The least time of each way, over rounds in which they take turns: other work on the machine hits all of them.

    `before` is run before each and does not count.
    """
    least, begin = [float("inf")] * len(ways), time.perf_counter()
    for number in range(REPEATS):
        for i, run in enumerate(ways):
            before()
            start = time.perf_counter()
            run()
            least[i] = min(least[i], time.perf_counter() - start)
        if number + 1 >= ENOUGH and time.perf_counter() - begin > ENOUGH_S:
            break
    return least
