"""Speculation over an API: one call writes on, and the gens that follow take their texts from what it wrote.

`@function(num_api_spec_tokens=k)`: a gen asks for at least k tokens and no stop string. Its own text is what comes
before its stop string; while the program then appends just what the model wrote on with, the next gens are served too.
A text is served only where it is what a call of its own could have given: it ends at a stop string or at the end of
text, within the gen's `max_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.events import Finished, FinishReason, Output

if TYPE_CHECKING:
    from ..core.sampling import SamplingParams
    from .stream import OpenRole, Stream


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a call wrote, from the place in the stream's text where it was made. `key`: the options it was made with.

    `ends` are where in `text` its tokens end, if the API said.
    """

    event: Finished
    start: int
    role: OpenRole | None
    key: SamplingParams
    text: str
    ends: tuple[int, ...]
    is_whole: bool  # the text ended there; it was not cut

    @classmethod
    def of(cls, event: Finished, stream: Stream, sampling: SamplingParams) -> Ahead:
        """From the result of the call."""
        output = event.outputs[0]
        ends, at = [], 0
        for text in output.token_texts:
            at += len(text)
            ends.append(at)
        known = tuple(ends) if at == len(output.text) else ()
        whole = output.finish_reason.type == "stop"
        return cls(event, stream.text_len, stream.open_role, key_of(sampling), output.text, known, whole)

    def take(self, stream: Stream, sampling: SamplingParams) -> Finished | None:
        """The result of a gen of these options that stands here now; None where the text does not tell."""
        begun = stream.text_from(self.start)
        if stream.open_role is not self.role or key_of(sampling) != self.key or not self.text.startswith(begun):
            return None
        rest = self.text[len(begun) :]
        places = [(rest.index(stop), stop) for stop in sampling.stop if stop in rest]
        if places:
            end, matched = min(places)
            finish = FinishReason("stop", matched)
        elif self.is_whole:
            end, finish = len(rest), FinishReason("stop")
        else:
            end, finish = len(rest) + 1, FinishReason("length")
        first = len(begun)
        count = sum(first < at <= first + end for at in self.ends) + (first + end not in self.ends and end > 0)
        if not self.ends:
            if end > len(rest) or len(rest[:end].encode()) > sampling.max_new_tokens:
                return None
            count = max(1, -(-end // 4))
        elif count > sampling.max_new_tokens:
            ends = [at for at in self.ends if at > first]
            end, count = ends[sampling.max_new_tokens - 1] - first, sampling.max_new_tokens
            finish = FinishReason("length")
        if end > len(rest):
            return None
        text = rest[:end]
        output = Output(0, text, (), (), text, finish, num_text_tokens=count)
        notes = {**dict(self.event.notes), "speculated": bool(begun)}
        if begun:
            notes["num_tries"] = 0
        return replace(self.event, outputs=(output,), notes=tuple(notes.items()))


def key_of(sampling: SamplingParams) -> SamplingParams:
    """What two gens must agree in for one call to serve both."""
    return replace(sampling, stop=(), max_new_tokens=1, seed=None)
