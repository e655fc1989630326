"""Text that a constraint leaves no choice about: taken without a draw, as far as the request's other rules allow.

A forced run is the canonical tokens of the bytes that must come, less a last one that a longer token could replace
(`Matcher.forced`). Its tokens need KV, but no logits: they go through the model together with the token before them, in
one extend of the next launch ("step": one token each). Draws are functions of the token's number, so nothing that is
sampled later depends on how the run was computed. A run that ends the output is not computed at all.

With `finish_valid` it is kept true, wherever it is at the beginning, that the tokens left suffice for the shortest way
to a whole text (`Matcher.shortest_end`): a drawn token after which they would not is given up, and that way is taken.
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
        if seq.finish_valid and not _can_end_after(seq, run) and (way := way_out(seq)) is not None:
            return _taken(seq, start, _take_end(seq, way))
        for token_id in run:
            if token_id in seq.stop_ids:
                return _taken(seq, start, None)
            finish = _take(seq, token_id)
            if finish is not None:
                break
    if (finish is None or finish.type == "length") and matcher.must_stop:
        finish = FinishReason("stop")
    return _taken(seq, start, finish)


def end_instead(seq: Sequence) -> tuple[tuple[int, ...], FinishReason] | None:
    """Give up the token that was drawn last (the matcher has it, the text not) and end by the shortest way.

    None, and nothing is changed, if the text can still be made whole with it, or could not without it either.
    """
    matcher = seq.matcher
    assert matcher is not None
    if way_out(seq) is not None:
        return None
    token_id = seq.output_ids.pop()
    matcher.rollback(1)
    way = way_out(seq)
    if way is None:
        matcher.advance(token_id)
        seq.output_ids.append(token_id)
        return None
    del seq.logprobs[len(seq.output_ids) :]
    start = len(seq.output_ids)
    finish = _take_end(seq, way)
    return _taken(seq, start, finish)[0], finish


def way_out(seq: Sequence) -> tuple[int, ...] | None:
    """The shortest way to a whole text, if the tokens that are left suffice for it."""
    assert seq.matcher is not None
    way = seq.matcher.shortest_end()
    return way if way is not None and len(way) <= seq.max_output - len(seq.output_ids) else None


def _can_end_after(seq: Sequence, run: list[int]) -> bool:
    assert seq.matcher is not None
    ahead = seq.matcher.copy()
    for token_id in run:
        ahead.advance(token_id)
    way = ahead.shortest_end()
    return way is not None and len(run) + len(way) <= seq.max_output - len(seq.output_ids)


def _take_end(seq: Sequence, way: tuple[int, ...]) -> FinishReason:
    for token_id in way:
        finish = _take(seq, token_id)
        if finish is not None and finish.matched is not None:
            return finish
    return FinishReason("stop")


def _take(seq: Sequence, token_id: int) -> FinishReason | None:
    """Append a token that was not drawn; why the sequence ends with it: a stop string, or the limit."""
    assert seq.matcher is not None
    seq.matcher.advance(token_id)
    seq.output_ids.append(token_id)
    if seq.text is not None:
        seq.text.push(token_id)
        if seq.text.match is not None:
            return FinishReason("stop", seq.text.match.stop)
    return FinishReason("length") if len(seq.output_ids) >= seq.max_output else None


def _taken(seq: Sequence, start: int, finish: FinishReason | None) -> tuple[tuple[int, ...], FinishReason | None]:
    taken = tuple(seq.output_ids[start:])
    if taken:
        seq.forced_runs.append((start, len(taken)))
    if finish is not None and finish.type == "length" and seq.finish_valid and seq.matcher and seq.matcher.is_accepting:
        finish = FinishReason("stop")
    return taken, finish
