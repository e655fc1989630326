"""top-k, then top-p: which tokens may be drawn. (min-p needs no ranking: it is a threshold on the weights.)

Tokens are ranked by weight, equal ones by id. top-k keeps the k first; top-p keeps, of what is left and normalised
anew, the shortest beginning whose probabilities sum to at least p.

Only the largest weights are sorted, without their ids. They give each row's cut: the weight of the last token kept, and
how many of that very weight are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FIRST_WIDTH = 64  # how many weights are sorted before it is known how many top-p keeps
WIDEN = 8
TINY = torch.finfo(torch.float32).smallest_normal
DENSE = 16  # from 1 / DENSE of the vocabulary on, picking the ids out costs more than it saves


class Cuts(NamedTuple):
    """Of each row [B]: tokens heavier than `weight` are kept, and the first `num_equal` of exactly that weight.

    `num_kept` is how many that makes; `surplus` whether any row may have more of its cut's weight than it keeps.
    """

    weight: Tensor
    num_equal: Tensor
    num_kept: Tensor
    surplus: bool


def candidates(weights: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor | None]:
    """(weights, ids), each [B, N]: the tokens of each row that pass, by ascending id; padded with weight 0, id 0.

    Where a good part of the vocabulary passes, ids is None: the weights are those of all ids, 0 for what does not pass.
    weights [B, V] float32 (at least 0), top_k [B] int64 (V or more: off), top_p [B] float32 (1: off). A token of
    weight 0 never passes.
    """
    cuts = find_cuts(weights, top_k, top_p)
    cut = cuts.weight[:, None]
    if int(cuts.num_kept.max()) * DENSE > weights.shape[1]:
        return _drop_surplus(weights.masked_fill(weights < cut, 0.0), cuts), None
    rows, ids = (weights >= cut.clamp(min=TINY)).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=weights.shape[0])
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = (weights.shape[0], max(1, int(counts.max())))
    passed, passed_ids = weights.new_zeros(shape), ids.new_zeros(shape)
    passed[rows, place] = weights[rows, ids]
    passed_ids[rows, place] = ids
    return _drop_surplus(passed, cuts), passed_ids


def _drop_surplus(weights: Tensor, cuts: Cuts) -> Tensor:
    """Of the weights equal to a row's cut, keep only the first num_equal."""
    if not cuts.surplus:
        return weights
    equal = weights == cuts.weight[:, None]
    return weights.masked_fill(equal & (equal.cumsum(dim=1) > cuts.num_equal[:, None]), 0.0)


def find_cuts(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Cuts:
    """Where each row is cut; arguments as for `candidates`. Sorts more of the weights until all rows are settled."""
    vocab_size = weights.shape[1]
    limited = top_k < vocab_size
    width = max(FIRST_WIDTH, int(top_k[limited].max()) if bool(limited.any()) else 0)
    total = weights.sum(dim=1, dtype=torch.float64)
    while True:
        width = min(width, vocab_size)
        largest = _largest(weights, width)  # ascending
        cumulated = largest.flip(1).cumsum(dim=1, dtype=torch.float64)
        last = top_k.clamp(max=width)[:, None] - 1
        mass = torch.where(limited, cumulated.gather(1, last).squeeze(1), total)
        enough = torch.where(top_p < 1, top_p.double() * mass, torch.inf)[:, None]
        num_kept = torch.minimum(1 + torch.searchsorted(cumulated, enough).squeeze(1), last.squeeze(1) + 1)
        if width == vocab_size or bool(((num_kept < width) | limited).all()):
            cut = largest.gather(1, width - num_kept[:, None])
            heavier = width - torch.searchsorted(largest, cut, right=True)
            equal = width - torch.searchsorted(largest, cut) - heavier
            num_equal = num_kept[:, None] - heavier
            all_seen = (largest[:, :1] < cut) | (width == vocab_size)
            surplus = bool(((equal > num_equal) | ~all_seen).any())
            return Cuts(cut.squeeze(1), num_equal.squeeze(1), num_kept, surplus)
        width *= WIDEN


def _largest(weights: Tensor, width: int) -> Tensor:
    """[B, width] the largest weights of each row, in ascending order."""
    if weights.device.type != "cpu":
        return weights.topk(width, dim=1).values.flip(1)
    values = weights.numpy()  # numpy's partition and sort of plain floats are vectorised
    if 4 * width < values.shape[1]:
        values = np.partition(values, values.shape[1] - width, axis=1)[:, -width:]
    return torch.from_numpy(np.ascontiguousarray(np.sort(values, axis=1)[:, -width:]))
