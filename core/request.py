"""What a backend is asked to do: one frozen value per generation or scoring, without callables or tensors.

Made by `lang`'s executor and by `Engine.generate`; read by the engine, on whatever side of a process boundary it is.
`encode` / `decode` give its bytes (MessagePack).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .constraint import Constraint
from .sampling import SamplingParams
from .wire import decoded


@dataclass(frozen=True, slots=True)
class MediaRef:
    """A picture or video: made by `core.media`, from whatever the user gave.

    `digest` is the SHA-256 of kind, `fps` and `data` (hexadecimal); `data` the bytes of a picture's file, or a video's
    frames as .npy, `fps` of them a second (None: nobody said). The engine interns it by another digest, of the pixels,
    `fps` and the settings of the model's processor.
    """

    kind: Literal["image", "video"]
    digest: str
    data: bytes = field(default=b"", repr=False)
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of prompt: token ids, or text, or media; exactly one is set.

    `ids` are final. `text` is tokenised by the engine as a continuation of what precedes it (no BOS, no dummy prefix,
    special tokens not parsed); neighbouring text segments count as one string.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    media: MediaRef | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A chat turn, for backends that take turns instead of a prompt; its content is text and media."""

    role: str
    content: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """The text of the turn, media left out."""
        return "".join([segment.text for segment in self.content])


@dataclass(frozen=True, slots=True)
class ScoreTrie:
    """Alternatives to be scored after one prompt: the token ids of each, not empty.

    Shared beginnings are computed once. The result holds, for each sequence, the log-prob of each of its tokens given
    the prompt and the tokens before it.
    """

    sequences: tuple[tuple[int, ...], ...]

    @property
    def num_nodes(self) -> int:
        """Nodes of the trie: what one scoring pass has to compute at most."""
        return len({seq[:i] for seq in self.sequences for i in range(1, len(seq) + 1)})


@dataclass(frozen=True, slots=True)
class LogprobWish:
    """Which log-probs to return (natural log, of the raw distribution at temperature 1, before penalties and masks).

    `prompt_start` -1 means none of the prompt; otherwise those of prompt positions >= prompt_start.
    `top` alternatives per position (at most 20); `token_ids` asks for chosen ids at each position. `with_text` puts the
    tokens' text beside their ids in the meta info.
    """

    prompt_start: int = -1
    top: int = 0
    token_ids: tuple[int, ...] = ()
    with_text: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: program, op number, batch index and stream path (`0`, `0.2`, ...)."""

    program: str = ""
    op: int = -1
    instance: int = 0
    stream: str = "0"


@dataclass(frozen=True, slots=True)
class Hints:
    """What the plan knows about the future; a backend may ignore all of it without changing any output.

    `expected_len`: likely number of new tokens. `next_use`: how many requests of the same workload come before this
    prompt's prefix is used again (-1: never or unknown; 0: what was promised of it before ends now).
    """

    expected_len: int = 0
    next_use: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenRequest:
    """One generation (`score` is None) or one scoring. See the fields' own types.

    `timeout_s` counts from submission; `None` means no deadline. `priority`: higher runs earlier (only where the
    engine has priorities on). `cache_salt` and `adapter` separate prefix caches. `stream` asks for token events as
    they come; without it only the `Finished` event carries text. `routing_key` names whom the request belongs to (a
    user, a tenant): the policy "routing-key" keeps those of one key together. `logit_processor` is the name of a
    registered one, called with `sampling.custom_params`. `healed` is the end of the prompt given back (`segments` are
    without it): the output begins by spelling it, under the constraint, and its text is what comes after. With
    `reasoning`, two markers, the output is the first of them (empty: the prompt has it), free text, the second, and
    then what the constraint is about.

    For backends whose `Capabilities` say so: `messages` are the chat turns that `segments` write out (an assistant turn
    at the end is to be continued), and with `choices` the output is one of these texts. `token_texts` asks for the text
    of each token of the output.
    """

    id: str
    segments: tuple[Segment, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    constraint: Constraint | None = None
    score: ScoreTrie | None = None
    logprobs: LogprobWish | None = None
    stream: bool = False
    adapter: str | None = None
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    routing_key: str = ""
    logit_processor: str | None = None
    healed: str = ""
    reasoning: tuple[str, str] | None = None
    origin: Origin | None = None
    hints: Hints | None = None
    messages: tuple[Message, ...] = ()
    choices: tuple[str, ...] = ()
    token_texts: bool = False


def encode(request: GenRequest) -> bytes:
    """A request as MessagePack bytes; `decode` gives an equal request back."""
    import msgspec

    return msgspec.msgpack.encode(request)


def decode(data: bytes) -> GenRequest:
    """The request in `data`. Raises msgspec.ValidationError (a ValueError) naming the path of what does not fit."""
    return decoded(data, GenRequest)
