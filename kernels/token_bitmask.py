"""Which tokens a constraint allows, as packed bits: the torch form of the operation, and its specification."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .registry import Implementation, operation

ALL_ALLOWED = -1  # a word with all bits set


def mask_words(vocab_size: int) -> int:
    """int32 words of a mask row over `vocab_size` ids."""
    return -(-vocab_size // 32)


@operation("apply_token_mask", Implementation("triton", ".triton.token_bitmask:apply_token_mask_"))
def apply_token_mask_(logits: Tensor, mask: Tensor) -> None:
    """Set the logits [B, V] of tokens that are not allowed to -inf, in place.

    mask [B, W] int32: bit i % 32 of word i // 32 allows id i; ids beyond the words are not allowed. A row of -1 words
    is no constraint at all and leaves its logits as they are, bit for bit.
    """
    rows = (mask != ALL_ALLOWED).any(dim=1).nonzero().squeeze(1)
    if rows.numel() == 0:
        return
    words = mask.index_select(0, rows) if rows.numel() < mask.shape[0] else mask
    barred = ~unpack_mask(words, logits.shape[1])
    if rows.numel() == logits.shape[0]:
        logits.masked_fill_(barred, float("-inf"))
    else:
        logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(barred, float("-inf")))


def unpack_mask(words: Tensor, vocab_size: int) -> Tensor:
    """[B, W] int32 -> [B, vocab_size] bool; False beyond the words."""
    if words.device.type == "cpu":
        packed = np.ascontiguousarray(words.numpy()).view(np.uint8)
        bits = torch.from_numpy(np.unpackbits(packed, axis=1, bitorder="little")).view(torch.bool)
    else:
        shifts = torch.arange(32, dtype=torch.int32, device=words.device)
        bits = (words.unsqueeze(-1) >> shifts & 1).bool().flatten(1)
    if bits.shape[1] >= vocab_size:
        return bits[:, :vocab_size]
    return torch.nn.functional.pad(bits, (0, vocab_size - bits.shape[1]))


def pack_mask(allowed: Tensor) -> Tensor:
    """[B, V] bool -> [B, ceil(V / 32)] int32, the unused bits 0."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32))
    packed = np.packbits(padded.cpu().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(packed.view(np.int32)).to(allowed.device)
