"""From sampled ids to what the user sees: text as it becomes certain, stops, finish reasons, kept ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.events import FinishReason, Output
from ..core.text.detokenize import IncrementalDetokenizer
from ..core.text.stops import StopMatch, StopMatcher, stop_set

if TYPE_CHECKING:
    from ..core.sampling import SamplingParams
    from ..core.text.tokenizer import Tokenizer
    from .request import Sequence


class OutputText:
    """The text of one output: `push` ids as they come, `finish` once.

    `text` is what is certain of the kept text so far; no beginning of it is ever taken back. The `healed` text that the
    ids begin by spelling is no part of it.

    Stops count from token `min_new_tokens` on: text before that is passed through unsearched.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, healed: str = "") -> None:
        self._params = params
        self._healed = healed
        self._num_healing = len(healed)  # characters of it that are still to come
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens)
        self._stops: StopMatcher | None = None
        if params.stop or params.stop_regex:
            self._stops = stop_set(params.stop, params.stop_regex).matcher()
        self._num_ids = 0
        self._pieces: list[str] = []
        self._num_taken = 0

    def push(self, token_id: int) -> None:
        """Take in the next id."""
        self._num_ids += 1
        self._search(self._detokenizer.add((token_id,)))

    def finish(self) -> None:
        """No id follows: what was held back becomes certain, U+FFFD for an unfinished character."""
        if self.match is None:
            self._search(self._detokenizer.finish())
        if self._stops is None:
            return
        if self.match is None:
            self._pieces.append(self._stops.finish())
        if self.match is not None and self._params.no_stop_trim:
            self._pieces.append(self._stops.held)

    @property
    def match(self) -> StopMatch | None:
        """The stop that was found."""
        return self._stops.match if self._stops else None

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self) -> str:
        """The certain text that was not taken before."""
        taken = "".join(self._pieces[self._num_taken :])
        self._num_taken = len(self._pieces)
        return taken

    def kept(self) -> tuple[int, str]:
        """(how many leading ids lie wholly in the text, the rest of the text after them)."""
        text = self._healed + self.text
        count, num_chars = self._detokenizer.num_whole_ids(len(text))
        return count, text[num_chars:]

    def _search(self, piece: str) -> None:
        if self._num_healing:
            self._num_healing, piece = max(0, self._num_healing - len(piece)), piece[self._num_healing :]
        if self._stops is not None and self._num_ids >= self._params.min_new_tokens:
            piece = self._stops.feed(piece)
        self._pieces.append(piece)


def needs_text(params: SamplingParams, stream: bool) -> bool:
    """Whether the text must be followed token by token."""
    return stream or bool(params.stop or params.stop_regex)


def trims_last_id(seq: Sequence) -> bool:
    """Whether the output ended by a token (end of text, or a stop token) that does not show in its text."""
    finish = seq.finish
    return (
        finish is not None
        and finish.type == "stop"
        and isinstance(finish.matched, int)
        and not seq.request.source.sampling.no_stop_trim
    )


def make_output(seq: Sequence, tokenizer: Tokenizer | None) -> Output:
    """The finished output of a sequence whose `finish` is set.

    A stop that shows only at the end (a regex that waited for it) becomes the finish reason. Without a tokenizer there
    is no text, and all ids that would show are kept.
    """
    ids = tuple(seq.output_ids)
    body = ids[:-1] if trims_last_id(seq) else ids
    finish = seq.finish or FinishReason("length")
    if tokenizer is None:
        return Output(seq.index, "", ids, body, "", finish, tuple(seq.logprobs))
    text = seq.text
    if text is None:
        text = seq.text = OutputText(tokenizer, seq.request.source.sampling, seq.request.source.healed)
        for token_id in body:
            text.push(token_id)
    text.finish()
    if finish.type == "length" and text.match is not None:
        finish = FinishReason("stop", text.match.stop)
    count, tail = text.kept()
    logprobs, runs = tuple(seq.logprobs), tuple(seq.forced_runs)
    is_complete = seq.matcher.is_accepting if seq.matcher is not None else None
    return Output(seq.index, text.text, ids, body[:count], tail, finish, logprobs, runs, is_complete)
