"""Text that a constraint leaves no choice about: taken without a draw, as far as the request's other rules allow.

A forced run is the canonical tokens of the bytes that must come, less a last one that a longer token could replace
(`Matcher.forced`). Its tokens need KV, but no logits: they go through the model together with the token before them, in
one extend of the next launch ("step": one token each). Draws are functions of the token's number, so nothing that is
sampled later depends on how the run was computed. A run that ends the output is not computed at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.events import FinishReason

if TYPE_CHECKING:
    from ..request import Sequence


def take_forced(seq: Sequence) -> tuple[tuple[int, ...], FinishReason | None]:
    """Append what must come now to a sequence with a matcher; the new ids, and why it ends if it does.

    A run is cut at the limit of tokens and at a stop string, and it stops before an id that is a stop token, which only
    the sampler may draw or bar. Where nothing but the end of the text is left, the sequence ends without drawing it.
    """
    matcher, start = seq.matcher, len(seq.output_ids)
    assert matcher is not None
    finish: FinishReason | None = None
    while finish is None and (run := matcher.forced()):
        for token_id in run:
            if token_id in seq.stop_ids:
                return _taken(seq, start), None
            matcher.advance(token_id)
            seq.output_ids.append(token_id)
            finish = after_token(seq, token_id)
            if finish is not None:
                break
    if (finish is None or finish.type == "length") and matcher.must_stop:
        finish = FinishReason("stop")
    return _taken(seq, start), finish


def after_token(seq: Sequence, token_id: int) -> FinishReason | None:
    """Why a sequence ends with its newest token, which shows in the text: a stop string, or the limit."""
    if seq.text is not None:
        seq.text.push(token_id)
        if seq.text.match is not None:
            return FinishReason("stop", seq.text.match.stop)
    return FinishReason("length") if len(seq.output_ids) >= seq.max_output else None


def _taken(seq: Sequence, start: int) -> tuple[int, ...]:
    taken = tuple(seq.output_ids[start:])
    if taken:
        seq.forced_runs.append((start, len(taken)))
    return taken
