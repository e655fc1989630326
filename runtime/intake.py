"""From a `GenRequest` to a running `Request`: all values are checked and all text tokenised before the loop sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..compiler.constraints.after_reasoning import after_reasoning
from ..compiler.constraints.compile import cache_counters, compile_constraint, is_quick
from ..compiler.constraints.engines import constraint_engine
from ..compiler.constraints.healing import healing
from ..core.errors import ConstraintError, ContextOverflow, RequestError
from ..core.sampling import MAX_TOP_LOGPROBS
from ..core.text.stops import stop_set
from ..kernels.token_bitmask import mask_words
from .media.picture import Placed
from .media.seams import continued, taken_back
from .memory.prefix_cache import Namespace
from .output import OutputText, needs_text
from .request import Request, Sequence
from .sampling.processors import logit_processor, read_params
from .scoring import plan_trie

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compiler.constraints.interface import Matcher
    from ..core.events import Event
    from ..core.request import GenRequest, LogprobWish, MediaRef
    from ..core.text.tokenizer import Tokenizer
    from .media.library import MediaLibrary
    from .media.picture import Picture
    from .request import IdArray

MAX_LOGPROB_IDS = 1024
MAX_TRIE_ROWS = 2048  # of one forward
MAX_TRIE_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Intake:
    """Checks requests against one model. Immutable, so usable from any thread.

    `context_length` is in tokens of input, `pool_tokens` the capacity of the KV pool, `vocab_size` how many
    ids can be drawn. `eos_ids` end an output.
    """

    tokenizer: Tokenizer | None
    vocab_size: int
    context_length: int
    pool_tokens: int
    grammar_backend: str
    max_token_chars: int
    takes_processors: bool = False
    jump_forward: bool | str = True
    media: MediaLibrary | None = None
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        context_length: int,
        pool_tokens: int,
        grammar_backend: str,
        takes_processors: bool = False,
        jump_forward: bool | str = True,
        media: MediaLibrary | None = None,
        eos_ids: tuple[int, ...] = (),
    ) -> Intake:
        """Raises ConfigError for an unknown grammar backend, and for one that is not installed."""
        if grammar_backend != "none":
            constraint_engine(grammar_backend)
        longest = 1
        if tokenizer is not None:
            longest = max((len(token) for token in tokenizer.vocabulary.token_bytes if token), default=1)
        return cls(
            tokenizer, vocab_size, context_length, pool_tokens, grammar_backend, longest, takes_processors,
            jump_forward, media, eos_ids,
        )  # fmt: skip

    def admit(self, source: GenRequest, seed: int, sink: Callable[[Event], None], now: float) -> Request:
        """The request as the scheduler runs it. `seed` is used if the request has none.

        Raises RequestError naming the field: ContextOverflow if the prompt does not fit, ConstraintError if the
        constraint does not compile.
        """
        params = source.sampling
        params.verify(self.vocab_size)
        self._check(source)
        placed: list[Placed] = []
        prompt_ids = self._prompt_ids(source, placed)
        self._check_length(len(prompt_ids))
        request = Request(
            source,
            prompt_ids,
            seed if params.seed is None else params.seed,
            sink,
            Namespace(source.cache_salt, source.adapter),
            queued_at=now,
            deadline=self.deadline(source, now),
        )
        if placed and self.media is not None:
            request.media = tuple(placed)
            request.rope = self.media.positions(len(prompt_ids), placed)
            if source.logprobs is not None and 0 <= source.logprobs.prompt_start < placed[-1].end:
                raise RequestError(
                    f"must be beyond the last picture, which ends at position {placed[-1].end}: pictures have none",
                    field="logprobs.prompt_start",
                )
        if source.score is not None:
            self._plan_scores(request)
        else:
            self._add_choices(request)
        return request

    def deadline(self, source: GenRequest, now: float) -> float | None:
        """When the request has to be finished, if it says so and did `now` come. Raises RequestError for its field."""
        timeout = source.timeout_s
        if timeout is None:
            return None
        if isinstance(timeout, bool) or not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
            raise RequestError(f"must be a positive number of seconds, not {timeout!r}", field="timeout_s")
        return now + timeout

    def takes_long(self, source: GenRequest) -> bool:
        """Whether the request has pictures to be processed, or a constraint whose compiling may take a while."""
        if self.media is not None and any(segment.media is not None for segment in source.segments):
            return True
        if source.constraint is None or self.tokenizer is None or self.grammar_backend == "none":
            return False
        return not is_quick(
            source.constraint, self.tokenizer.vocabulary, encode=self.tokenizer.encode, backend=self.grammar_backend
        )

    def _check(self, source: GenRequest) -> None:
        if source.adapter is not None:
            raise RequestError(f"no adapter {source.adapter!r} is loaded", field="adapter")
        self.deadline(source, 0.0)
        for name in ("id", "cache_salt", "routing_key"):
            if not isinstance(getattr(source, name), str):
                raise RequestError(f"must be a string, not {getattr(source, name)!r}", field=name)
        if type(source.priority) is not int:
            raise RequestError(f"must be an integer, not {source.priority!r}", field="priority")
        if source.logprobs is not None:
            self._check_logprobs(source.logprobs)
        params = source.sampling
        if self.tokenizer is None and (params.stop or params.stop_regex):
            raise RequestError("stop strings need a tokenizer, and this engine has none", field="stop")
        if params.spaces_between_special_tokens:
            raise RequestError(
                "True puts text where no token is; here the text is the tokens' own (False, or leave it out)",
                field="spaces_between_special_tokens",
            )
        stop_set(params.stop, params.stop_regex)
        self._check_processor(source)
        self._check_media(source)

    def _check_media(self, source: GenRequest) -> None:
        """Before any picture is decoded."""
        places = [number for number, segment in enumerate(source.segments) if segment.media is not None]
        for count, number in enumerate(places, 1):
            ref = source.segments[number].media
            assert ref is not None
            try:
                if self.media is None:
                    raise RequestError(f"the model takes no {ref.kind}s, only text")
                self.media.check_count(count)
            except RequestError as error:
                raise RequestError(error.message, field=f"segments[{number}].media") from None

    def _check_processor(self, source: GenRequest) -> None:
        name = source.logit_processor
        if name is None:
            if source.sampling.custom_params:
                raise RequestError("are for a logit processor, and the request names none", field="custom_params")
            return
        if not self.takes_processors:
            raise RequestError(
                f"{name!r}: logit processors are off in this engine (enable_custom_logit_processor=True allows them)",
                field="logit_processor",
            )
        if source.score is not None:
            raise RequestError("a scoring request takes none", field="logit_processor")
        logit_processor(name)
        read_params(source.sampling.custom_params)

    def _check_logprobs(self, wish: LogprobWish) -> None:
        if type(wish.prompt_start) is not int or wish.prompt_start < -1:
            raise RequestError(f"must be -1 or a position, not {wish.prompt_start!r}", field="logprobs.prompt_start")
        if type(wish.top) is not int or not 0 <= wish.top <= MAX_TOP_LOGPROBS:
            raise RequestError(f"must be between 0 and {MAX_TOP_LOGPROBS}, not {wish.top!r}", field="logprobs.top")
        if len(wish.token_ids) > MAX_LOGPROB_IDS:
            raise RequestError(
                f"at most {MAX_LOGPROB_IDS} ids are allowed, got {len(wish.token_ids)}", field="logprobs.token_ids"
            )
        self._check_ids(wish.token_ids, "logprobs.token_ids")

    def _check_ids(self, ids: tuple[int, ...], field: str) -> None:
        for i, token_id in enumerate(ids):
            if type(token_id) is not int or not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"must be a token id below the vocabulary size {self.vocab_size}, not {token_id!r}",
                    field=f"{field}[{i}]",
                )

    def _prompt_ids(self, source: GenRequest, placed: list[Placed]) -> IdArray:
        """Neighbouring text is tokenised as one string, as a continuation. The pictures go into `placed`."""
        ids: list[int] = []
        text = ""
        for number, segment in enumerate(source.segments):
            if segment.media is not None:
                picture = self._picture(segment.media, number)
                what = picture.processed
                if not text and what.text_before:
                    text = taken_back(ids, self.tokenizer)
                ids += self._encode(text + what.text_before, number)
                placed.append(Placed(picture, len(ids) + len(what.before)))
                ids += picture.ids
                text = what.text_after
            if segment.ids:
                self._check_ids(segment.ids, f"segments[{number}].ids")
                own = segment.ids
                if text and placed and text == placed[-1].picture.processed.text_after:
                    ids += continued(text, own, self.tokenizer)
                else:
                    ids += self._encode(text, number)
                    ids += own
                text = ""
            text += segment.text
            if len(ids) > self.context_length:
                break  # refused below, without tokenising the rest
        ids += self._encode(text, len(source.segments) - 1)
        if not ids:
            raise RequestError("the prompt is empty: there is nothing to continue", field="segments")
        return np.array(ids, dtype=np.int32)

    def _picture(self, ref: MediaRef, number: int) -> Picture:
        """The picture of a segment."""
        assert self.media is not None
        try:
            return self.media.picture(ref)
        except RequestError as error:
            raise RequestError(error.message, field=f"segments[{number}].media") from None

    def _encode(self, text: str, number: int) -> list[int]:
        if not text:
            return []
        if self.tokenizer is None:
            raise RequestError("text needs a tokenizer, and this engine has none", field=f"segments[{number}].text")
        self.check_chars(text, f"segments[{number}].text")
        return self.tokenizer.encode(text)

    def check_chars(self, text: str, field: str) -> None:
        """Refuse a text that cannot fit into the context however it is tokenised, without tokenising it."""
        if len(text) > self.max_token_chars * (self.context_length + 1):
            raise ContextOverflow(
                f"{len(text)} characters are more than {self.context_length} tokens of this model can hold", field=field
            )

    def _check_length(self, num_prompt: int) -> None:
        if num_prompt > self.context_length:
            raise ContextOverflow(
                f"the prompt has {num_prompt} tokens, the model's context {self.context_length}", field="segments"
            )
        if num_prompt > self.pool_tokens:
            raise ContextOverflow(
                f"the prompt has {num_prompt} tokens, the whole KV pool {self.pool_tokens}; raise max_total_tokens",
                field="segments",
            )

    def _add_choices(self, request: Request) -> None:
        source, num_prompt = request.source, len(request.prompt_ids)
        params = source.sampling
        # The last sampled token is never an input: it needs neither a position nor a slot.
        room = min(self.context_length, self.pool_tokens) - num_prompt + 1
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= frozenset(self.eos_ids)
        num_healed = self._num_healed(source)
        if source.reasoning is not None and source.constraint is None:
            raise RequestError("is set apart under a constraint only", field="reasoning")
        compiled = None
        if source.constraint is not None:
            if self.tokenizer is None:
                raise ConstraintError("a constraint needs a tokenizer, and this engine has none", field="constraint")
            if self.grammar_backend == "none":
                raise ConstraintError('constraints are off in this engine (grammar_backend="none")', field="constraint")
            compiled = compile_constraint(
                source.constraint,
                self.tokenizer.vocabulary,
                encode=self.tokenizer.encode,
                backend=self.grammar_backend,
            )
        for index in range(params.n):
            seq = Sequence(request, index, num_prompt, source.priority, stop_ids=stop_ids)
            seq.max_output = min(params.max_new_tokens + num_healed, room)
            if compiled is not None:
                seq.matcher = self._begun(compiled.start(), source)
                if params.finish_valid:
                    seq.matcher.shortest_end()  # refused here by engines that cannot tell
                seq.mask = np.zeros(mask_words(self.vocab_size), dtype=np.int32)
                seq.finish_valid = params.finish_valid
                seq.jump_forward = self.jump_forward if params.jump_forward is None else params.jump_forward
            if needs_text(params, source.stream) and self.tokenizer is not None:
                seq.text = OutputText(self.tokenizer, params, source.healed)
            seq.per_token = (
                source.stream
                or seq.matcher is not None
                or seq.text is not None
                or source.logprobs is not None
                or source.logit_processor is not None
            )
            request.sequences.append(seq)
            request.outputs.append(None)

    def _begun(self, matcher: Matcher, source: GenRequest) -> Matcher:
        """The constraint's matcher, with what the output holds before the constraint begins."""
        if source.reasoning is None:
            return healing(matcher, source.healed)
        if source.healed or not source.reasoning[1]:
            raise RequestError("needs an end marker, and heals nothing", field="reasoning")
        assert self.tokenizer is not None
        special: dict[int, bytes] = {}
        for marker in filter(None, source.reasoning):
            parts = self.tokenizer.split_special(marker)
            if len(parts) == 1 and isinstance(parts[0], int):
                special[parts[0]] = marker.encode("utf-8")
        return after_reasoning(matcher, *source.reasoning, special)

    def _num_healed(self, source: GenRequest) -> int:
        """How many tokens more an output may have for the text that it spells again."""
        if not source.healed:
            return 0
        if source.constraint is None or self.tokenizer is None:
            raise RequestError("text is healed under a constraint only", field="healed")
        self.check_chars(source.healed, "healed")
        return len(self.tokenizer.encode(source.healed)) if source.sampling.max_new_tokens else 0

    def _plan_scores(self, request: Request) -> None:
        score, num_prompt = request.source.score, len(request.prompt_ids)
        assert score is not None
        if request.source.sampling.n != 1 or request.source.constraint is not None:
            raise RequestError("a scoring request takes neither n nor a constraint", field="score")
        if request.source.reasoning is not None:
            raise RequestError("a scoring request has none", field="reasoning")
        if request.source.healed:
            raise RequestError("a scoring request has none: its choices begin with it", field="healed")
        if not score.sequences:
            raise RequestError("there is nothing to score", field="score.sequences")
        if sum(map(len, score.sequences)) > MAX_TRIE_TOKENS:
            raise RequestError(f"more than {MAX_TRIE_TOKENS} tokens to score", field="score.sequences")
        room = min(self.context_length, self.pool_tokens) - num_prompt
        for i, ids in enumerate(score.sequences):
            field = f"score.sequences[{i}]"
            if not ids:
                raise RequestError("is empty", field=field)
            self._check_ids(ids, field)
            if len(ids) - 1 > room:
                raise ContextOverflow(
                    f"has {len(ids)} tokens; {num_prompt} of the prompt before it leave room for {room + 1}",
                    field=field,
                )
        request.trie = plan_trie(score.sequences, min(MAX_TRIE_ROWS, max(room, 1)))
        request.sequences.append(Sequence(request, 0, num_prompt, request.source.priority))


def constraints_compiled() -> int:
    """Automata built in this process."""
    return cache_counters().compiled
