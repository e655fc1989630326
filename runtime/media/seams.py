"""Text that comes with a picture, tokenised as one string with what stands next to it, as transformers' processors do.

*Naive:* put the picture's own line breaks in as ids. *Wrong because* a tokenizer may have one token for the breaks of
picture and text together, as Gemma's has for every run of them, and models have seen that one. *So* the few tokens next
to the picture are spelled again together with its text. Only such tokens change that tokenising their own text gives
back; so what a model generated stays, unless the text would have been tokenised so anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.text.tokenizer import Tokenizer

NEAR = 32  # tokens next to a picture that its text may change


def taken_back(ids: list[int], tokenizer: Tokenizer | None) -> str:
    """Remove from the end of `ids` the tokens that text behind them could change; returns their text."""
    if tokenizer is None:
        return ""
    near = _plain(ids[-NEAR:][::-1], tokenizer)[::-1]
    text = tokenizer.decode(near) if near else ""
    if not text:
        return ""
    own = tokenizer.encode(text)
    cut = tokenizer.safe_cut(text)
    kept = tokenizer.encode(text[:cut])
    num_taken = len(own) - len(kept)
    if num_taken > _common(own[::-1], near[::-1]) or own[: len(kept)] != kept:
        return ""  # these ids were not made of this text
    del ids[len(ids) - num_taken :]
    return text[cut:]


def continued(text: str, ids: Sequence[int], tokenizer: Tokenizer | None) -> list[int]:
    """The tokens of `text` and then `ids`, the first of which are spelled again with it."""
    if tokenizer is None:
        return list(ids)
    near = _plain(ids[:NEAR], tokenizer)
    shown = tokenizer.decode(near) if near else ""
    if shown:
        own, joined = tokenizer.encode(shown), tokenizer.encode(text + shown)
        same = _common(own[::-1], joined[::-1])  # from here on both are spelled alike
        place = len(own) - same
        is_seen = same > 0 or len(near) < min(NEAR, len(ids)) or len(near) == len(ids)
        if is_seen and place <= _common(own, near):
            return [*joined[: len(joined) - same], *ids[place:]]
    return [*tokenizer.encode(text), *ids]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids they begin with in common."""
    num = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        num += 1
    return num


def _plain(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The ids up to the first that is no text: a special token, a picture."""
    num_tokens = tokenizer.vocab_size
    found = []
    for token_id in ids:
        if token_id >= num_tokens or tokenizer.token_bytes(token_id) is None:
            break
        found.append(token_id)
    return found
