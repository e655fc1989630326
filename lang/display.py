"""What a state is made of: its text in pieces, and of each where it came from. Read by the pages and by the REPL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ..core.text.detokenize import IncrementalDetokenizer
from .executor import Executor
from .meta import OutputMeta
from .outside import Outside

if TYPE_CHECKING:
    from ..core.events import Output
    from ..core.text.tokenizer import Tokenizer
    from .state import ProgramState
    from .stream import Slot, Stream

Kind = Literal["cached", "prompt", "sampled", "forced", "chosen", "text"]
KINDS: dict[Kind, str] = {
    "cached": "prompt, its KV from the cache",
    "prompt": "prompt, computed",
    "sampled": "sampled",
    "forced": "forced by the constraint",
    "chosen": "chosen by select",
    "text": "not sent to the model",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token (of a whole run where there are no tokens), and where it came from.

    `var` and `number` name the generation that it is of (`number` counts those of the stream, -1: none). `logprob` is
    there where it was asked for.
    """

    text: str
    kind: Kind
    token_id: int = -1
    var: str | None = None
    number: int = -1
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """One stream of a state: its path ("0", "0.1", ...), its pieces, its variables with their meta info."""

    path: str
    pieces: tuple[Piece, ...]
    variables: dict[str, Any]
    infos: dict[str, Any]


def executor_of(state: ProgramState) -> Executor:
    """The executor that holds a state's text; waits for the end of one that streams."""
    sink: Any = state.sink
    if isinstance(sink, Outside):
        sink.error()
        return sink.executor
    assert isinstance(sink, Executor)
    return sink


def branches(state: ProgramState) -> list[Branch]:
    """The state's own stream, then those that branched off from it, in order."""
    return branches_of(executor_of(state), state.stream)


def branches_of(executor: Executor, number: int) -> list[Branch]:
    """The same of a stream by its number; of a program that runs, in its thread: what is there so far."""
    own = executor.streams[number]
    below = [stream for stream in executor.streams.values() if stream.path.startswith(own.path + ".")]
    return [_branch(executor, stream) for stream in (own, *below)]


def pieces_of(state: ProgramState) -> list[Piece]:
    """The text of a state in pieces; together they are `state.text()`."""
    executor = executor_of(state)
    return list(_pieces(executor.streams[state.stream], executor.tokenizer))


def _branch(executor: Executor, stream: Stream) -> Branch:
    variables: dict[str, Any] = {}
    infos: dict[str, Any] = {}
    for name, slot in stream.variables.items():
        if slot.is_done and slot.error is None and (executor.outputs is None or name in executor.outputs):
            variables[name] = slot.value
            if slot.meta is not None and not isinstance(slot.meta, list):
                infos[name] = slot.meta() if callable(slot.meta) else slot.meta
    return Branch(stream.path, tuple(_pieces(stream, executor.tokenizer)), variables, infos)


def _pieces(stream: Stream, tokenizer: Tokenizer | None) -> Iterator[Piece]:
    text = stream.text()
    names = {id(slot): name for name, slot in stream.variables.items()}
    at = 0
    for number, (start, slot) in enumerate(stream.marks):
        value = slot.value[0] if isinstance(slot.value, list) and slot.value else slot.value
        if not isinstance(value, str) or start < at or text[start : start + len(value)] != value:
            continue  # the template has written the turn anew (history="render")
        make = partial(Piece, var=names.get(id(slot)), number=number)
        found = slot.meta[0] if isinstance(slot.meta, list) else slot.meta
        output = found.output if isinstance(found, OutputMeta) else None
        healed = _num_healed(output, tokenizer)
        prompt_end = max(at, start - healed)
        yield from _prompt(text[at:prompt_end], *_counts(slot), tokenizer)
        end = start + len(value)
        if output is not None and output.token_ids and tokenizer is not None:
            yield from _generated(output, text[prompt_end:end], tokenizer, make)
        elif value:
            yield make(text[prompt_end:end], "sampled" if output is not None else "chosen")
        at = end
    if at < len(text):
        yield Piece(text[at:], "text")


def _counts(slot: Slot) -> tuple[int, int]:
    """(tokens of the prompt, how many of them were cached) of a generation."""
    found = slot.meta[0] if isinstance(slot.meta, list) else slot.meta
    if isinstance(found, OutputMeta):
        return found.event.num_prompt_tokens, found.event.num_cached_tokens
    info = found() if callable(found) else found or {}
    return info.get("prompt_tokens", 0), info.get("cached_tokens", 0)


def _num_healed(output: Output | None, tokenizer: Tokenizer | None) -> int:
    """How many characters of the prompt the output spelled again."""
    if output is None or tokenizer is None or not output.kept_ids:
        return 0
    return max(0, len(tokenizer.decode(output.kept_ids)) + len(output.kept_tail) - len(output.text))


def _prompt(run: str, num_prompt: int, num_cached: int, tokenizer: Tokenizer | None) -> Iterator[Piece]:
    """A run of prompt, tokenised as it was sent: its last token is the last before the generation."""
    if not run:
        return
    if tokenizer is None:
        yield Piece(run, "prompt")
        return
    ids: list[int] = []
    for part in tokenizer.split_special(run):
        ids += tokenizer.encode(part) if isinstance(part, str) else [part]
    first = num_prompt - len(ids)
    for place, (token, text) in enumerate(_texts(ids, run, tokenizer)):
        yield Piece(text, "cached" if first + place < num_cached else "prompt", token)


def _generated(output: Output, text: str, tokenizer: Tokenizer, make: Callable[..., Piece]) -> Iterator[Piece]:
    forced = {place for start, count in output.forced_runs for place in range(start, start + count)}
    shown = _texts(output.kept_ids, text, tokenizer)
    for place, (token, part) in enumerate(shown):
        logprob = output.logprobs[place].logprob if place < len(output.logprobs) else None
        kind: Kind = "forced" if place in forced else "sampled"
        yield make(part, kind, token, logprob=logprob)
    rest = text[sum(len(part) for _, part in shown) :]
    if rest:
        yield make(rest, "forced" if len(shown) in forced else "sampled")


def _texts(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """(id, its text) of each id; together they are a beginning of `text`."""
    reader = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    found: list[tuple[int, str]] = []
    at = 0
    for token in ids:
        part = reader.add([token])
        if not text.startswith(part, at):
            part = "" if tokenizer.token_bytes(token) is None else text[at : at + len(part)]
        found.append((token, part))
        at += len(part)
    return found
